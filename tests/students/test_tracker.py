"""Laws of the tracker, with networks whose answer is known, and on real clips."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evaluation.masks import iou
from students.data import Pixels, bucket_sizes, fit_image, nearest_bucket, resize
from students.model import StudentConfig, build_student
from students.prior import Network, Soft, nearest_valid, own_prior
from students.tracker import Tracker, TrackerConfig
from students.yuv import rgb_to_yuv

CONFIG = TrackerConfig(side=64)
SEEDS = st.integers(0, 2**32)
SIDES = st.integers(1, 200)
TINY = StudentConfig(
    channels=(8, 8, 8, 8, 8, 8), depths=(1, 1, 1, 1, 1), expansions=(1, 2, 2, 2, 2), decoder=(8, 8, 8, 8), in_channels=4
)


# ── networks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def by_luma(x: Tensor) -> Tensor:
    """Light is person; the prior has no say."""
    return 20 * (x[:, :1] - 0.5)


def by_memory(x: Tensor) -> Tensor:
    """Repeats its prior whatever the frame is; looks only where it has none."""
    prior = x[:, 3:]
    return torch.logit(prior, eps=1e-6) if bool(prior.any()) else by_luma(x)


def by_both(x: Tensor) -> Tensor:
    """What it sees, leaning on what it was."""
    return 10 * (x[:, :1] - 0.5) + 2 * (x[:, 3:] - 0.5)


class Recorder:
    """A network that keeps what it was given."""

    def __init__(self, model: Network) -> None:
        self.model = model
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.model(x)


# ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _scene(seed: int, height: int = 48, width: int = 80) -> Pixels:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return resize(blocks, (height, width))


def _shot(seed: int, frames: int = 4, height: int = 48, width: int = 80) -> list[Pixels]:
    """A scene with a little noise: no cut inside."""
    scene = _scene(seed, height, width).astype(np.int16)
    rng = np.random.default_rng(seed + 1)
    return [np.clip(scene + rng.integers(-6, 7, scene.shape), 0, 255).astype(np.uint8) for _ in range(frames)]


def _run(
    model: Network, frames: Iterable[Pixels], times: Sequence[int] | None = None
) -> tuple[list[Soft], list[str | None]]:
    tracker = Tracker(model, CONFIG)
    masks: list[Soft] = []
    started: list[str | None] = []
    for t, frame in enumerate(frames):
        masks.append(tracker.update(frame, None if times is None else times[t]))
        started.append(tracker.started)
    return masks, started


def _equal(a: Sequence[Soft], b: Sequence[Soft]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ── starting anew ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS)
@settings(max_examples=25)
def test_a_network_that_ignores_its_prior_gives_the_same_frame_by_frame(seed: int) -> None:
    frames = _shot(seed) + _shot(seed + 9)
    alone = [Tracker(by_luma, CONFIG).update(frame) for frame in frames]
    assert _equal(_run(by_luma, frames)[0], alone)


@given(SEEDS)
@settings(max_examples=25)
def test_a_network_that_copies_its_prior_holds_it_until_the_cut_and_not_longer(seed: int) -> None:
    one, two = _shot(seed), [255 - frame for frame in _shot(seed)]
    masks, started = _run(by_memory, one + two)
    assert started == ["first", None, None, None, "cut", None, None, None]
    for before, after in pairwise(masks[:4]):
        assert np.abs(before - after).max() < 1e-4
    assert _equal(masks[4:], _run(by_memory, two)[0])
    assert np.abs(masks[3] - masks[4]).max() > 0.5


@given(SEEDS, st.sampled_from([by_memory, by_both]))
@settings(max_examples=25)
def test_what_came_before_a_start_does_not_matter(seed: int, model: Network) -> None:
    later = _shot(seed, height=60, width=70)
    fresh = _run(model, later)[0]
    masks, started = _run(model, _shot(seed + 1) + later)
    assert started[4] == "size"
    assert _equal(masks[4:], fresh)
    times = [0, 40_000, 80_000, 120_000, 900_000, 940_000, 980_000, 1_020_000]
    masks, started = _run(model, _shot(seed, height=60, width=70) + later, times)
    assert started == ["first", None, None, None, "gap", None, None, None]
    assert _equal(masks[4:], fresh)


def test_time_that_goes_back_is_a_gap_and_time_unknown_is_none() -> None:
    shot = _shot(0, 5)
    assert _run(by_luma, shot, [0, 500_000, 1_000_001, 1_000_001, 1_000_000])[1] == ["first", None, "gap", None, "gap"]
    tracker = Tracker(by_luma, CONFIG)
    for time in (0, None, 10**9):
        tracker.update(shot[0], time)
    assert tracker.started is None


def test_reset_forgets() -> None:
    tracker, shot = Tracker(by_both, CONFIG), _shot(0)
    first, second = tracker.update(shot[0]), tracker.update(shot[0])
    assert not np.array_equal(first, second)
    tracker.reset()
    assert tracker.started is None
    assert np.array_equal(tracker.update(shot[0]), first)
    assert tracker.started == "first"


@given(SEEDS)
@settings(max_examples=25)
def test_two_trackers_share_nothing(seed: int) -> None:
    one, two = _shot(seed), _shot(seed + 1)
    a, b = Tracker(by_both, CONFIG), Tracker(by_both, CONFIG)
    mixed = [(a.update(x), b.update(y)) for x, y in zip(one, two, strict=True)]
    assert _equal([x for x, _ in mixed], _run(by_both, one)[0])
    assert _equal([y for _, y in mixed], _run(by_both, two)[0])


def test_a_mask_given_out_is_not_the_trackers_memory() -> None:
    size = bucket_sizes(64)[2]
    shot = _shot(0, 3, *size)
    tracker = Tracker(by_both, CONFIG)
    for t, expected in enumerate(_run(by_both, shot)[0]):
        mask = tracker.update(shot[t])
        assert np.array_equal(mask, expected)
        mask[:] = 7
        shot[t][:] = 0


# ── drift ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS)
@settings(max_examples=15)
def test_on_a_scene_that_stands_still_the_mask_comes_to_rest(seed: int) -> None:
    masks, started = _run(by_both, [_scene(seed)] * 25)
    assert started == ["first", *[None] * 24]
    steps = [float(np.abs(a - b).max()) for a, b in pairwise(masks)]
    # The slope of a sigmoid is at most 1/4: with a factor of 2 each step is at most half the one before.
    assert all(later <= 0.5 * earlier + 1e-6 for earlier, later in pairwise(steps))
    assert steps[-1] < 1e-5


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=15)
def test_the_mask_follows_what_moves(seed: int, speed: int) -> None:
    rng = np.random.default_rng(seed)
    top, tracker = int(rng.integers(0, 28)), Tracker(by_both, CONFIG)
    for t in range(12):
        truth = np.zeros((64, 96), np.bool_)
        truth[top : top + 30, speed * t : speed * t + 30] = True
        frame = np.where(truth[..., None], 230, 20).astype(np.uint8).repeat(3, axis=2)
        assert iou(tracker.update(frame) > 0.5, truth) > 0.93
        assert tracker.started == ("first" if t == 0 else None)


def test_a_false_start_is_forgotten() -> None:
    """The prior of a wrong frame fades on the frames after it, within a shot."""
    dark = np.full((64, 96, 3), 100, np.uint8)
    ghost = dark.copy()
    ghost[10:40, 10:20] = 200
    tracker, fresh = Tracker(by_both, CONFIG), Tracker(by_both, CONFIG)
    assert tracker.update(ghost)[25, 15] > 0.5
    gaps = []
    for _ in range(8):
        gaps.append(float(np.abs(tracker.update(dark) - fresh.update(dark)).max()))
        assert tracker.started != "cut"
    assert gaps[0] > 0.1
    assert gaps[-1] < 1e-3


# ── the frame and its bucket ──────────────────────────────────────────────────────────────────────────────────────


@given(SIDES, SIDES, SEEDS)
@settings(max_examples=60)
def test_any_frame_gets_a_mask_of_its_size_and_the_network_a_bucket(height: int, width: int, seed: int) -> None:
    model = Recorder(by_both)
    tracker = Tracker(model, CONFIG)
    frame = _scene(seed, height, width)
    for _ in range(2):
        mask = tracker.update(frame)
        assert mask.shape == (height, width)
        assert mask.dtype == np.float32
        assert 0 <= mask.min() <= mask.max() <= 1
    bucket = nearest_bucket(height, width, bucket_sizes(64))
    padded, inside = fit_image(frame, bucket)
    first, second = model.seen
    assert first.shape == second.shape == (1, 4, *bucket)
    assert np.array_equal(first[0, :3].permute(1, 2, 0).numpy(), rgb_to_yuv(padded))
    assert not first[0, 3].any()
    valid = np.zeros(bucket, np.bool_)
    valid[: inside[0], : inside[1]] = True
    prior = second[0, 3].numpy()
    assert np.array_equal(prior, prior.ravel()[nearest_valid(valid)])
    assert np.array_equal(prior[valid], torch.sigmoid(by_both(first))[0, 0].numpy()[valid])


@given(st.integers(20, 200), st.integers(20, 200), st.booleans())
@settings(max_examples=60)
def test_padding_is_cut_off_exactly(height: int, width: int, across: bool) -> None:
    """A ramp comes back as the ramp: no part of the frame is lost, none is moved."""
    ramp = np.linspace(20, 235, width if across else height)
    plane = np.broadcast_to(ramp if across else ramp[:, None], (height, width))
    frame = np.rint(plane).astype(np.uint8)[..., None].repeat(3, axis=2)
    mask = Tracker(lambda x: torch.logit(x[:, :1], eps=1e-6), CONFIG).update(frame)
    border = 0.75 * 215 / 255 / min(len(ramp), 64)  # a resize repeats the outermost pixel over half a pixel
    assert np.abs(mask - frame[..., 0] / 255).max() < border + 0.015


def test_a_frame_of_a_buckets_size_is_not_resized() -> None:
    for size in bucket_sizes(64):
        frame = _scene(3, *size)
        luma = torch.from_numpy(rgb_to_yuv(frame)[..., 0])
        expected = torch.sigmoid(20 * (luma - 0.5)).numpy()
        assert np.array_equal(Tracker(by_luma, CONFIG).update(frame), expected)


@given(SEEDS, st.integers(40, 100), st.integers(40, 100))
@settings(max_examples=25)
def test_the_prior_is_what_training_rolls_out(seed: int, height: int, width: int) -> None:
    student = build_student(TINY, 0).eval()
    model = Recorder(student)
    tracker = Tracker(model, CONFIG)
    frame = _scene(seed, height, width)
    tracker.update(frame)
    tracker.update(frame)
    bucket = nearest_bucket(height, width, bucket_sizes(64))
    padded, inside = fit_image(frame, bucket)
    valid = np.zeros(bucket, np.bool_)
    valid[: inside[0], : inside[1]] = True
    images = torch.from_numpy(padded.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))
    sources = torch.from_numpy(nearest_valid(valid))[None, None]
    rolled = own_prior(student, images, torch.zeros((1, 1, *bucket)), sources)
    assert torch.equal(model.seen[1][:, 3:], rolled)


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_network_is_an_error_and_not_a_memory() -> None:
    factors = iter([1, torch.nan, 1])
    tracker = Tracker(lambda x: by_both(x) * next(factors), CONFIG)
    frame = _scene(0)
    first = tracker.update(frame)
    with pytest.raises(ValueError, match="logits must be finite"):
        tracker.update(frame)
    assert np.array_equal(tracker.update(frame), first)
    assert tracker.started == "first"
    with pytest.raises(ValueError, match=r"must give logits \(1, 1, 64, 64\), got \(1, 4, 64, 64\)"):
        Tracker(lambda x: x, CONFIG).update(_scene(0, 50, 50))


def test_impossible_frames_and_settings_are_refused() -> None:
    tracker = Tracker(by_luma, CONFIG)
    for frame in (np.zeros((4, 4), np.uint8), np.zeros((4, 0, 3), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ValueError, match=r"frame must be \(h, w, 3\) uint8"):
            tracker.update(frame)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="side must be >= 64"):
        TrackerConfig(side=32)
    with pytest.raises(ValueError, match="gap_us must be >= 1"):
        TrackerConfig(gap_us=0)
    with pytest.raises(ValueError, match=r"tracker.thumbnail must be in \[0, 1\]"):
        TrackerConfig(thumbnail=1.5)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        Tracker(build_student(TINY, 0).train(), CONFIG)


# ── real clips ────────────────────────────────────────────────────────────────────────────────────────────────────


def _clip(data: Path, name: str, frames: int) -> list[NDArray[np.uint8]]:
    paths = sorted((data / "labelled_clips" / name / "frames").iterdir())[:frames]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def test_real_clips_are_tracked_through_and_told_apart(data: Path) -> None:
    student = build_student(TINY, 0).eval()
    with torch.no_grad():  # a fresh student does not feel its prior
        student.stem[0].weight[:, 3] = student.stem[0].weight[:, 0]
    names = ("schoolgirls", "tennis_biased", "dance-twirl", "bmx-trees")
    clips = [_clip(data, name, 12) for name in names]
    tracker, masks, started = Tracker(student), [], []
    for frame in (frame for clip in clips for frame in clip):
        masks.append(tracker.update(frame))
        assert masks[-1].shape == frame.shape[:2]
        started.append(tracker.started)
    # The first two and the last two have one size each.
    assert [s for s in started if s] == ["first", "cut", "size", "cut"]
    assert [t for t, s in enumerate(started) if s] == [0, 12, 24, 36]
    for i, clip in enumerate(clips):
        fresh = Tracker(student)
        assert _equal(masks[12 * i : 12 * i + 12], [fresh.update(frame) for frame in clip])
    memoryless = Tracker(student).update(clips[0][1])
    assert not np.array_equal(masks[1], memoryless), "the network must feel its prior, or this test shows nothing"
