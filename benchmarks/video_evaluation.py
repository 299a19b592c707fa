"""What evaluating videos costs: wall and CPU seconds without flow, with flow, and of the flow alone, in one run.

Usage: python -m benchmarks.video_evaluation [--clips N] [--frames T] [--workers W] [--size 640x360] [--keep DIR]

Draws N clips of T frames (a person in front of a textured wall, the camera pans; DAVIS layout: JPEG frames and PNG
masks) and, as the model, a folder of predicted masks that are too fat and flicker. Then it runs the command's own
function three times into new folders: without flow; with flow into an empty cache; again with the flow at hand.
"Flow alone" is what `evaluation.flow.FlowCache` takes for the same clips and threads, fed by the same decoder without
the truths: the name of each video, both directions, and writing them. Its cost is compared with all that is done with
flow, and with what flow adds to the evaluation without it. All figures are of this run; nothing is extrapolated unless
--of says to how many clips.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from evaluation.flow import FlowCache
from pipeline.clip_formats import Clip, ClipConfig
from pipeline.clips import find_clips, read_clip
from pipeline.evaluate import evaluate
from pipeline.evaluate_config import EvaluateConfig
from pipeline.threads import one_thread

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def draw_clip(seed: int, frames: int, height: int, width: int) -> Iterator[tuple[Pixels, Mask, Mask]]:
    """Picture, truth and prediction of each frame: a person walks and sways, the camera pans."""
    rng = np.random.default_rng(seed)
    wall = cv2.GaussianBlur(rng.integers(0, 256, (height + 40, width + frames + 40, 3), np.uint8), (0, 0), 2.5)
    coat = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 1.5)
    speed, start = rng.uniform(0.3, 0.9) * width / frames / 2, rng.uniform(0.2, 0.4) * width
    for t in range(frames):
        x, sway = int(start + speed * t), int(6 * np.sin(t / 5))
        body = np.zeros((height, width), np.uint8)
        cv2.ellipse(body, (x, height), (width // 8, int(height * 0.62)), 0, 0, 360, 1, -1)
        cv2.circle(body, (x + sway, int(height * 0.28)), height // 8, 1, -1)
        truth = body.astype(np.bool_)
        shift = min(x, width - 1)
        picture = np.where(truth[..., None], np.roll(coat, shift, axis=1), wall[20 : 20 + height, t : t + width])
        fat = cv2.dilate(body, np.ones((3, 3), np.uint8), iterations=1 + int(rng.integers(0, 3)))
        yield np.asarray(picture, np.uint8), truth, fat.astype(np.bool_)


def draw(folder: Path, clips: int, frames: int, height: int, width: int) -> None:
    """Videos and predictions in DAVIS layout."""
    for seed in range(clips):
        places = [
            folder / part / f"clip{seed:04d}"
            for part in ("videos/JPEGImages/480p", "videos/Annotations/480p", "predicted")
        ]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        for t, (picture, *masks) in enumerate(draw_clip(seed, frames, height, width)):
            cv2.imwrite(str(places[0] / f"{t:05d}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            for place, mask in zip(places[1:], masks, strict=True):
                cv2.imwrite(str(place / f"{t:05d}.png"), mask.astype(np.uint8) * 255)


def flow_alone(clips: tuple[Clip, ...], cache: FlowCache, workers: int) -> None:
    """The flow of all clips, as the evaluation asks for it, and nothing else."""

    class Pictures:
        def __init__(self, clip: Clip) -> None:
            self._clip = clip

        def __iter__(self) -> Iterator[Pixels]:
            bare = replace(self._clip, masks=None, persons=None, labelled=False)
            return (frame.image for frame in read_clip(bare, ClipConfig()))

    def one(clip: Clip) -> int:
        return sum(1 for _ in cache.pairs(Pictures(clip)))

    with ThreadPoolExecutor(workers) as pool:
        assert all(pool.map(one, clips))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    cpu, wall = _cpu(), time.monotonic()
    work()
    return time.monotonic() - wall, _cpu() - cpu


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(folder: Path, options: argparse.Namespace) -> None:
    """Draws, measures, prints."""
    width, height = (int(side) for side in options.size.split("x"))
    draw(folder, options.clips, options.frames, height, width)
    (folder / "videos" / "persons.json").write_text('{"*": "all"}')
    one_thread()
    console, config = Console(quiet=True), EvaluateConfig()

    def measure(output: str, *, flow: bool, cache: str = "flow") -> Callable[[], object]:
        def work() -> object:
            return evaluate(
                folder / "predicted", folder / "videos", None, str(folder / output), config,
                workers=options.workers, flow=flow, flow_cache=folder / cache, console=console,
            )  # fmt: skip

        return work

    clips = find_clips(folder / "videos", config.clips)
    cache = FlowCache(folder=folder / "alone", config=config.flow, max_bytes=config.flow_bytes)
    rows = {
        "without flow": timed(measure("plain", flow=False)),
        "flow alone": timed(lambda: flow_alone(clips, cache, options.workers)),
        "with flow": timed(measure("flowing", flow=True)),
        "flow at hand": timed(measure("again", flow=True)),
    }
    total = options.clips * options.frames
    print(f"{options.clips} clips of {options.frames} frames, {options.size}, {options.workers} workers")
    for name, (wall, cpu) in rows.items():
        print(f"{name:14s}{wall:8.1f} s wall {cpu:8.1f} s CPU {1e3 * cpu / total:8.2f} ms CPU per frame")
    plain, flow, both = (np.array(rows[name]) for name in ("without flow", "flow alone", "with flow"))
    for what, (wall, cpu) in (("all that is done", both / flow), ("what flow adds", (both - plain) / flow)):
        print(f"with flow, {what}: {wall:.2f} (wall), {cpu:.2f} (CPU) of the flow's own cost; goal 1.20")
    if options.of:
        wall = rows["without flow"][0] * options.of / options.clips
        print(f"extrapolated to {options.of} clips without flow: {wall:.0f} s wall (goal for 100: below 300)")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", default="640x360", metavar="WxH")
    parser.add_argument("--of", type=int, default=0, metavar="N", help="extrapolate the time without flow to N clips")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder and leave it")
    options = parser.parse_args()
    if options.keep:
        run(options.keep, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


if __name__ == "__main__":
    main()
