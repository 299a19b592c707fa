"""Pictures of nine kinds with planted mistakes in their labels, drawn or made of real photographs.

```
cluster          what is in it                              what is wrong with its labels
0 to 3           ordinary                                   5 %: the whole mask is shifted
4 low light      dark and noisy                             60 %: the head or the lower third is missing
5 thin parts     arms raised; of photographs: whole bodies  70 %: thin parts (hands, arms, feet) are missing
6 camouflage     clothes like the wall; photographs: any    60 %: what looks like the background is missing
7 hard           cluttered or out of focus                  nothing: it must survive
8 unlearnable    noise in which nobody can see the person   15 %: shifted; no student can tell which
```

A picture is a square of ``SIDE`` pixels. Everything follows from the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.shared import SHARED
from manifests.labelled import load_labelled, read_labelled
from pipeline.scene import Scene, draw_scene
from pipeline.world import render

SIDE = 64
SKEW = 1.6
NAMES = (
    "ordinary 0", "ordinary 1", "ordinary 2", "ordinary 3",
    "low light", "thin parts", "camouflage", "hard", "unlearnable",
)  # fmt: skip
ORDINARY, HARMED, HARD, UNLEARNABLE = (0, 1, 2, 3), (4, 5, 6), 7, 8
POOL, GOLD, TEST = "pool", "gold", "test"
RATES = {0: 0.05, 1: 0.05, 2: 0.05, 3: 0.05, 4: 0.6, 5: 0.7, 6: 0.6, 7: 0.0, 8: 0.15}

T = TypeVar("T")
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]
Photograph = tuple[str, Image, Mask]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """A picture (SIDE, SIDE, 3), its true mask and its label (SIDE, SIDE), and whether a mistake was planted."""

    image: Image
    truth: Mask
    label: Mask
    bad: bool
    cluster: int
    source: str


def planted(image: Image, truth: Mask, cluster: int, source: str, rng: np.random.Generator) -> Sample:
    """The sample with a mistake in its label as often as its cluster has them."""
    label = truth
    if rng.random() < RATES[cluster] and truth.any():
        label = {4: head_or_legs, 5: thin_parts}.get(cluster, camouflage if cluster == 6 else shifted)(
            truth, rng, image
        )
    different = 1 - float((label & truth).sum()) / max(1, int((label | truth).sum()))
    bad = different > 0.03
    return Sample(image=image, truth=truth, label=label if bad else truth, bad=bad, cluster=cluster, source=source)


def head_or_legs(truth: Mask, rng: np.random.Generator, _: Image) -> Mask:
    """Without the upper 30 % or the lower 35 % of the person."""
    rows = np.flatnonzero(truth.any(axis=1))
    top, height = int(rows[0]), int(rows[-1] - rows[0] + 1)
    label = truth.copy()
    if rng.random() < 0.5:
        label[: top + round(0.3 * height)] = False
    else:
        label[top + round(0.65 * height) :] = False
    return label


def thin_parts(truth: Mask, _: np.random.Generator, __: Image) -> Mask:
    """Without what a disc of a seventh of the person's root area cannot reach, in pieces above 2 % of the person."""
    reach = max(2, round(0.14 * float(np.sqrt(truth.sum()))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    thin = truth & ~(cv2.morphologyEx(truth.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0)
    count, parts, stats, _centres = cv2.connectedComponentsWithStats(thin.astype(np.uint8), connectivity=4)
    label = truth.copy()
    for part in range(1, count):
        if stats[part, cv2.CC_STAT_AREA] > 0.02 * truth.sum():
            label[parts == part] = False
    return label


def camouflage(truth: Mask, _: np.random.Generator, image: Image) -> Mask:
    """Without the third of the person whose colour is nearest to that of the surroundings, in one smooth piece."""
    ring = cv2.dilate(truth.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
    around = image[ring & ~truth].astype(np.float32)
    if not len(around):
        return truth
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 3)
    distance = np.linalg.norm(blurred - np.median(around, axis=0), axis=2)
    near = truth & (distance <= np.quantile(distance[truth], 0.35))
    count, parts, stats, _centres = cv2.connectedComponentsWithStats(near.astype(np.uint8), connectivity=4)
    if count < 2:
        return truth
    return np.asarray(truth & (parts != 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())))


def shifted(truth: Mask, rng: np.random.Generator, _: Image) -> Mask:
    """The mask an eighth of the picture to the left or right."""
    step = (SIDE // 8) * (1 if rng.random() < 0.5 else -1)
    label = np.roll(truth, step, axis=1)
    label[:, slice(0, step) if step > 0 else slice(step, None)] = False
    return np.asarray(label)


def drown(image: Image, rng: np.random.Generator) -> Image:
    """Blocks of the picture in a wrong order, under noise."""
    size = SIDE // 8
    blocks = image.reshape(8, size, 8, size, 3).transpose(0, 2, 1, 3, 4).reshape(64, size, size, 3)
    mixed = blocks[rng.permutation(64)].reshape(8, 8, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, 3)
    return _noisy(0.4 * mixed.astype(np.float32), 60, rng)


def darken(image: Image, rng: np.random.Generator) -> Image:
    """A fifth to a third of the light, and the noise that comes with it."""
    return _noisy(image.astype(np.float32) * rng.uniform(0.2, 0.34), 5, rng)


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Out of focus, with noise."""
    return _noisy(cv2.GaussianBlur(image, (0, 0), rng.uniform(1.2, 2.0)).astype(np.float32), 8, rng)


def _noisy(image: NDArray[np.floating], strength: float, rng: np.random.Generator) -> Image:
    return np.asarray(np.clip(image + strength * rng.standard_normal(image.shape), 0, 255), np.uint8)


# ── the drawn world ───────────────────────────────────────────────────────────────────────────────────────────────


class _Bank:
    """Parts of drawn scenes, to be put together anew: people seen to the chest or waist, lights, cameras, few rooms."""

    def __init__(self, seed: int, scenes: int = 900, rooms: int = 4) -> None:
        drawn = [draw_scene(seed, index, skew=SKEW) for index in range(scenes)]
        people = [s for s in drawn if s.figures]
        upright = [s for s in people if s.pose in ("sitting", "standing", "turning_walking")]
        self.near = [s for s in upright if s.coverage == "head_shoulders"]
        self.far = [s for s in upright if s.coverage == "half_body"]
        raised = [draw_scene(seed, index, skew=0.3) for index in range(scenes, 3 * scenes)]
        self.raised = [s for s in raised if s.pose == "arms_raised_stretch" and s.figures and s.coverage != "full_body"]
        self.rooms = [s.room for s in drawn][:rooms]
        self.walls = [s.room for s in drawn if s.room.style in ("wall", "curtain")][:rooms]
        self.dim = [s.light for s in raised if s.light.level == "dim"]
        self.lit = [s.light for s in drawn if s.light.level != "dim"]
        self.sharp = [s.camera for s in drawn if s.camera.sharpness == "sharp"]
        self.bad = [s.camera for s in raised if s.camera.sharpness == "defocus" and s.camera.compression != "clean"]

    def scene(self, cluster: int, index: int, rng: np.random.Generator) -> Scene:
        """A new scene of a cluster: one person, no poster; ordinary ones are near or far, at the left or the right."""
        resting = self.near if cluster in (0, 1) else self.far
        base = _one(self.raised if cluster == 5 or (cluster in ORDINARY and rng.random() < 0.3) else resting, rng)
        room = replace(_one(self.walls if cluster == 6 else self.rooms, rng), poster=None, furniture="none")
        place = {0: (0.3, 0.5), 1: (0.5, 0.7), 2: (0.3, 0.5), 3: (0.5, 0.7)}.get(cluster, (0.35, 0.65))
        person = replace(base.figures[0], head_x=float(rng.uniform(*place)), phase=float(rng.uniform(0, 6.28)))
        if cluster == 6:
            person = replace(person, top=room.wall)
        light = _one(self.dim if cluster == 4 else self.lit, rng)
        camera = _one(self.bad if cluster == HARD else self.sharp, rng)
        return replace(base, index=index, figures=(person,), room=room, light=light, camera=camera)


def _one(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


def drawn_world(seed: int, counts: dict[str, int]) -> dict[str, list[Sample]]:
    """For each part (POOL, GOLD, TEST and others) so many samples of each cluster, from the drawn video calls."""
    parts: dict[str, list[Sample]] = {part: [] for part in counts}
    bank = _Bank(seed)
    for cluster in range(len(NAMES)):
        rng = np.random.default_rng([seed, cluster])
        for part, count in counts.items():
            for at in range(count):
                scene = bank.scene(cluster, 1000 * cluster + at, rng)
                image, truth = render(scene, 0.0, height_width=(SIDE, SIDE))
                if cluster == UNLEARNABLE:
                    image = drown(image, rng)
                parts[part].append(planted(image, truth, cluster, f"{part} {scene.index}", rng))
    return parts


# ── the real world ────────────────────────────────────────────────────────────────────────────────────────────────


def _rank(name: str, seed: int) -> int:
    return int(hashlib.sha256(f"{seed}|{name}".encode()).hexdigest(), 16)


def _view(image: Image, mask: Mask, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A square part of the photograph that holds much of the person, mirrored or not, at SIDE."""
    height, width = mask.shape
    side = round(min(height, width) * rng.uniform(0.7, 1.0))
    best: tuple[int, int, int] = (-1, 0, 0)
    for _ in range(6):
        y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        best = max(best, (int(mask[y : y + side, x : x + side].sum()), y, x))
    _, y, x = best
    size = (SIDE, SIDE)
    picture = cv2.resize(image[y : y + side, x : x + side], size, interpolation=cv2.INTER_AREA)
    part = cv2.resize(mask[y : y + side, x : x + side].astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    if rng.random() < 0.5:
        picture, part = picture[:, ::-1], part[:, ::-1]
    return np.ascontiguousarray(picture), np.ascontiguousarray(part)


def real_world(seed: int, counts: dict[str, int]) -> dict[str, list[Sample]]:
    """As ``drawn_world``, from the labelled photographs of ``$CURATE_SHARED/data``.

    Photographs are dealt to clusters by source and hash, and to parts by hash in the ratio of the counts, so no
    photograph is in two of either; samples are different views of them. Thin parts are of full bodies (``ccp``).
    """
    parts: dict[str, list[Sample]] = {part: [] for part in counts}
    for cluster, mine in sorted(_homes(seed).items()):
        rng = np.random.default_rng([seed, cluster])
        change = {4: darken, HARD: blur, UNLEARNABLE: drown}.get(cluster)
        for part, photos in _dealt(mine, counts).items():
            for at in range(counts[part]):
                name, image, mask = photos[at % len(photos)]
                picture, truth = _view(image, mask, rng)
                picture = picture if change is None else change(picture, rng)
                parts[part].append(planted(picture, truth, cluster, name, rng))
    return parts


def _homes(seed: int) -> dict[int, list[Photograph]]:
    """Cluster -> its photographs, by source and hash."""
    photographs: dict[str, list[Photograph]] = {"ccp": [], "hsd": []}
    for labelled in read_labelled(SHARED / "data"):
        kind = labelled.name.split("_")[0]
        if kind in photographs:
            image, mask, ignore = load_labelled(labelled)
            if mask.mean() > 0.03 and ignore.mean() < 0.05:
                photographs[kind].append((labelled.name, image, mask))
    clusters: dict[int, list[Photograph]] = {}
    for kind, homes in (("ccp", (0, 5, 5, 6, 8)), ("hsd", (1, 2, 3, 4, 7, 6))):
        ordered = sorted(photographs[kind], key=lambda photo: _rank(photo[0], seed))
        for at, photo in enumerate(ordered):
            clusters.setdefault(homes[at % len(homes)], []).append(photo)
    return clusters


def _dealt(photos: Sequence[Photograph], counts: dict[str, int]) -> dict[str, Sequence[Photograph]]:
    """The photographs in runs as long as the counts ask for, each at least one."""
    total, start, dealt = sum(counts.values()), 0.0, {}
    for part, count in counts.items():
        stop = start + count / total * len(photos)
        low = min(round(start), len(photos) - 1)
        dealt[part] = photos[low : max(round(stop), low + 1)]
        start = stop
    names = [name for part in dealt.values() for name, _image, _mask in part]
    if len(set(names)) < len(names):
        raise SystemExit(f"{len(photos)} photographs are too few for {len(counts)} parts that share none")
    return dealt


WORLDS = {"drawn": drawn_world, "real": real_world}
