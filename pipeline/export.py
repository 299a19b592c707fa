"""``curate export``: a student in the formats it is shipped in, each opened by its own runtime and compared.

::

    <output>/<model>.onnx, .pte, …     what was exported and agrees with the student
    <output>/<model>.onnx.rejected     what was exported and does not agree
    <output>/export.json               last: digests, sizes, latency, agreement, and formats that failed

A file has its name only after it was compared; of the same name with and without ``.rejected`` only the newer stays. A
format that fails does not keep the others from being written; in the end the command fails and names each.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.clip_formats import Clip, ClipConfig, still_image
from pipeline.clip_search import VIDEOS
from pipeline.clip_video import read_video
from pipeline.errors import CurateError, InputError, UsageError
from pipeline.threads import one_thread
from students.card import OWN, Precision, checkpoint_card
from students.data import bucket_sizes
from students.export import FORMATS
from students.fuse import fuse
from students.model import Student, load_student, read_metadata
from students.parity import LEAST_IOU, Parity, Picture, calibration_images, compare, latency_ms
from students.runtime import open_network
from training.files import sha256_file, write_atomically

SYNTHETIC = "synthetic"
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_LIBRARIES = ("executorch", "numpy", "onnx", "onnxruntime", "torch")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How exports are compared and timed.

    Attributes:
        pictures: Most frames that are compared, and that int8 is calibrated on.
        rounds: Runs of which the latency is the median.
        clips: Limits of images and videos.
    """

    pictures: int = 32
    rounds: int = 21
    clips: ClipConfig = field(default_factory=ClipConfig)

    def __post_init__(self) -> None:
        for name in ("pictures", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"export.{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file that was exported.

    Attributes:
        file: Its name in the output folder.
        format: A key of ``students.export.FORMATS``.
        precision: float32 or int8.
        sha256: Of the file.
        bytes: Its size.
        latency_ms: Median CPU milliseconds of one image at the widest bucket, one thread.
        parity: How its masks differ from the student's.
        fault: Why it was rejected; None if it was not.
        quantised: Parts of the network that are int8; none of float32.
    """

    file: str
    format: str
    precision: Precision
    sha256: str
    bytes: int
    latency_ms: float
    parity: Parity
    fault: str | None
    quantised: tuple[str, ...] = ()


def export_student(
    model: Path,
    output: Path,
    formats: Sequence[str],
    frames: Path | None,
    config: ExportConfig | None = None,
    *,
    console: Console | None = None,
) -> list[Exported]:
    """Exports a student, compares each file with it on frames, and writes ``export.json``.

    Args:
        model: a checkpoint of ``students.model`` that states its side.
        output: a folder; other files in it stay.
        formats: keys of ``students.export.FORMATS``, each once.
        frames: a folder of images, or a video; None for synthetic pictures, which do not do for int8.
        config: how to compare.
        console: where the table is printed.

    Raises:
        UsageError: a format is unknown, or int8 is wanted without frames.
        InputError: model or frames cannot be used.
        CurateError: a format cannot be exported, for a package that is not installed or another reason, or does not
            agree with the student; all that was exported is there, see above.
    """
    config = config or ExportConfig()
    console = console or Console()
    _check_formats(formats, frames)
    one_thread()
    source = _source(model)
    seen = _pictures(frames, config)
    for name in formats:
        if instead := FORMATS[name].legacy:
            console.print(f"{name} is no longer developed by its makers; prefer {instead}", style="yellow")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output) as work:
        done, failed = _export_each(source, formats, seen, config, Path(work), output)
    _write_record(output, source, frames, seen, done, failed)
    what = f"{len(seen)} frames" if frames else f"{len(seen)} {SYNTHETIC} pictures; give --frames for real ones"
    console.print(f"Masks compared with the student's on {what}")
    console.print(_table(done))
    faults = [f"{one.format}: {one.fault}; see {output / one.file}" for one in done if one.fault]
    faults += [f"--format {name}: {fault}" for name, fault in failed.items()]
    if faults:
        raise CurateError("\n".join(faults))
    return done


def _check_formats(formats: Sequence[str], frames: Path | None) -> None:
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--format must be of {', '.join(FORMATS)}, got {name!r}")
    if not formats or len(set(formats)) != len(formats):
        raise UsageError(f"--format must name one format or more, each once, got {', '.join(formats) or 'none'}")
    for name in formats:
        if FORMATS[name].precision == "int8" and frames is None:
            raise UsageError(f"--format {name} is calibrated on real frames; give --frames, a folder or a video")


# What is exported -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Source:
    path: Path
    student: Student
    side: int
    metadata: Mapping[str, str]


def _source(model: Path) -> _Source:
    try:
        values = read_metadata(model)
        student = load_student(model)
        card = checkpoint_card(values)
        if card.fit != "aspect":
            raise ValueError("it was trained with fit = square, which is there to compare; train it with fit = aspect")
    except (ValueError, OSError) as error:
        raise InputError(f"--model {model}: {str(error).removeprefix(f'{model}: ')}") from error
    more = {name: value for name, value in values.items() if name not in OWN}
    more |= {"student_sha256": sha256_file(model)}
    return _Source(path=model, student=student, side=card.side, metadata=more)


def _pictures(frames: Path | None, config: ExportConfig) -> list[Picture]:
    if frames is None:
        return [_synthetic(i) for i in range(min(8, config.pictures))]
    if frames.is_dir():
        paths = sorted(p for p in frames.iterdir() if p.suffix.lower() in _IMAGES and not p.name.startswith("."))
        chosen = paths[:: max(1, -(-len(paths) // config.pictures))]  # from all over the folder
        found = [Picture(path.name, still_image(path, config.clips.limits)) for path in chosen]
    elif frames.suffix.lower() in VIDEOS:
        found = list(islice(_of_video(frames, config.clips), config.pictures))
    else:
        raise InputError(f"--frames {frames} must be a folder of images or a video; check the path")
    if not found:
        raise InputError(f"--frames {frames} must hold at least 1 image ({', '.join(_IMAGES)}), got 0")
    return found


def _of_video(path: Path, clips: ClipConfig) -> Iterator[Picture]:
    clip = Clip(name=path.stem, layout="video", frames=str(path), labelled=False, bytes=path.stat().st_size)
    for frame in read_video(clip, clips):
        yield Picture(f"{path.name} frame {frame.name}", frame.image)


def _synthetic(seed: int) -> Picture:
    """Smooth colours and a blob in the middle, (240, 320) or upright."""
    rng = np.random.Generator(np.random.PCG64(seed))
    size = (240, 320) if seed % 2 == 0 else (320, 240)
    picture = cv2.resize(rng.random((7, 9, 3), np.float32), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    centre = round(size[1] * rng.uniform(0.35, 0.65)), round(size[0] * 0.6)
    axes = round(size[1] * 0.22), round(size[0] * 0.35)
    cv2.ellipse(picture, centre, axes, 0, 0, 360, tuple(rng.random(3).tolist()), -1, cv2.LINE_AA)
    noise = 0.03 * rng.standard_normal(picture.shape, np.float32)
    return Picture(f"{SYNTHETIC} {seed}", np.asarray(np.clip((picture + noise) * 255, 0, 255), np.uint8))


# Exporting and comparing ----------------------------------------------------------------------------------------------


def _export_each(
    source: _Source, formats: Sequence[str], seen: Sequence[Picture], config: ExportConfig, work: Path, output: Path
) -> tuple[list[Exported], dict[str, str]]:
    """What was exported, and format -> why of those that failed."""
    done, failed = list[Exported](), dict[str, str]()
    for name in formats:
        try:
            done.append(_export(source, name, seen, config, work, output))
        except (ValueError, RuntimeError) as error:  # PyTorch's exporters raise RuntimeErrors
            failed[name] = " ".join(str(error).replace(f"{work}/", "").split()) or type(error).__name__
    return done, failed


def _export(
    source: _Source, name: str, seen: Sequence[Picture], config: ExportConfig, work: Path, output: Path
) -> Exported:
    chosen, student = FORMATS[name], fuse(source.student).requires_grad_(False)
    channels = student.config.in_channels
    calibration: list[Tensor] = []
    if chosen.precision == "int8":
        calibration = calibration_images(student, seen, side=source.side, in_channels=channels)
    path = work / (source.path.stem + chosen.suffix)
    for stages in chosen.attempts:
        chosen.export(
            source.student, path, side=source.side, metadata=source.metadata, calibration=calibration, stages=stages
        )
        network = open_network(path, trusted=True)  # written just now, by this process
        parity = compare(student, network, seen, side=source.side, in_channels=channels)
        if not parity.fault(chosen.precision):
            break
    widest = bucket_sizes(source.side)[-1]
    latency = latency_ms(network, size=widest, in_channels=channels, rounds=config.rounds)
    fault = parity.fault(chosen.precision)
    accepted, rejected = output / path.name, output / f"{path.name}.rejected"
    final, other = (rejected, accepted) if fault else (accepted, rejected)
    size = path.stat().st_size
    path.replace(final)
    other.unlink(missing_ok=True)  # of an earlier export: it would contradict this one
    return Exported(
        file=final.name,
        format=name,
        precision=chosen.precision,
        sha256=network.sha256,
        bytes=size,
        latency_ms=latency,
        parity=parity,
        fault=fault,
        quantised=stages,
    )


def _write_record(
    output: Path,
    source: _Source,
    frames: Path | None,
    seen: Sequence[Picture],
    done: Sequence[Exported],
    failed: Mapping[str, str],
) -> None:
    pixels = hashlib.sha256()
    for picture in seen:
        pixels.update(f"{picture.name}|{picture.pixels.shape}|".encode() + picture.pixels.tobytes())
    record = {
        "model": {"file": source.path.name, "sha256": source.metadata["student_sha256"], "side": source.side},
        "frames": {
            "source": SYNTHETIC if frames is None else frames.name,
            "count": len(seen),
            "sha256": pixels.hexdigest(),
        },
        "least_iou": LEAST_IOU,
        "exports": [asdict(one) for one in done],
        "failed": dict(failed),
        "versions": _versions(),
    }
    write_atomically(output / "export.json", (json.dumps(record, indent=2) + "\n").encode())


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _table(done: Sequence[Exported]) -> Table:
    table = Table()
    for heading in ("file", "precision", "kB", "CPU ms", "IoU mean", "IoU worst", "max |Δ logit|"):
        table.add_column(heading, justify="left" if heading in ("file", "precision") else "right")
    for one in done:
        agreement = f"{one.parity.iou_mean:.4f}", f"{one.parity.iou_worst:.4f}", f"{one.parity.logit_difference:.2g}"
        table.add_row(one.file, one.precision, f"{one.bytes / 1000:.0f}", f"{one.latency_ms:.1f}", *agreement)
    return table
