from typing import Any

import numpy as np
import pytest

from evaluation.estimates import Settings
from evaluation.fairness import analyse, to_rows
from evaluation.groups import Videos
from evaluation.taxonomy import Category, Taxonomy
from evaluation.versus import Change, Comparison, compare

TAXONOMY = Taxonomy(categories=(Category(name="tone", level="subject", classes=("light", "dark")),))
SETTINGS = Settings(intersections=())
OWNER = np.repeat(np.arange(80), 3)
DARK = OWNER % 2 == 1


def _videos(values: Any, order: Any = slice(None), **more: Any) -> Videos:
    columns: dict[str, Any] = {
        "names": np.array([f"v{at}" for at in range(240)])[order].tolist(),
        "subjects": np.array([f"s{at}" for at in OWNER])[order].tolist(),
        "scores": {"iou": np.asarray(values)[order]},
        "attributes": {"tone": np.where(DARK, "dark", "light")[order].tolist()},
    }
    return Videos(**(columns | more))


def _pair(seed: int = 0, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two models that find the same videos hard; the first gains on dark skin."""
    rng = np.random.default_rng(seed)
    second = 0.4 + 0.4 * rng.random(80)[OWNER] + 0.02 * rng.random(240)
    return second + 0.02 * rng.standard_normal(240) + gain * DARK, second


def _row(comparison: Comparison, group: str) -> Change:
    (row,) = (row for row in comparison.rows if row.group == group)
    return row


def test_pairing_finds_what_two_audits_cannot() -> None:
    first, second = _pair(gain=0.03)
    found = _row(compare(_videos(first), _videos(second), TAXONOMY, SETTINGS), "dark")
    assert found.change == pytest.approx((first - second)[DARK].mean(), abs=1e-12)
    assert found.p_adjusted is not None
    assert found.p_adjusted < 0.01
    assert found.gap_change_interval is not None
    assert found.gap_change_interval[0] > 0
    alone = next(r for r in analyse(_videos(first), TAXONOMY, SETTINGS).rows if r.group == "dark")
    assert alone.detectable is not None
    assert found.detectable is not None
    assert found.detectable < alone.detectable / 4


def test_the_order_of_videos_does_not_matter_and_swapping_models_turns_the_sign() -> None:
    first, second = _pair()
    straight = compare(_videos(first), _videos(second), TAXONOMY, SETTINGS)
    shuffled = compare(_videos(first), _videos(second, np.arange(240)[::-1]), TAXONOMY, SETTINGS)
    assert straight == shuffled
    turned = compare(_videos(second), _videos(first), TAXONOMY, SETTINGS)
    for a, b in zip(straight.rows, turned.rows, strict=True):
        assert (a.first, a.second, a.p) == (b.second, b.first, b.p)
        if a.change is not None and b.change is not None and a.interval is not None and b.interval is not None:
            assert a.change == pytest.approx(-b.change, abs=1e-12)
            assert a.interval == pytest.approx((-b.interval[1], -b.interval[0]), abs=1e-9)


def test_models_that_hardly_differ_are_similar_and_equal_models_say_why_not() -> None:
    first, second = _pair()
    row = _row(compare(_videos(first), _videos(second), TAXONOMY, SETTINGS), "all")
    assert row.equivalent is True
    same = _row(compare(_videos(second), _videos(second), TAXONOMY, SETTINGS), "all")
    assert (same.change, same.p, same.interval) == (0, None, None)
    assert "no spread" in same.reason


def test_empty_and_small_classes_are_rows_with_a_reason() -> None:
    first, second = _pair()
    rows = compare(_videos(first), _videos(second), TAXONOMY, SETTINGS).rows
    unknown = next(row for row in rows if row.group == "unknown")
    assert (unknown.flag, unknown.first, unknown.change, unknown.reason) == ("empty", None, None, "no video")
    assert to_rows(rows)[0]["interval_low"] is not None


def test_nan_of_either_model_is_refused_or_left_out_by_name() -> None:
    first, second = _pair()
    first[2], second[5] = np.nan, np.nan
    with pytest.raises(ValueError, match="iou is NaN in 'v2', 'v5'"):
        compare(_videos(first), _videos(second), TAXONOMY, SETTINGS)
    found = compare(_videos(first), _videos(second), TAXONOMY, Settings(missing="exclude", intersections=()))
    assert found.excluded == (("iou", "v2"), ("iou", "v5"))
    assert _row(found, "all").videos == 238


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"names": [f"w{at}" for at in range(240)]}, "only one scored 'v0', 'v1'.* and 475 more"),
        ({"scores": {"f": np.full(240, 0.5)}}, "metrics must be the same"),
        ({"subjects": None}, "subjects must be given with both"),
        ({"subjects": ["x", *[f"s{at}" for at in OWNER[1:]]]}, "subjects must be the same with both models.*'v0'"),
        ({"attributes": {}}, "attributes must be the same"),
        ({"attributes": {"tone": [None] * 240}}, "attribute tone must be the same with both"),
        ({"ranges": {"iou": (0.0, 2.0)}}, "iou must have one range"),
    ],
)
def test_unlike_tables_are_refused_by_name(more: dict[str, Any], message: str) -> None:
    first, second = _pair()
    with pytest.raises(ValueError, match=message):
        compare(_videos(first), _videos(second, **more), TAXONOMY, SETTINGS)
