"""Synthetic compositions: people cut out of one picture and put on another's background.

Pictures are (H, W, 3) uint8 RGB; labels (H, W) uint8: 0 background, 1 person, 255 ignored.

    donor ── cut out by its mask, soft edge ── flip, scale, light ──┐
                                                                    ├─> composition
    background: a picture without people, or one painted out ───────┘

The idea is that of Dwibedi et al., "Cut, Paste and Learn" (2017), and Ghiasi et al., "Simple Copy-Paste" (2021).
People that the donor's frame cuts stay at that side of the frame: legs do not end in mid-air.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from teachers.points import IGNORE

Image = NDArray[np.uint8]
Label = NDArray[np.uint8]
Plane = NDArray[np.float32]

_MARGIN = 3  # pixels kept around people, so that their soft edge is whole
_FILL_SIDE = 96  # shorter side at which people are painted out
_GREY = 16.0  # added to mean colours, so that black has no infinite gain


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """People cut out: `weight` in [0, 1] is how much of a person a pixel is, `ignored` how much of it is ignored.

    `top`, `bottom`, `left` and `right` tell which sides of the donor's frame cut them.
    """

    image: Image
    weight: Plane
    ignored: Plane
    top: bool
    bottom: bool
    left: bool
    right: bool


def compose(
    background: Image, background_label: Label, donor: Image, donor_label: Label, rng: np.random.Generator
) -> tuple[Image, Label]:
    """Put the donor's people on a background: mirrored or not, at a random scale and place, lit a little like it.

    Args:
        background: Any size; people who are in it stay.
        background_label: Its label; what is ignored in it stays ignored, also behind the people.
        donor: Any size.
        donor_label: Its label. What is ignored there is not copied; where it shines through a soft edge the
            composition is ignored.
        rng: Draws all of it.

    Returns:
        Picture and label of the background's size; the background itself where the donor shows nobody.
    """
    if not (donor_label == 1).any():
        return background, background_label
    cut = _cut(donor, donor_label)
    cut = _mirrored(cut) if rng.random() < 0.5 else cut
    frame = background_label.shape
    cut = _resized(cut, _scale(cut, donor_label.shape[0], (frame[0], frame[1]), rng))
    gain = _gain(background, background_label, donor, donor_label, rng)
    softness = rng.uniform(0.5, 1.2)
    return _laid(background, background_label, cut, _corner(cut, (frame[0], frame[1]), rng), gain, softness)


def paint_out(image: Image, label: Label) -> tuple[Image, Label]:
    """A picture without its people: where they were, what is around them goes on (Telea, 2004, at a low resolution).

    Neither people nor ignored pixels are looked at for the fill. Where nothing else is left all is ignored.

    Returns:
        Picture and label of the same size; the label is 0 where people were, and 255 where it was.
    """
    person, ignored = label == 1, label == IGNORE
    if not person.any():
        return image, label
    reach = max(2, round(0.012 * float(np.hypot(*label.shape))))
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    hole = np.asarray(cv2.dilate(person.astype(np.uint8), square)) > 0
    fill = _fill(image, hole | ignored)
    if fill is None:
        return image, np.full_like(label, IGNORE)
    # 1 on all people, as they are `reach` inside the hole, and falling outside it.
    alpha = np.minimum(1.0, 2.0 * cv2.GaussianBlur(hole.astype(np.float32), (0, 0), reach / 2))[:, :, None]
    alpha[person] = 1.0
    alpha[ignored] = 0.0
    return _mixed(fill, image, alpha), np.where(ignored, np.uint8(IGNORE), np.uint8(0))


def _fill(image: Image, void: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """What the pixels outside `void` suggest for those inside, smooth; None where there is nothing outside."""
    height, width = void.shape
    scale = min(1.0, _FILL_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small_void = np.asarray(cv2.resize(void.astype(np.float32), size, interpolation=cv2.INTER_AREA)) > 0
    if small_void.all():
        return None
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    small = np.where(small_void[:, :, None], np.uint8(0), small)
    painted = np.asarray(cv2.inpaint(small, small_void.astype(np.uint8), 5, cv2.INPAINT_TELEA))
    smooth = np.where(small_void[:, :, None], cv2.GaussianBlur(painted, (0, 0), 1.5), painted)
    return np.asarray(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _cut(image: Image, label: Label) -> _Cut:
    person = label == 1
    rows, columns = np.flatnonzero(person.any(axis=1)), np.flatnonzero(person.any(axis=0))
    height, width = label.shape
    top, bottom = max(0, int(rows[0]) - _MARGIN), min(height, int(rows[-1]) + 1 + _MARGIN)
    left, right = max(0, int(columns[0]) - _MARGIN), min(width, int(columns[-1]) + 1 + _MARGIN)
    part = (slice(top, bottom), slice(left, right))
    return _Cut(
        image=image[part],
        weight=person[part].astype(np.float32),
        ignored=(label[part] == IGNORE).astype(np.float32),
        top=bool(rows[0] == 0),
        bottom=bool(rows[-1] == height - 1),
        left=bool(columns[0] == 0),
        right=bool(columns[-1] == width - 1),
    )


def _mirrored(cut: _Cut) -> _Cut:
    return _Cut(
        image=np.ascontiguousarray(cut.image[:, ::-1]),
        weight=np.ascontiguousarray(cut.weight[:, ::-1]),
        ignored=np.ascontiguousarray(cut.ignored[:, ::-1]),
        top=cut.top,
        bottom=cut.bottom,
        left=cut.right,
        right=cut.left,
    )


def _scale(cut: _Cut, donor_height: int, frame: tuple[int, int], rng: np.random.Generator) -> float:
    """About as large in the new frame as in the old one, and as large as the frame where both its sides cut."""
    height, width = cut.weight.shape
    share = float(np.clip(height / donor_height * np.exp(rng.uniform(-0.6, 0.4)), 0.15, 1.5))
    scale = min(2.0, share * frame[0] / height)
    if cut.left and cut.right:
        scale = max(scale, frame[1] / width)
    if cut.top and cut.bottom:
        scale = max(scale, frame[0] / height)
    return float(min(scale, 4.0))


def _resized(cut: _Cut, scale: float) -> _Cut:
    height, width = cut.weight.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image, weight, ignored = (cv2.resize(x, size, interpolation=how) for x in (cut.image, cut.weight, cut.ignored))
    return _Cut(
        image=np.asarray(image, dtype=np.uint8),
        weight=np.asarray(weight, dtype=np.float32),
        ignored=np.asarray(ignored, dtype=np.float32),
        top=cut.top,
        bottom=cut.bottom,
        left=cut.left,
        right=cut.right,
    )


def _corner(cut: _Cut, frame: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of the upper left corner in the frame, both possibly negative."""
    height, width = cut.weight.shape
    if cut.top or cut.bottom:
        top = _held(height, frame[0], cut.top, cut.bottom, rng)
    elif rng.random() < 0.4 or height >= frame[0]:  # cut by the lower edge, as people often are
        top = frame[0] - height * rng.uniform(0.35, 1.0)
    else:  # standing in the lower half
        top = rng.uniform(max(height, frame[0] / 2), frame[0]) - height
    if cut.left or cut.right:
        left = _held(width, frame[1], cut.left, cut.right, rng)
    else:
        left = rng.uniform(*sorted((-0.15 * width, frame[1] - 0.85 * width)))
    return round(top), round(left)


def _held(length: int, frame: int, low: bool, high: bool, rng: np.random.Generator) -> float:
    """Where people start who are cut at the low side, the high side or both: no cut is left inside the frame."""
    if low and high:
        return float(rng.uniform(min(0, frame - length), 0))
    beyond = rng.uniform(0, 0.25) * length
    return float(-beyond if low else frame - length + beyond)


def _gain(
    background: Image, background_label: Label, donor: Image, donor_label: Label, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Factors of red, green and blue that bring the donor's surroundings a part of the way to the background's."""
    strength = rng.uniform(0.0, 0.7)
    there, here = _surroundings(background, background_label), _surroundings(donor, donor_label)
    if there is None or here is None:
        return np.ones(3, np.float32)
    return np.clip(((there + _GREY) / (here + _GREY)) ** strength, 0.5, 2.0).astype(np.float32)


def _surroundings(image: Image, label: Label) -> NDArray[np.float64] | None:
    """Mean colour of the background, from every fourth pixel of every fourth row; None where there is none."""
    pixels = image[::4, ::4][label[::4, ::4] == 0]
    return pixels.mean(axis=0) if len(pixels) else None


def _laid(
    background: Image,
    background_label: Label,
    cut: _Cut,
    corner: tuple[int, int],
    gain: NDArray[np.float32],
    softness: float,
) -> tuple[Image, Label]:
    height, width = cut.weight.shape
    top, left = corner
    y, x = max(0, top), max(0, left)
    there = (slice(y, top + height), slice(x, left + width))
    image, label = background.copy(), background_label.copy()
    behind, behind_label = image[there], label[there]
    here = (slice(y - top, y - top + len(behind)), slice(x - left, x - left + behind.shape[1]))
    # Drawn in a little, so that the edge shows little of the donor's background.
    blurred = cv2.GaussianBlur(cut.weight, (0, 0), softness, borderType=cv2.BORDER_REPLICATE)[here]
    alpha = np.clip(1.6 * blurred - 0.6, 0.0, 1.0)
    lit = np.minimum(cut.image[here].astype(np.float32) * gain, 255.0)
    image[there] = _mixed(lit, behind, alpha[:, :, None])
    unknown = (behind_label == IGNORE) | ((cut.ignored[here] > 0) & (alpha > 0))
    label[there] = np.select([unknown, alpha >= 0.5], [np.uint8(IGNORE), np.uint8(1)], default=behind_label)
    return image, label


def _mixed(front: NDArray[np.float32], back: Image, alpha: NDArray[np.float32]) -> Image:
    return np.round(front * alpha + back.astype(np.float32) * (1.0 - alpha)).astype(np.uint8)
