"""The audit against the reference numbers, its laws, and what it says where it cannot say anything."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.estimates import Settings, estimate
from evaluation.fairness import Fairness, Row, analyse, columns, to_rows
from evaluation.groups import Videos, groupings
from evaluation.resample import single_step
from evaluation.taxonomy import Category, Taxonomy, default_taxonomy
from evaluation.worst import null_means, spread

TAXONOMY = Taxonomy(
    categories=(
        Category(name="tone", level="subject", classes=("light", "dark"), sensitive=True),
        Category(name="light", classes=("dim", "bright")),
    )
)
NO_CROSSING = Settings(intersections=())


def _videos(people: int = 80, each: int = 3, gap: float = 0.0, seed: int = 0, **more: Any) -> Videos:
    """People with some videos each; half are dark and score `gap` lower."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(people), each)
    dark = owner % 2 == 1
    scores = 0.8 + 0.05 * rng.uniform(-1, 1, people)[owner] + 0.05 * rng.uniform(-1, 1, len(owner)) - gap * dark
    light = rng.choice(["dim", "bright"], len(owner)).tolist()
    columns: dict[str, Any] = {
        "names": [f"v{at}" for at in range(len(owner))],
        "subjects": [f"s{at}" for at in owner],
        "scores": {"iou": scores},
        "attributes": {"tone": ["dark" if d else "light" for d in dark], "light": light},
    }
    return Videos(**(columns | more))


def _row(audit: Fairness, group: str) -> Row:
    (row,) = (row for row in audit.rows if row.group == group)
    return row


@pytest.fixture(scope="module")
def golden(goldens: Path) -> tuple[dict[str, Any], Videos, Taxonomy, Fairness]:
    folder = goldens / "evaluation"
    expected = json.loads((folder / "fairness_expected.json").read_text())
    with (folder / "fairness_videos.csv").open() as file:
        rows = list(csv.DictReader(file))
    videos = Videos(
        names=[row["video_id"] for row in rows],
        subjects=[row["subject_id"] for row in rows],
        scores={name: np.array([float(row[name]) for row in rows]) for name in ("iou", "boundary_iou")},
        attributes={name: [row[name] for row in rows] for name in expected["by_category"]},
    )
    taxonomy = Taxonomy(categories=tuple(Category(name=name, open=True) for name in expected["by_category"]))
    return expected, videos, taxonomy, analyse(videos, taxonomy, Settings(replicates=9999, intersections=()))


def _pairs(golden: tuple[dict[str, Any], Videos, Taxonomy, Fairness]) -> list[tuple[dict[str, Any], Row, Row]]:
    expected, _, _, audit = golden
    rows = {(row.metric, row.category, row.group): row for row in audit.rows}
    return [
        (one, *(rows[metric, one["category"], one["class"]] for metric in ("iou", "boundary_iou")))
        for one in expected["classes"]
    ]


def test_exact_numbers_equal_the_reference(golden: Any) -> None:
    pairs = _pairs(golden)
    assert len(pairs) == 29
    for one, row, boundary in pairs:
        assert (row.videos, row.subjects) == (one["n_videos"], one["n_subjects"])
        assert (row.p is not None) == one["tested"]
        assert row.error is not None
        ours = np.array([row.mean, boundary.mean, row.deviation, row.error, row.gap, row.gap_error], np.float64)
        keys = ("mean_iou", "mean_boundary_iou", "sd_iou", "cluster_se", "gap_vs_rest", "gap_se_cluster")
        np.testing.assert_allclose(ours, [one[key] for key in keys], rtol=0, atol=1e-9)
        plain = np.array([row.welch_p, row.welch_p_holm, row.welch_q], np.float64)
        np.testing.assert_allclose(plain, [one[f"welch_p{end}"] for end in ("", "_holm", "_fdr_bh")], rtol=0, atol=1e-9)
        uncorrected = row.error * np.sqrt((row.subjects - 1) / row.subjects)
        assert uncorrected == pytest.approx(one["statsmodels_cluster_se_uncorrected"], abs=1e-9)
        if row.subjects >= 10:
            assert row.t_interval == pytest.approx(one["cluster_t_ci"], abs=1e-9)
            assert row.video_interval == pytest.approx(one["t_ci_video"], abs=1e-9)
        else:
            assert (row.flag, row.interval, row.t_interval) == ("insufficient", None, None)


def test_bootstrap_intervals_agree_with_the_reference_within_its_stated_error(golden: Any) -> None:
    for one, row, _ in _pairs(golden):
        low, high = one["cluster_boot_t_ci_mc"]
        if row.interval is not None:
            error = np.abs(np.subtract(row.interval, (low, high))).max() / (high - low)
            assert error <= (0.12 if row.subjects < 20 else 0.05), (row.category, row.group, error)


def test_the_family_wise_test_agrees_with_the_reference(golden: Any) -> None:
    """The reference adjusts in a single step; the step-down may only be smaller."""
    _, videos, taxonomy, audit = golden
    found, _ = estimate(videos, "iou", groupings(videos, taxonomy), audit.settings)
    rows = [row for row in audit.rows if row.metric == "iou" and row.family == "classes"]
    expected = {(one["category"], one["class"]): one["romano_wolf_p_mc"] for one, _, _ in _pairs(golden)}
    wanted = [expected.get((row.category, row.group)) for row in rows]
    tested = np.array([value is not None for value in wanted])
    single = single_step((found.gap / found.gap_error)[tested], found.gap_t[:, tested])
    target = np.array([value for value in wanted if value is not None])
    noise = np.sqrt(target * (1 - target) * (1 / 9999 + 1 / 20000))
    assert (np.abs(single - target) <= 4 * noise + 0.003).all()
    ours = np.array([row.p_adjusted for row in rows if row.p_adjusted is not None])
    assert (ours <= single).all()
    claimed = {row.group for row in rows if row.p_adjusted is not None and row.p_adjusted <= 0.05}
    assert claimed == {"backlit", "mixed"}


def test_worst_gaps_equal_the_reference(golden: Any) -> None:
    expected, _, _, audit = golden
    for row in audit.worst:
        if row.metric == "iou" and row.at_least == 1:
            one = expected["by_category"][row.category]
            assert (row.best, row.worst) == (one["best"], one["worst"])
            assert row.gap == pytest.approx(one["max_min_gap"], abs=1e-9)
            assert row.null_95 is not None
            assert (row.gap is not None and row.gap > row.null_95) == (row.category == "lighting")


def test_overall_equals_the_reference(golden: Any) -> None:
    expected, _, _, audit = golden
    row = next(row for row in audit.rows if row.family == "overall" and row.metric == "iou")
    assert (row.videos, row.subjects) == (expected["overall"]["n_videos"], expected["overall"]["n_subjects"])
    assert row.mean == pytest.approx(expected["overall"]["mean_iou"], abs=1e-12)


def test_a_planted_gap_is_found_and_a_small_one_is_called_similar() -> None:
    found = _row(analyse(_videos(gap=0.05), TAXONOMY, NO_CROSSING), "dark")
    assert found.p_adjusted is not None
    assert found.p_adjusted < 0.01
    assert found.gap_interval is not None
    assert found.gap_interval[1] < 0
    assert found.equivalent is False
    alike = _row(analyse(_videos(people=400), TAXONOMY, NO_CROSSING), "dark")
    assert alike.equivalent is True
    assert alike.detectable is not None
    assert alike.detectable < 0.02


def test_equal_seeds_give_equal_tables_and_order_of_classes_changes_no_exact_number() -> None:
    one, same = (analyse(_videos(), TAXONOMY, NO_CROSSING) for _ in range(2))
    assert one == same
    other = analyse(_videos(), TAXONOMY, Settings(seed=1, intersections=()))
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.mean, a.error, a.gap, a.gap_error, a.welch_p) == (b.mean, b.error, b.gap, b.gap_error, b.welch_p)
    assert _row(one, "dark").interval != _row(other, "dark").interval


def test_two_classes_have_opposite_gaps_and_one_p_value() -> None:
    audit = analyse(_videos(gap=0.01), TAXONOMY, NO_CROSSING)
    light, dark = (next(r for r in audit.rows if r.category == "tone" and r.group == g) for g in ("light", "dark"))
    assert light.gap is not None
    assert light.gap == pytest.approx(-(dark.gap or 0), abs=1e-12)
    assert light.p == dark.p
    assert light.equivalence_p == dark.equivalence_p


def test_sizes_decide_what_is_said() -> None:
    tones = ["light"] * 5 + ["dark"] * 15 + [None] * 40
    audit = analyse(_videos(people=60, each=1, attributes={"tone": tones}), TAXONOMY, NO_CROSSING)
    light, dark, unknown = (_row(audit, group) for group in ("light", "dark", "unknown"))
    assert (light.flag, light.interval, light.p, light.mean is not None) == ("insufficient", None, None, True)
    assert light.reason == "5 subjects: too few for an interval"
    assert (dark.flag, dark.interval is not None, dark.p) == ("indicative", True, None)
    assert dark.reason == "15 subjects: too few for a test"
    assert (unknown.flag, unknown.videos, unknown.p) == ("sufficient", 40, None)
    assert unknown.reason == "20 subjects in the other classes: too few for a test"
    assert unknown.detectable is not None
    every, large = (row for row in audit.worst if row.category == "tone")
    assert (every.groups, every.interval) == (2, None)
    assert every.reason == "light has 5 subjects: too few for an interval"
    assert (large.groups, large.gap, large.reason) == (0, None, "0 classes of at least 30 subjects: nothing to compare")


@pytest.mark.parametrize("people", [1, 40])
def test_one_class_one_subject_or_one_video_gives_a_stated_result(people: int) -> None:
    each = 1 if people == 1 else 2
    attributes = {"tone": ["dark"] * people * each}
    audit = analyse(_videos(people=people, each=each, attributes=attributes), TAXONOMY, NO_CROSSING)
    dark, light = _row(audit, "dark"), _row(audit, "light")
    assert (dark.gap, dark.p, dark.detectable) == (None, None, None)
    assert (light.flag, light.mean, light.reason) == ("empty", None, "no video")
    assert all(row.gap is None and row.reason for row in audit.worst)
    if people == 1:
        assert (dark.interval, dark.reason) == (None, "1 subject: too few for an interval")
        assert any("one subject only" in note for note in audit.notes)
    else:
        assert dark.interval is not None
        assert dark.reason == "all videos are in this class: nothing to compare with"
    assert audit.not_given == ("light",)


def test_alike_scores_give_no_interval_but_a_reason() -> None:
    audit = analyse(_videos(scores={"iou": np.full(240, 0.7)}), TAXONOMY, NO_CROSSING)
    dark = _row(audit, "dark")
    assert dark.mean == pytest.approx(0.7)
    assert (dark.error, dark.interval, dark.p) == (0, None, None)
    assert "no spread" in dark.reason


def test_nan_scores_are_refused_by_name_or_left_out_by_name() -> None:
    scores = np.linspace(0.5, 0.9, 240)
    scores[[3, 7]] = np.nan
    videos = _videos(scores={"iou": scores, "f": np.linspace(0.5, 0.9, 240)})
    with pytest.raises(ValueError, match="iou is NaN in 'v3', 'v7'; score these videos again"):
        analyse(videos, TAXONOMY, NO_CROSSING)
    audit = analyse(videos, TAXONOMY, Settings(missing="exclude", intersections=()))
    assert audit.excluded == (("iou", "v3"), ("iou", "v7"))
    assert [row.videos for row in audit.rows if row.family == "overall"] == [238, 240]
    with pytest.raises(ValueError, match="iou is NaN in all 240 videos"):
        analyse(_videos(scores={"iou": np.full(240, np.nan)}), TAXONOMY, Settings(missing="exclude"))


def test_missing_people_are_said() -> None:
    assert any("no subjects given" in note for note in analyse(_videos(subjects=None), TAXONOMY, NO_CROSSING).notes)
    subjects: Sequence[str | None] = [None, *["s"] * 239]
    videos = _videos(subjects=subjects, attributes={"light": ["dim"] * 240})
    assert any("1 of 240 videos have no subject" in note for note in analyse(videos, TAXONOMY, NO_CROSSING).notes)
    assert analyse(_videos(), TAXONOMY, NO_CROSSING).notes == ()


def test_ignoring_people_makes_the_interval_of_a_class_of_people_narrower() -> None:
    with_people = _row(analyse(_videos(each=6), TAXONOMY, NO_CROSSING), "dark")
    without = _row(analyse(_videos(each=6, subjects=None), TAXONOMY, NO_CROSSING), "dark")
    assert with_people.error is not None
    assert without.error is not None
    assert with_people.error > 1.5 * without.error


def test_intersections_are_a_family_of_their_own() -> None:
    crossed = Settings(intersections=(("tone", "light"),))
    audit, single = analyse(_videos(), TAXONOMY, crossed), analyse(_videos(), TAXONOMY, NO_CROSSING)
    rows = [row for row in audit.rows if row.family == "intersections"]
    assert {row.group for row in rows} == {f"{a} x {b}" for a in ("light", "dark") for b in ("dim", "bright")}
    assert all(row.sensitive and row.p_adjusted is not None for row in rows)
    assert [r for r in audit.rows if r.family != "intersections"] == list(single.rows)
    with pytest.raises(ValueError, match="no category 'lihgt'"):
        analyse(_videos(), TAXONOMY, Settings(intersections=(("tone", "lihgt"),)))


def test_default_intersections_wait_until_both_categories_are_given() -> None:
    audit = analyse(
        _videos(attributes={"apparent_gender": ["feminine", "masculine"] * 120}, subjects=None), default_taxonomy()
    )
    assert "apparent_skin_tone x apparent_gender" in audit.not_given
    assert "apparent_skin_tone" in audit.not_given
    assert "apparent_gender" not in audit.not_given


def test_tables_are_flat_and_columns_agree_with_rows() -> None:
    audit = analyse(_videos(), TAXONOMY, NO_CROSSING)
    records, table = to_rows(audit.rows), columns(audit.rows)
    assert json.loads(json.dumps(records)) == records
    assert table["interval_low"] == [record["interval_low"] for record in records]
    assert list(table) == list(records[0])
    assert columns(()) == {}
    assert all(not isinstance(value, tuple) for record in to_rows(audit.worst) for value in record.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"replicates": 1998},
        {"seed": -1},
        {"confidence": 1.0},
        {"margin": 0.0},
        {"power": 0.0},
        {"indicative_subjects": 2},
        {"indicative_subjects": 40},
        {"missing": "skip"},
        {"intersections": (("a", "a"),)},
        {"intersections": (("a", "b"), ("a", "b"))},
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Settings(**changes)


def test_people_change_places_whole_or_keep_their_videos_together() -> None:
    """Scores that tell the person: a permutation must deal whole people, or nearly whole where classes mix."""
    owner = np.repeat(np.arange(60), np.arange(60) % 4 + 1)
    scores = owner.astype(np.float64)
    whole, mixed = (owner % 3).astype(np.intp), (np.arange(len(owner)) % 2).astype(np.intp)
    by_person, by_video = null_means(scores, owner, [whole, mixed], [3, 2], 4000, 0)
    assert by_person.shape == (4000, 3)
    assert by_video.shape == (4000, 2)
    assert abs(by_video.mean() - scores.mean()) < 0.3
    assert abs(by_person.mean() - scores.mean()) < 0.5
    independent = scores.std() * np.sqrt(2 / (len(owner) / 3))
    clustered = scores.std() * np.sqrt(2 * 3 / (len(owner) / 3))
    between = (by_person[:, 0] - by_person[:, 1]).std()
    assert independent < 0.8 * between < clustered
    assert spread(by_video, np.array([True, True])).std() < between / 2


def test_a_class_without_videos_has_no_null_mean() -> None:
    owner = np.arange(30)
    (means,) = null_means(np.linspace(0, 1, 30), owner, [owner % 2], [3], 50, 0)
    assert np.isnan(means[:, 2]).all()
    assert not np.isnan(means[:, :2]).any()
    assert (spread(means, np.array([True, True, True])) >= 0).all()
