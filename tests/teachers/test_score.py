"""Scores of one image follow their table; means of many carry honest intervals and lose nobody."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.boundary import boundary_iou
from evaluation.masks import iou
from teachers.score import LEAST_IMAGES, METRICS, ImageScore, by_class, estimate, score
from teachers.teacher import Person, Prediction, summarise

EMPTY, HALF = np.zeros((40, 60), bool), np.repeat([[True], [False]], 20, axis=0) & np.ones((40, 60), bool)
NOTHING = np.zeros((40, 60), bool)


def said(found: NDArray[np.bool_], persons: tuple[Person, ...] | None = None) -> Prediction:
    return summarise(np.where(found, 0.9, 0.2).astype(np.float32), persons)


def blobs(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    found, truth, ignore = (np.kron(rng.random((5, 6)) < 0.5, np.ones((8, 10), bool)) for _ in range(3))
    return found, truth, ignore


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        (EMPTY, EMPTY, (1.0, 1.0, None, None)),
        (HALF, EMPTY, (0.0, 0.0, 0.0, None)),
        (EMPTY, HALF, (0.0, 0.0, None, 0.0)),
        (HALF, HALF, (1.0, 1.0, 1.0, 1.0)),
        (~HALF, HALF, (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_scores_of_full_and_empty_masks_are_those_of_the_table(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], expected: tuple[float | None, ...]
) -> None:
    one = score("a", said(found), truth, NOTHING)
    assert (one.iou, one.boundary_iou, one.precision, one.recall) == expected


def test_scores_of_overlapping_blocks_are_known() -> None:
    truth, found = EMPTY.copy(), EMPTY.copy()
    truth[10:30, 10:40] = True  # 600
    found[10:30, 20:50] = True  # 600, of which 400 are true
    one = score("a", said(found, (Person(box=(20, 10, 50, 30), score=0.9),)), truth, NOTHING)
    assert one.iou == 400 / 800
    assert one.precision == one.recall == 400 / 600
    assert one.area_truth == one.area_found == 600 / 2400
    assert one.persons == 1
    assert one.ignored == 0.0
    assert score("a", said(found), truth, NOTHING).persons is None


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_without_ignored_pixels_scores_are_those_of_evaluation(seed: int) -> None:
    found, truth, _ = blobs(seed)
    one = score("a", said(found), truth, NOTHING)
    assert one.iou == iou(found, truth)
    assert one.boundary_iou == boundary_iou(found, truth)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_what_is_found_where_pixels_are_ignored_changes_no_score(seed: int) -> None:
    found, truth, ignore = blobs(seed)
    other = np.where(ignore, ~found, found)
    for metric in (*METRICS, "area_truth", "area_found", "ignored"):
        one, two = (getattr(score("a", said(f), truth, ignore), metric) for f in (found, other))
        assert one == two


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_a_right_answer_is_perfect_whatever_is_ignored_and_the_ignored_edge_is_no_boundary(seed: int) -> None:
    _, truth, ignore = blobs(seed)
    ignore[0, 0] = False
    one = score("a", said(truth), truth, ignore)
    assert (one.iou, one.boundary_iou) == (1.0, 1.0)
    assert one.ignored == ignore.mean()


def test_an_ignored_stripe_makes_no_boundary_of_its_own() -> None:
    truth, found = np.ones((100, 100), bool), np.ones((100, 100), bool)
    ignore = np.zeros((100, 100), bool)
    ignore[:, 45:55] = True
    found[:, 50:] = False
    one = score("a", said(found), truth, ignore)
    # The band of 3 pixels runs along the image's border alone, and the right half of it is not found.
    assert one.boundary_iou == 0.5


def test_an_image_without_a_counted_pixel_has_no_score() -> None:
    one = score("a", said(HALF), HALF, np.ones((40, 60), bool))
    assert [getattr(one, metric) for metric in METRICS] == [None] * 4
    assert (one.area_truth, one.area_found, one.ignored) == (None, None, 1.0)


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        score("a", said(HALF), HALF[:5], NOTHING[:5])


# --- Many images -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(values=st.lists(st.floats(0, 1), min_size=LEAST_IMAGES, max_size=40))
def test_an_interval_holds_its_mean_and_stays_in_range(values: list[float]) -> None:
    found = estimate(np.array(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.low is not None
    assert found.high is not None
    assert found.mean is not None
    assert 0 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 1
    assert estimate(np.array(values)) == found


def test_few_images_have_a_mean_only_and_none_have_nothing() -> None:
    few = estimate(np.linspace(0.4, 0.6, LEAST_IMAGES - 1))
    assert few.mean == pytest.approx(0.5)
    assert (few.low, few.high, few.images) == (None, None, LEAST_IMAGES - 1)
    nothing = estimate(np.zeros(0))
    assert (nothing.mean, nothing.low, nothing.high, nothing.images) == (None, None, None, 0)


def test_scores_that_are_nearly_all_the_same_have_a_narrow_interval() -> None:
    same = estimate(np.full(50, 0.7))
    assert same.low == pytest.approx(0.7)
    assert same.high == pytest.approx(0.7)
    one_off = estimate(np.array([0.0] + [1.0] * 199))
    assert one_off.low is not None
    assert one_off.low > 0.97
    assert one_off.high == 1.0


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = estimate(rng.beta(6, 1.5, 25))  # skewed, as IoU is
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 6 / 7.5 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_more_images_than_fit_one_draw_are_resampled_in_parts() -> None:
    values = np.random.default_rng(0).random(2000)
    found = estimate(values)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def row(name: str, value: float | None) -> ImageScore:
    return ImageScore(
        name=name, iou=value, boundary_iou=value, precision=None, recall=value, label_confidence=1.0,
        boundary_uncertainty=0.0, persons=None, area_truth=value, area_found=value, ignored=0.0,
    )  # fmt: skip


def test_every_image_is_in_one_class_of_each_attribute_and_the_unknown_come_last() -> None:
    images = [row("a", 0.2), row("b", 0.4), row("c", 0.9), row("d", None), row("e", 0.5)]
    attributes: dict[str, dict[str, str | None]] = {
        "a": {"light": "zebra"},
        "b": {"light": "dim"},
        "c": {"light": None},
    }
    found = by_class(images, attributes, ["light"])
    assert [(f.attribute, f.name, f.images) for f in found] == [
        ("overall", "all", 5), ("light", "dim", 1), ("light", "zebra", 1), ("light", "unknown", 3),
    ]  # fmt: skip
    assert found[0].scores["iou"].mean == pytest.approx(0.5)
    assert found[0].scores["iou"].images == 4
    assert found[3].scores["iou"].mean == pytest.approx(0.7)
    assert found[3].scores["precision"].mean is None
    assert found[3].scores["precision"].images == 0
