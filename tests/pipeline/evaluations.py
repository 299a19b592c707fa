"""Drawn clips, and models that are folders of masks: the truth, a late one, a frozen one, a noisy one."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from pipeline.evaluate import Evaluated, evaluate

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

HEIGHT, WIDTH, FRAMES_EACH = 48, 96, 10
QUIET = Console(quiet=True)
CLIPS = ("anna", "ben", "carl")


def walk(seed: int) -> list[tuple[Pixels, Mask]]:
    """A textured person that walks before a textured wall."""
    rng = np.random.default_rng(seed)
    wall, coat = (rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1) for _ in "ab")
    frames = []
    for t in range(FRAMES_EACH):
        x = 8 + seed + 3 * t
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        mask[10:, x : x + 24] = True
        frames.append((np.where(mask[..., None], np.roll(coat, 3 * t, axis=1), wall), mask))
    return frames


def write_mask(path: Path, mask: Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_clip(folder: Path, frames: list[tuple[Pixels, Mask]], *, labelled: bool = True) -> None:
    (folder / "frames").mkdir(parents=True)
    for t, (image, mask) in enumerate(frames):
        Image.fromarray(image).save(folder / "frames" / f"{t:05d}.png")
        if labelled:
            write_mask(folder / "masks" / f"{t:05d}.png", mask)


Model = Callable[[list[Mask], int], Mask]
MODELS: dict[str, Model] = {
    "truth": lambda masks, t: masks[t],
    "late": lambda masks, t: masks[max(0, t - 2)],
    "frozen": lambda masks, _: masks[0],
    "noisy": lambda masks, t: masks[t] ^ (np.random.default_rng(t).random(masks[t].shape) < 0.1),
}


def write_model(folder: Path, model: Model, clips: dict[str, list[tuple[Pixels, Mask]]]) -> Path:
    for name, frames in clips.items():
        masks = [mask for _, mask in frames]
        for t in range(len(masks)):
            write_mask(folder / name / f"{t:05d}.png", model(masks, t))
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Three labelled clips, and what four models say of them."""

    folder: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    def model(self, name: str) -> Path:
        return self.folder / name

    def run(self, name: str, output: str = "out", *, flow: bool = False, workers: int = 1, **more: Any) -> Evaluated:
        """An evaluation of a model."""
        more = {"videos": self.videos, "attributes": None, **more}
        return evaluate(
            self.model(name), output=str(self.folder / output), flow=flow, workers=workers, console=QUIET, **more
        )


def draw(folder: Path) -> World:
    clips = {name: walk(seed) for seed, name in enumerate(CLIPS)}
    for name, frames in clips.items():
        write_clip(folder / "videos" / name, frames)
    for name, model in MODELS.items():
        write_model(folder / name, model, clips)
    return World(folder=folder)


def rows(evaluated: Evaluated, name: str = "videos") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(evaluated.folder / f"{name}.parquet").to_pylist()
    return found


def untimed(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Rows of videos without the seconds of the model, the only number that the machine decides."""
    return [{key: value for key, value in row.items() if key != "seconds_per_frame"} for row in rows(evaluated)]
