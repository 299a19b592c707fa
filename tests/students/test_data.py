"""Laws of buckets and batches."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from students.data import Buckets, Example, bucket_sizes, fit_image, fitted_size, nearest_bucket


def _example(height: int, width: int, seed: int, *, gold: bool = False, ignore: bool = False) -> Example:
    rng = np.random.default_rng(seed)
    return Example(
        image=rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        target=(rng.random((height, width)) < 0.4).astype(np.uint8),
        ignore=rng.random((height, width)) < 0.1 if ignore else None,
        weight=float(rng.uniform(0.5, 1)),
        gold=gold,
    )


SHAPES = [(50, 90), (90, 50), (64, 64), (60, 80), (80, 60)]
MIXED = [_example(*SHAPES[i % 5], i, gold=i % 4 == 0, ignore=i % 3 == 0) for i in range(23)]


def test_the_canonical_sizes_at_128() -> None:
    assert bucket_sizes(128) == ((160, 96), (128, 96), (128, 128), (96, 128), (96, 160))


@given(st.integers(64, 400))
@settings(max_examples=25)
def test_sizes_are_multiples_of_32_ordered_and_of_about_one_area(side: int) -> None:
    sizes = bucket_sizes(side)
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in sizes)
    assert [w / h for h, w in sizes] == sorted(w / h for h, w in sizes)
    assert all(0.4 < h * w / side**2 < 1.7 for h, w in sizes)
    assert sizes[::-1] == tuple((w, h) for h, w in sizes)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(64, 256))
def test_an_image_is_fitted_inside_its_bucket_with_its_aspect(height: int, width: int, side: int) -> None:
    size = nearest_bucket(height, width, bucket_sizes(side))
    h, w = fitted_size(height, width, size)
    assert 1 <= h <= size[0]
    assert 1 <= w <= size[1]
    assert h == size[0] or w == size[1]
    scale = min(size[0] / height, size[1] / width)
    assert abs(h - max(1, height * scale)) <= 0.5
    assert abs(w - max(1, width * scale)) <= 0.5


def test_missing_pixels_repeat_the_border() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 100, 3)).astype(np.uint8)
    padded, (h, w) = fit_image(image, (96, 160))
    assert (h, w) == (80, 160)
    assert bool((padded[80:] == padded[79]).all())


def test_a_batch_is_a_function_of_seed_and_step_whatever_was_asked_before() -> None:
    one = Buckets(MIXED, side=64, batch=4, seed=5)
    other = Buckets(MIXED, side=64, batch=4, seed=5)
    steps = list(range(2 * one.epoch_steps))
    ahead = {step: one.batch(step) for step in steps}
    for step in reversed(steps):
        for name in ("images", "target", "ignore", "weight"):
            assert np.array_equal(getattr(ahead[step], name), getattr(other.batch(step), name))
    different = Buckets(MIXED, side=64, batch=4, seed=6)
    assert any(one.indices(s) != different.indices(s) for s in steps)


def test_an_epoch_holds_every_example_once_and_gold_three_times() -> None:
    buckets = Buckets(MIXED, side=128, batch=4, seed=1)
    for epoch in range(3):
        seen = Counter(i for s in range(buckets.epoch_steps) for i in buckets.indices(epoch * buckets.epoch_steps + s))
        assert seen == {i: 3 if example.gold else 1 for i, example in enumerate(MIXED)}


def test_a_batch_holds_one_bucket_and_partial_batches_weigh_their_share() -> None:
    buckets = Buckets(MIXED, side=128, batch=4, seed=1)
    shapes = bucket_sizes(128)
    for step in range(buckets.epoch_steps):
        chosen = [MIXED[i] for i in buckets.indices(step)]
        assert len({nearest_bucket(e.target.shape[0], e.target.shape[1], shapes) for e in chosen}) == 1
        batch = buckets.batch(step)
        assert batch.images.shape[2:] in shapes
        assert batch.weight.tolist() == pytest.approx([e.weight * len(chosen) / 4 for e in chosen])


def test_batches_are_probabilities_of_the_stated_types() -> None:
    batch = Buckets(MIXED, side=64, batch=8, seed=2).batch(0)
    assert batch.images.dtype == batch.target.dtype == np.float32
    assert batch.ignore.dtype == np.bool_
    for values in (batch.images, batch.target):
        assert 0 <= values.min() <= values.max() <= 1
    assert batch.target.shape == batch.ignore.shape == (len(batch.images), 1, *batch.images.shape[2:])


def test_padding_and_ignored_pixels_have_no_say() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    ignore = np.zeros((40, 100), bool)
    ignore[:, :50] = True
    example = Example(image=image, target=np.ones((40, 100), np.uint8), ignore=ignore)
    buckets = Buckets([example], side=128, batch=1, seed=0)
    for step in range(5):
        batch = buckets.batch(step)
        judged = ~batch.ignore[0, 0]
        # 96 × 160 holds 64 × 160 of image, half of it ignored; moving changes the share a little.
        assert 0.1 < judged.mean() < 0.6
        assert batch.target[0, 0][judged].mean() > 0.95


def test_the_digest_is_that_of_the_content() -> None:
    def digest(examples: list[Example]) -> str:
        return Buckets(examples, side=64, batch=2, seed=0).digest()

    changed = MIXED[3].image.copy()
    changed[:] = 255 - changed
    other = Example(image=changed, target=MIXED[3].target, weight=MIXED[3].weight)
    assert digest(MIXED[:3]) == digest(list(MIXED[:3]))
    assert digest(MIXED[:4]) != digest([*MIXED[:3], other])


def test_impossible_examples_and_numbers_are_refused() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="must be \\(h, w, 3\\) uint8"):
        Example(image=image[..., 0], target=image[..., 0])
    with pytest.raises(ValueError, match="the image's shape"):
        Example(image=image, target=np.zeros((5, 4), np.uint8))
    with pytest.raises(ValueError, match="divide masks"):
        Example(image=image, target=np.full((4, 5), 255, np.uint8))
    with pytest.raises(ValueError, match="weight must be finite"):
        Example(image=image, target=np.zeros((4, 5), np.uint8), weight=float("nan"))
    with pytest.raises(ValueError, match="at least 1 example"):
        Buckets([], side=64, batch=2, seed=0)
    with pytest.raises(ValueError, match="side must be >= 64"):
        bucket_sizes(32)
