"""The drawn world of `curate demo`: videos and images of drawn video calls, labelled images, and the truth to check by.

::

    world.json                    what was asked for, and the counts; written last
    unlabelled/video_0000.mp4     2 to 4 seconds at 15 frames per second
    unlabelled/image_0000.jpg
    labelled/images/0000.jpg      other scenes, drawn with little skew so that every class occurs
    labelled/masks/0000.png       0 or 255
    attributes.csv                what annotators said of the unlabelled sources; some of it unknown (empty)
    truth/video_0000.npz          the masks of every frame (see `read_truth`)
    truth/image_0000.png
    truth/attributes.csv          the same table with nothing unknown
"""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, cast

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.camera import frame_size, render
from pipeline.scene import CLASSES, Scene, attributes, draw_scene

__all__ = ["CLASSES", "Scene", "World", "attributes", "draw_scene", "draw_world", "frame_size", "read_truth", "render"]

FRAMES_PER_SECOND: Final = 15
UNKNOWN_SHARE: Final = 0.1
# share of the world's skew, so that a hundred labelled images hold every class
LABELLED_SHARE_OF_SKEW: Final = 0.25
# scenes of a world are numbered from here on by what they become, so that no two are the same
_FIRST_VIDEO, _FIRST_IMAGE, _FIRST_LABELLED = 0, 1_000_000, 2_000_000
_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A finished world: where it is, what was asked for, and how many frames its videos have.

    Attributes:
        folder: that holds it.
        seed: it was drawn from.
        videos: number of unlabelled videos.
        images: number of unlabelled images.
        labelled: number of labelled images.
        skew: how long-tailed its classes are.
        frames: number of frames of all videos together.
    """

    folder: Path
    seed: int
    videos: int
    images: int
    labelled: int
    skew: float
    frames: int

    def __post_init__(self) -> None:
        for name in ("seed", "videos", "images", "labelled", "skew", "frames"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"world.{name} must be >= 0, got {getattr(self, name)}")

    @property
    def unlabelled(self) -> Path:
        """Folder of the unlabelled videos and images."""
        return self.folder / "unlabelled"

    @property
    def attributes_csv(self) -> Path:
        """Table of what annotators said: `source`, then one column per attribute, empty where unknown."""
        return self.folder / "attributes.csv"

    @property
    def labelled_images(self) -> Path:
        """Folder of the labelled images."""
        return self.folder / "labelled" / "images"

    @property
    def labelled_masks(self) -> Path:
        """Folder of their masks, of the same stems, 0 or 255."""
        return self.folder / "labelled" / "masks"

    @property
    def truth(self) -> Path:
        """Folder of the exact masks of every unlabelled source."""
        return self.folder / "truth"


def draw_world(folder: Path, *, seed: int, videos: int, images: int, labelled: int, skew: float = 1.0) -> World:
    """Draw a world in `folder`, or return at once the one that is there; equal arguments give equal bytes.

    It is drawn under a temporary name beside `folder` and renamed at the end: a killed drawing is drawn again.

    Raises:
        ValueError: if a number is negative, or `folder` holds something else or a world of other arguments.
    """
    asked = World(folder=folder, seed=seed, videos=videos, images=images, labelled=labelled, skew=float(skew), frames=0)
    if folder.exists() and any(folder.iterdir()):
        return _finished(asked)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name in ("unlabelled", "labelled/images", "labelled/masks", "truth"):
        (part / name).mkdir(parents=True)
    scenes = {
        **{f"video_{n:04d}.mp4": draw_scene(seed, _FIRST_VIDEO + n, skew=skew) for n in range(videos)},
        **{f"image_{n:04d}.jpg": draw_scene(seed, _FIRST_IMAGE + n, skew=skew) for n in range(images)},
    }
    frames = sum(_write_source(part, name, scene) for name, scene in scenes.items())
    for n in range(labelled):
        _write_labelled(
            part / "labelled", f"{n:04d}", draw_scene(seed, _FIRST_LABELLED + n, skew=LABELLED_SHARE_OF_SKEW * skew)
        )
    rows = {name: attributes(scene) for name, scene in scenes.items()}
    _write_table(part / "truth" / "attributes.csv", rows)
    _write_table(part / "attributes.csv", _forgotten(rows, seed))
    drawn = replace(asked, frames=frames)
    (part / "world.json").write_text(json.dumps(_recorded(drawn), indent=2) + "\n")
    part.replace(folder)
    return drawn


def read_truth(path: Path) -> NDArray[np.bool_]:
    """The exact masks `(T, H, W) bool` of an unlabelled video (`.npz`) or, with T = 1, image (`.png`).

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            shape = tuple(int(n) for n in stored["shape"])
            bits = np.unpackbits(stored["bits"], count=int(np.prod(shape)))
        return bits.reshape(shape).astype(np.bool_)
    mask = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(mask, np.uint8)[None] >= 128


def _recorded(world: World) -> dict[str, object]:
    asked = {name: value for name, value in asdict(world).items() if name not in {"folder", "frames"}}
    return {"version": _VERSION, "asked": asked, "frames": world.frames}


def _finished(asked: World) -> World:
    marker = asked.folder / "world.json"
    if not marker.is_file():
        raise ValueError(
            f"{asked.folder} must be empty or hold a drawn world, but has no world.json; name another folder"
        )
    found = json.loads(marker.read_text())
    wanted = _recorded(asked)
    differ = [
        f"{name} {found['asked'].get(name)} instead of {value}"
        for name, value in cast("dict[str, object]", wanted["asked"]).items()
        if found["asked"].get(name) != value
    ]
    if found["version"] != _VERSION:
        differ.insert(0, f"version {found['version']} instead of {_VERSION}")
    if differ:
        raise ValueError(f"{asked.folder} holds a world of {', '.join(differ)}; remove it or name another folder")
    return replace(asked, frames=int(found["frames"]))


def _write_source(part: Path, name: str, scene: Scene) -> int:
    """Write one unlabelled source and its truth; the number of video frames written."""
    stem, _, kind = name.partition(".")
    if kind == "jpg":
        frame, mask = render(scene, 0.0, height_width=frame_size(scene))
        _write_image(part / "unlabelled" / name, frame)
        _write_mask(part / "truth" / f"{stem}.png", mask)
        return 0
    count = FRAMES_PER_SECOND * 2 + scene.index % (FRAMES_PER_SECOND * 2 + 1)
    masks: list[NDArray[np.bool_]] = []
    _write_video(part / "unlabelled" / name, _filmed(scene, count, masks), frame_size(scene))
    shape = np.array((count, *frame_size(scene)), np.int64)
    np.savez_compressed(part / "truth" / f"{stem}.npz", bits=np.packbits(np.stack(masks)), shape=shape)
    return count


def _filmed(scene: Scene, count: int, masks: list[NDArray[np.bool_]]) -> Iterator[NDArray[np.uint8]]:
    for tick in range(count):
        frame, mask = render(scene, tick / FRAMES_PER_SECOND, height_width=frame_size(scene))
        masks.append(mask)
        yield frame


def _write_video(path: Path, frames: Iterable[NDArray[np.uint8]], height_width: tuple[int, int]) -> None:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    # zerolatency switches off the lookahead of x264, whose choices differ from run to run even in one thread
    x264 = {"preset": "veryfast", "tune": "zerolatency", "crf": "24", "threads": "1"}
    options = x264 if codec == "libx264" else {"qscale": "3"}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=Fraction(FRAMES_PER_SECOND), options=options))
        stream.height, stream.width = height_width
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            planes = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))


def _write_labelled(folder: Path, stem: str, scene: Scene) -> None:
    frame, mask = render(scene, 0.0, height_width=frame_size(scene))
    _write_image(folder / "images" / f"{stem}.jpg", frame)
    _write_mask(folder / "masks" / f"{stem}.png", mask)


def _write_image(path: Path, frame: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(data.tobytes())


def _write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    _, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    path.write_bytes(data.tobytes())


def _forgotten(rows: dict[str, dict[str, str]], seed: int) -> dict[str, dict[str, str]]:
    """`rows` less about a tenth of what they say, as annotators leave gaps."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 3_000_000])))
    return {
        name: {attribute: value for attribute, value in row.items() if rng.random() >= UNKNOWN_SHARE}
        for name, row in rows.items()
    }


def _write_table(path: Path, rows: dict[str, dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["source", *CLASSES], restval="", lineterminator="\n")
        table.writeheader()
        table.writerows({"source": name, **row} for name, row in sorted(rows.items()))
