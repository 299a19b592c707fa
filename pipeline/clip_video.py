"""Clips that are videos: frames, and the truth in a second video of black and white."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.clip_formats import Clip, ClipConfig, ClipFrame, Mask, Pixels, refused
from pipeline.errors import InputError
from pipeline.video import Video

_DARK, _BRIGHT, _CUT = 64, 192, 128
_LATE = 1.5  # a frame that comes after more than this many periods follows a dropped one


@contextlib.contextmanager
def opened(path: str, config: ClipConfig) -> Iterator[Video]:
    """An open video; what breaks inside the block becomes an `InputError` that names it."""
    with refused(path), Path(path).open("rb") as handle:
        limits = replace(config.limits, pixels=config.video_pixels)
        with contextlib.closing(Video(handle, limits, config.max_frames)) as video:
            yield video


def read_video(clip: Clip, config: ClipConfig) -> Iterator[ClipFrame]:
    """The frames of a video, with the truth of its mask video if there is one."""
    masks = None if clip.masks is None else luma_frames(clip.masks, config)
    index = -1
    for index, (image, seconds, follows) in enumerate(_pictures(clip.frames, config)):
        truth = None
        if masks is not None:
            luma = next(masks, None)
            if luma is None:
                raise InputError(f"{clip.masks} ends after {index} frames, {clip.frames} goes on; cut them alike")
            truth = _binary_luma(luma, f"{clip.masks} frame {index}", config.grey)
        yield ClipFrame(index=index, name=f"{index:05d}", seconds=seconds, image=image, truth=truth, follows=follows)
    if masks is not None and next(masks, None) is not None:
        raise InputError(f"{clip.frames} ends after {index + 1} frames, {clip.masks} goes on; cut them alike")


def _pictures(path: str, config: ClipConfig) -> Iterator[tuple[Pixels, float, bool]]:
    """Frames (H, W, 3) uint8 RGB, their seconds, and whether each follows the one before.

    A frame without a time, or with one that steps back, as old containers write it, comes a period after the last.
    """
    before: float | None = None
    with opened(path, config) as video:
        period = float(1 / video.rate)
        for picture in video.frames():
            least = 0.0 if before is None else before + period
            pts, base = picture.pts, picture.time_base
            seconds = least if pts is None or base is None else float(pts * base)
            if before is not None and seconds <= before:
                seconds = least
            follows = before is not None and seconds - before <= _LATE * period
            yield video.pixels(picture)[0], seconds, follows
            before = seconds


def luma_frames(path: str, config: ClipConfig) -> Iterator[Pixels]:
    """The luma of each frame of a video, (H, W) uint8."""
    for pixels, _, _ in _pictures(path, config):
        yield np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def _binary_luma(luma: Pixels, where: str, grey: float) -> Mask:
    between = float(((luma >= _DARK) & (luma < _BRIGHT)).mean())
    if between > grey:
        raise InputError(
            f"{where}: at most {grey:.1%} of a mask's pixels may be neither dark nor bright (clips.grey), "
            f"{between:.1%} are; is it a mask? write black and white"
        )
    return np.asarray(luma >= _CUT, np.bool_)
