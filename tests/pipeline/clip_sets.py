"""The same small clip written in every layout: frames are JPEG files, so that all layouts can hold the same pixels."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.image import decode_image
from manifests.mask import encode_mask, mask_sha256
from manifests.release import Counts, FileEntry, Release, render_release, sha256_hex
from manifests.schema import manifest_schema
from manifests.shard import ShardRow, encode_parquet, shard_table
from pipeline.clips import Clip, ClipConfig, ClipFrame, find_clips, read_clip
from pipeline.errors import InputError
from tests.pipeline.media import texture

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One frame: a JPEG file, its pixels, and its mask."""

    jpeg: bytes
    pixels: Pixels
    mask: Mask


def drawn(count: int = 4, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> list[Drawn]:
    """A textured background and a disk that moves."""
    frames = []
    for number in range(count):
        mask = np.zeros((height, width), np.uint8)
        cv2.circle(mask, (width // 3 + 3 * number, height // 2), height // 5 + number % 3, 1, -1)
        picture = texture(seed, height, width)
        picture[mask > 0] = 230
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=95)
        jpeg = stream.getvalue()
        frames.append(Drawn(jpeg=jpeg, pixels=decode_image(jpeg).pixels, mask=mask > 0))
    return frames


def png(values: NDArray[Any], palette: bool = False) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(values.astype(np.uint8), "P" if palette else "L")
    if palette:
        image.putpalette([(37 * i * (c + 1)) % 256 for i in range(256) for c in range(3)])
    image.save(stream, "PNG")
    return stream.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def film(path: Path, pictures: Sequence[Pixels], times: Sequence[int] | None = None) -> Path:
    """A lossless video at 25 Hz; (H, W, 3) RGB or (H, W) gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as output:
        track: Any = output.add_stream("ffv1", rate=25)
        track.height, track.width = pictures[0].shape[:2]
        track.pix_fmt = "gray" if pictures[0].ndim == 2 else "bgr0"
        track.time_base = track.codec_context.time_base = Fraction(1, 25)
        for number, pixels in enumerate(pictures):
            shown = pixels
            if pixels.ndim == 3:
                opaque = np.full(pixels.shape[:2], 255, np.uint8)
                shown = np.dstack((pixels[:, :, ::-1], opaque))
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(shown), format="gray" if pixels.ndim == 2 else "bgra"
            ).reformat(format=track.pix_fmt)
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 25)
            output.mux(track.encode(frame))
        output.mux(track.encode(None))
    return path


def write_frames(root: Path, name: str, frames: Sequence[Drawn], masks: bool = True) -> Path:
    for number, frame in enumerate(frames):
        put(root / name / "frames" / f"{number:05d}.jpg", frame.jpeg)
        if masks:
            put(root / name / "masks" / f"{number:05d}.png", png(frame.mask * 255))
    return root / name


def write_davis(root: Path, name: str, frames: Sequence[Drawn], resolution: str = "480p") -> None:
    """The person is object 2; object 1 is the upper left corner."""
    for number, frame in enumerate(frames):
        ids = np.where(frame.mask, 2, 0)
        ids[:4, :4] = 1
        put(root / "JPEGImages" / resolution / name / f"{number:05d}.jpg", frame.jpeg)
        put(root / "Annotations" / resolution / name / f"{number:05d}.png", png(ids, palette=True))
    put(root / "persons.json", json.dumps({name: [2]}).encode())


def write_video(root: Path, name: str, frames: Sequence[Drawn], mask: str = "{name}.mask.mkv") -> None:
    film(root / f"{name}.mkv", [frame.pixels for frame in frames])
    film(root / mask.format(name=name), [frame.mask.astype(np.uint8) * 255 for frame in frames])


def runs_of(mask: Mask) -> list[int]:
    """Uncompressed run lengths, in plain Python: the oracle of the decoder."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def coco_of(name: str, frames: Sequence[Drawn]) -> dict[str, Any]:
    """One person per image as run lengths, and a dog."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, frame in enumerate(frames):
        height, width = frame.mask.shape
        size = [height, width]
        images.append({"id": number, "file_name": f"{name}/{number:05d}.jpg", "height": height, "width": width})
        whole = {"size": size, "counts": [0, height * width]}
        annotations.append({"id": 2 * number, "image_id": number, "category_id": 1, "iscrowd": 0})
        annotations[-1]["segmentation"] = {"size": size, "counts": runs_of(frame.mask)}
        annotations.append({"id": 2 * number + 1, "image_id": number, "category_id": 18, "segmentation": whole})
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, name: str, frames: Sequence[Drawn]) -> Path:
    for number, frame in enumerate(frames):
        put(root / "images" / name / f"{number:05d}.jpg", frame.jpeg)
    return put(root / "people.json", json.dumps(coco_of(name, frames)).encode())


def write_release(
    root: Path,
    frames: Sequence[Drawn],
    places: Sequence[tuple[str, int]],
    *,
    media_kind: str = "video",
    ignore: Mapping[int, Mask] | None = None,
    split: str = "test",
    period_us: int = 40_000,
) -> Path:
    """A release of frames that were number n of a source each; its rows lie in an order that is not that of time."""
    order = sorted(range(len(frames)), key=lambda i: (i * 7919) % 101)
    ids = {index: f"{rank:032x}" for rank, index in enumerate(order)}
    samples, rows = [], []
    texts = {f.name: "x" for f in manifest_schema(["light"]) if f.type == pa.string() and not f.nullable}
    for shard_row, index in enumerate(order):
        frame, (uri, number) = frames[index], places[index]
        height, width = frame.mask.shape
        known: dict[str, Any] = {
            "sample_id": ids[index],
            "width": width,
            "height": height,
            "content_sha256": bytes([index]) * 32,
            "mask_sha256": mask_sha256(frame.mask),
            "label_source": "pseudo",
        }
        void = None if ignore is None or index not in ignore else encode_mask(ignore[index])
        samples.append(
            ShardRow(
                image_jpeg=frame.jpeg,
                mask_png=encode_mask(frame.mask),
                ignore_png=void,
                aspect_bucket="4:3",
                weight=1.0,
                label_confidence=None,
                **known,
            )
        )
        place: dict[str, Any] = {
            "source_uri": uri,
            "media_kind": media_kind,
            "frame_index": number,
            "frame_pts_us": number * period_us,
        }
        place |= {"split": split, "shard": 0, "shard_row": shard_row, "decision": "keep"}
        rest: dict[str, Any] = {"source_sha256": bytes(32), "exif_orientation": 1, "group_id": uri, "cluster_path": [0]}
        rest |= {"attr": {"light": {"value": None, "provenance": "unknown"}}, "decision_reasons": [], "subject_ids": []}
        rows.append({**texts, **known, **place, **rest, "verdict": "keep", "sampling_round": 0})
    table = pa.Table.from_pylist(rows, manifest_schema(["light"]))
    parts = {
        "manifest/part-00000-of-00001.parquet": ("manifest", encode_parquet(table, row_group_rows=64)),
        f"shards/{split}/00000-of-00001.parquet": ("shard", encode_parquet(shard_table(samples), row_group_rows=2)),
    }
    entries = []
    for path, (schema, data) in parts.items():
        put(root / path, data)
        ends = {"min_id": min(ids.values()), "max_id": max(ids.values())}
        entry = FileEntry(path=path, bytes=len(data), sha256=sha256_hex(data), rows=len(rows), schema=schema, **ends)
        entries.append(entry)
    count = len(rows)
    release = Release(
        name="people",
        schemas={"release": "1.0", "manifest": "1.0", "shard": "1.0"},
        config_fingerprint=sha256_hex(b""),
        parents=(),
        run_id="run",
        tool={"version": "0"},
        packages={},
        seed=0,
        inputs={},
        models=(),
        counts=Counts(read=count, undecodable=0, duplicate=0, not_sampled=0, dropped=0, held=0, kept=count),
        splits={split: count},
        cells={},
        files=tuple(entries),
        erasures=(),
    )
    put(root / "release.json", render_release(release))
    return root


def assert_holds(clip: Clip, frames: Sequence[Drawn], **options: Any) -> list[ClipFrame]:
    """The clip has these pixels and masks, bit for bit, and the frames follow each other."""
    found = list(read_clip(clip, **options))
    assert [frame.index for frame in found] == list(range(len(frames)))
    assert [frame.follows for frame in found] == [index > 0 for index in range(len(frames))]
    for frame, expected in zip(found, frames, strict=True):
        np.testing.assert_array_equal(frame.image, expected.pixels)
        assert frame.truth is not None
        np.testing.assert_array_equal(frame.truth, expected.mask)
        assert frame.truth.dtype == np.bool_
    return found


def read_all(folder: Path, config: ClipConfig | None = None) -> int:
    """Find and read every clip of a folder; the number of frames."""
    return sum(1 for clip in find_clips(folder, config) for _ in read_clip(clip, config))


def refusal(folder: Path, config: ClipConfig | None = None) -> str:
    """What finding or reading the clips of a folder raises."""
    with pytest.raises(InputError) as caught:
        read_all(folder, config)
    return str(caught.value)
