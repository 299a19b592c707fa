"""Laws of the judge's arithmetic, and a world with a planted bias."""

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from students.agreement import (
    Audit,
    Corruption,
    Decision,
    Features,
    Gate,
    Policy,
    Rate,
    Rules,
    correct,
    corruption,
    decide,
    features,
    gate,
)

CALM = Features(
    miss=0.0,
    extra=0.0,
    largest_miss=0.0,
    largest_extra=0.0,
    doubt=0.0,
    disagreement=0.0,
    softmin=1.0,
    stability=0.01,
    entropy=0.1,
    teacher_area=0.3,
    student_area=0.3,
)
PASSED = Gate(outcome="passed", reason="", auroc=math.nan, lower=math.nan, median_iou=0.9)
Map = NDArray[np.float32]


def _square(top: int, left: int, height: int, width: int, shape: tuple[int, int] = (80, 60)) -> Map:
    mask = np.zeros(shape, np.float32)
    mask[top : top + height, left : left + width] = 1
    return mask


# ── features and correction ──────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["noise", "empty", "full"]))
def test_features_are_finite_shares_for_any_pair_of_maps(seed: int, height: int, width: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    student = rng.random((height, width), np.float32)
    teacher = {"noise": rng.random((height, width), np.float32), "empty": student * 0, "full": student * 0 + 1}[kind]
    for one, other in ((teacher, student), (student, teacher), (teacher, teacher)):
        found = features(one, other, 0.1)
        assert all(0 <= value <= 1 for value in astuple(found))
        assert found.largest_miss <= found.miss
        assert found.largest_extra <= found.extra
        assert found.miss + found.extra <= 1


def test_two_equal_masks_show_no_difference() -> None:
    mask = _square(10, 10, 40, 30)
    found = features(mask, mask, 0.0)
    assert (found.miss, found.extra, found.doubt, found.disagreement, found.softmin) == (0, 0, 0, 0, 1)


def test_two_empty_masks_show_no_difference() -> None:
    found = features(_square(0, 0, 0, 0), _square(0, 0, 0, 0), 0.0)
    assert (found.miss, found.extra, found.disagreement, found.teacher_area) == (0, 0, 0, 0)


def test_a_missing_part_is_measured_as_a_share_of_the_union() -> None:
    student, teacher = _square(10, 10, 40, 30), _square(20, 10, 30, 30)
    found = features(teacher, student, 0.0)
    # The band takes one row next to the teacher's upper edge.
    assert found.miss == pytest.approx(9 * 30 / (40 * 30))
    assert found.largest_miss == found.miss
    assert found.extra == 0
    swapped = features(student, teacher, 0.0)
    assert swapped.extra > 0.2
    assert swapped.miss == 0


def test_two_missing_parts_count_together_but_the_largest_is_one_of_them() -> None:
    student = _square(10, 10, 40, 30)
    teacher = student - _square(15, 15, 6, 6) - _square(30, 20, 10, 10)
    found = features(teacher, student, 0.0)
    assert found.miss == pytest.approx((4 * 4 + 8 * 8) / 1200)
    assert found.largest_miss == pytest.approx(8 * 8 / 1200)


def test_a_shift_by_one_pixel_lies_within_the_band() -> None:
    found = features(_square(10, 10, 40, 30), _square(11, 11, 40, 30), 0.0)
    assert found.miss == found.extra == found.disagreement == 0


def test_softmin_falls_with_the_worst_pixels_not_with_the_mean() -> None:
    teacher = _square(10, 10, 40, 30)
    student = np.clip(teacher, 0.02, 0.98)
    worst = student.copy()
    worst[30:40, 20:30] = 0.02
    mild = np.clip(teacher, 0.1, 0.9)
    assert features(teacher, worst, 0.0).softmin < features(teacher, mild, 0.0).softmin - 0.3


def test_maps_that_do_not_match_or_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="share one shape"):
        features(_square(0, 0, 1, 1), _square(0, 0, 1, 1, (80, 61)), 0.0)
    with pytest.raises(ValueError, match=r"student probabilities must lie in \[0, 1\]"):
        features(_square(0, 0, 1, 1), _square(0, 0, 1, 1) * 255, 0.0)
    with pytest.raises(ValueError, match="finite"):
        features(_square(0, 0, 1, 1), _square(0, 0, 1, 1), math.nan)


@given(st.integers(0, 10_000))
def test_correction_follows_the_sure_ignores_the_unsure_and_leaves_the_band(seed: int) -> None:
    rng = np.random.default_rng(seed)
    top, left = rng.integers(5, 30, 2)
    teacher = _square(top, left, 30, 20) > 0
    student = rng.random(teacher.shape, np.float32)
    mended, ignore = correct(teacher, student)
    differ = teacher != (student >= 0.5)
    changed = mended != teacher
    assert not (changed & ignore).any()
    assert not ((changed | ignore) & ~differ).any()
    assert bool((np.abs(student - 0.5)[changed] >= 0.3).all())
    assert bool((np.abs(student - 0.5)[ignore] < 0.3).all())
    edge = _square(top - 1, left - 1, 32, 22) - _square(top + 1, left + 1, 28, 18) > 0
    assert not (changed | ignore)[edge].any()
    assert bool((changed | ignore)[differ & ~edge].all())


def test_correction_gives_a_missing_head_back() -> None:
    truth = _square(10, 10, 40, 30)
    teacher = truth * (np.arange(80)[:, None] >= 22) > 0
    mended, ignore = correct(teacher, np.clip(truth, 0.05, 0.95))
    assert not ignore.any()
    assert int((mended != (truth > 0)).sum()) <= 30  # the row of the band


# ── q and rates ──────────────────────────────────────────────────────────────────────────────────────────────────


def _suspect(miss: float, **changes: float) -> Features:
    base = replace(CALM, miss=miss, largest_miss=miss, disagreement=miss, softmin=1 - math.sqrt(miss))
    return replace(base, **changes)


def _drawn(count: int, share: float, seed: int, centre: float = 0.004) -> tuple[list[Features], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    bad = rng.random(count) < share
    miss = np.where(bad, rng.uniform(0.08, 0.3, count), rng.uniform(0, 2 * centre, count))
    return [_suspect(float(m)) for m in miss], bad


@given(st.integers(0, 40), st.integers(0, 1000), st.floats(0, 0.2), st.booleans())
@settings(max_examples=25)
def test_any_samples_get_a_finite_probability_and_ordered_rates(n: int, seed: int, miss: float, equal: bool) -> None:
    rng = np.random.default_rng(seed)
    samples = [_suspect(miss if equal else float(m)) for m in rng.uniform(0, 0.3, n)]
    rated = corruption(samples, rng.integers(0, 3, n))
    assert not rated.calibrated
    assert bool(((rated.q >= 0) & (rated.q <= 1)).all())
    assert all(0 <= r.low <= r.rate <= r.high <= 1 for r in rated.rates.values())
    if n < 8 or equal:
        assert rated.method == "absolute"


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=15)
def test_the_order_of_the_samples_changes_no_decision(seed: int, audited: bool) -> None:
    rng = np.random.default_rng(seed)
    samples, bad = _drawn(60, 0.3, seed)
    samples[10:14] = [samples[9]] * 4
    labels = rng.integers(0, 3, 60)
    audit = Audit(features=samples[:30], bad=bad[:30], clusters=labels[:30]) if audited else None
    shuffled = rng.permutation(30)
    other_audit = (
        Audit(features=[samples[i] for i in shuffled], bad=bad[shuffled], clusters=labels[shuffled])
        if audited
        else None
    )
    ids = [f"s{i:03}" for i in range(60)]
    order = rng.permutation(60)
    colour = rng.choice(["red", "green"], 60)

    def decisions(order: NDArray[np.int64], audit: Audit | None) -> dict[str, Decision]:
        mine = [samples[i] for i in order]
        rated = corruption(mine, labels[order], audit)
        gates = gate(mine, labels[order], rated, audit)
        names = [ids[i] for i in order]
        made = decide(mine, labels[order], rated, gates, ids=names, groups={"colour": colour[order]})
        return dict(zip(names, made, strict=True))

    assert decisions(np.arange(60), audit) == decisions(order, other_audit)


@given(st.lists(st.floats(0, 0.5), min_size=20, max_size=60), st.integers(0, 99))
@settings(max_examples=25)
def test_without_an_audit_q_rises_with_the_disagreement_within_a_cluster(values: list[float], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, len(values))
    rated = corruption([_suspect(v) for v in values], labels)
    for cluster in (0, 1):
        if (labels == cluster).sum() >= 8:
            order = np.argsort(np.array(values)[labels == cluster], kind="stable")
            assert bool((np.diff(rated.q[labels == cluster][order]) >= -1e-9).all())


def test_an_audit_calibrates_q_and_the_rates() -> None:
    samples, bad = _drawn(400, 0.3, 5)
    labels = np.arange(400) % 2
    audit = Audit(features=samples[:100], bad=bad[:100], clusters=labels[:100])
    rated = corruption(samples, labels, audit)
    assert rated.calibrated
    assert average_precision_score(bad[100:], rated.q[100:]) > 0.99
    assert rated.q.mean() == pytest.approx(bad.mean(), abs=0.06)
    for cluster, rate in rated.rates.items():
        mine = bad[:100][labels[:100] == cluster]
        prior = (bad[:100].sum() + 0.5) / 101
        assert rate.rate == pytest.approx((mine.sum() + 4 * prior) / (len(mine) + 4))
        assert rate.low < bad[labels == cluster].mean() < rate.high


def test_a_cluster_without_audited_samples_has_the_overall_rate_and_a_wide_interval() -> None:
    samples, bad = _drawn(60, 0.4, 1)
    labels = np.repeat([0, 1], [50, 10])
    rated = corruption(samples, labels, Audit(features=samples[:50], bad=bad[:50], clusters=labels[:50]))
    assert rated.rates[1].rate == pytest.approx((bad[:50].sum() + 0.5) / 51)
    assert rated.rates[1].high - rated.rates[1].low > 2 * (rated.rates[0].high - rated.rates[0].low)


def test_an_audit_with_one_class_gives_rates_but_no_calibrated_q() -> None:
    samples, _ = _drawn(40, 0.3, 2)
    labels = np.zeros(40, np.int64)
    rated = corruption(samples, labels, Audit(features=samples[:20], bad=np.zeros(20, bool), clusters=labels[:20]))
    assert not rated.calibrated
    assert rated.rates[0].rate < 0.02
    assert rated.rates[0].samples == 20


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_inverted_cluster_fails_the_audited_gate_and_the_others_pass() -> None:
    samples, bad = _drawn(120, 0.4, 3)
    labels = np.repeat([0, 1, 2], 40)
    lying = np.where(labels == 2, ~bad, bad)
    audit = Audit(features=samples, bad=lying, clusters=labels)
    gates = gate(samples, labels, corruption(samples, labels, audit), audit)
    assert [gates[c].outcome for c in (0, 1, 2)] == ["passed", "passed", "failed"]
    assert gates[2].auroc < 0.5


def test_a_cluster_with_few_bad_audits_is_judged_by_the_pool() -> None:
    samples, bad = _drawn(100, 0.3, 4)
    labels = np.repeat([0, 1, 2], [80, 10, 10])
    audit = Audit(features=samples, bad=bad, clusters=labels)
    gates = gate(samples, labels, corruption(samples, labels, audit), audit)
    assert {gates[c].outcome for c in (1, 2)} == {"passed"}
    assert gates[1].auroc == gates[2].auroc


def test_without_an_audit_a_low_median_iou_fails_and_a_small_cluster_is_uncertain() -> None:
    samples = [_suspect(0.6)] * 20 + [_suspect(0.02)] * 20 + [CALM] * 3
    labels = np.repeat([4, 5, 6], [20, 20, 3])
    gates = gate(samples, labels, corruption(samples, labels))
    assert [gates[c].outcome for c in (4, 5, 6)] == ["failed", "passed", "uncertain"]
    assert gates[4].median_iou == pytest.approx(0.4)


# ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────────


def _rated(q: list[float], labels: NDArray[np.int64], rate: float) -> Corruption:
    rates = {int(c): Rate(rate=rate, low=0, high=1, samples=10, bad=rate * 10) for c in np.unique(labels)}
    return Corruption(q=np.array(q, np.float64), calibrated=True, method="audit", rates=rates)


def _decide(
    samples: list[Features],
    q: list[float],
    *,
    rate: float = 0.5,
    outcome: str = "passed",
    policy: Policy = "auto",
    groups: dict[str, NDArray[np.generic]] | None = None,
) -> list[Decision]:
    labels = np.zeros(len(samples), np.int64)
    gates = {0: replace(PASSED, outcome=outcome)}  # type: ignore[arg-type]
    ids = [f"s{i:03}" for i in range(len(samples))]
    return decide(samples, labels, _rated(q, labels, rate), gates, ids=ids, policy=policy, groups=groups)


@given(st.integers(1, 60), st.floats(0, 1), st.integers(0, 999), st.sampled_from(["passed", "failed", "uncertain"]))
@settings(max_examples=60)
def test_budget_cap_and_floors_hold_for_every_cluster_and_attribute(
    n: int, rate: float, seed: int, outcome: str
) -> None:
    rng = np.random.default_rng(seed)
    samples = [_suspect(float(m), doubt=0.2) for m in rng.uniform(0, 0.4, n)]
    colour = rng.choice(["red", "green", "blue"], n)
    made = _decide(samples, rng.random(n).tolist(), rate=rate, outcome=outcome, groups={"colour": colour})
    lost = np.array([d.verdict in ("drop", "hold") for d in made])
    review = max(1, math.floor(0.1 * n + 0.5))
    assert lost.sum() <= (review if outcome == "failed" else min(math.floor(rate * n + 0.5), 0.6 * n))
    for value in np.unique(colour):
        assert (~lost[colour == value]).mean() >= 0.4
    assert (~lost).mean() >= 0.4
    if outcome != "passed":
        assert not any(d.verdict in ("drop", "correct") for d in made)
    for d in made:
        assert (d.weight == 0) == (d.verdict in ("drop", "hold"))
        assert d.weight in (0, 1) or (d.verdict == "weight" and 0.5 <= d.weight <= 1)


def test_a_flagged_label_is_corrected_where_local_and_sure_and_dropped_where_nothing_mends_it() -> None:
    samples = [
        _suspect(0.2),
        _suspect(0.2, doubt=0.1),
        _suspect(0.2, stability=0.3),
        _suspect(0.7),
        _suspect(0.0, extra=0.2),
        *[CALM] * 5,
    ]
    made = _decide(samples, [0.9] * 5 + [0.0] * 5)
    assert [d.verdict for d in made] == ["correct", "drop", "drop", "drop", "correct", *["keep"] * 5]
    assert made[0].reasons == ("part-missing",)
    assert made[1].reasons == ("part-missing", "part-in-doubt")
    assert made[4].reasons == ("part-surplus",)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("correct", ["correct", "weight"]), ("drop", ["drop", "drop"]), ("weight", ["weight", "weight"])],
)
def test_a_policy_restricts_what_is_done(policy: Policy, expected: list[str]) -> None:
    made = _decide([_suspect(0.2), _suspect(0.7), *[CALM] * 8], [0.9, 0.9, *[0.0] * 8], policy=policy)
    assert [d.verdict for d in made[:2]] == expected


def test_doubt_below_a_flag_costs_weight() -> None:
    made = _decide([_suspect(0.05)] * 4, [0.25, 0.45, 0.7, 0.1], rate=0.0)
    assert [(d.verdict, d.weight) for d in made] == [("weight", 0.75), ("weight", 0.55), ("weight", 0.5), ("keep", 1)]


def test_a_person_seen_by_the_student_alone_is_held_and_an_empty_pair_kept() -> None:
    unseen = _suspect(1.0, teacher_area=0.0, student_area=0.2)
    nobody = replace(CALM, teacher_area=0.0, student_area=0.0)
    full = replace(CALM, teacher_area=1.0, student_area=0.4, extra=0.6)
    made = _decide([unseen, nobody, full, CALM], [0.9, 0.0, 0.9, 0.0], rate=0.0)
    assert [d.verdict for d in made] == ["hold", "keep", "hold", "keep"]
    assert [d.reasons for d in made[:3]] == [("nobody-labelled-but-seen",), ("nobody",), ("whole-image-labelled",)]


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    rated = _rated([0.1, 0.2], np.zeros(2, np.int64), 0.1)
    with pytest.raises(ValueError, match="unique names"):
        decide([CALM] * 2, np.zeros(2, np.int64), rated, {0: PASSED}, ids=["a", "a"])
    with pytest.raises(ValueError, match=r"clusters \[0\] have no gate"):
        decide([CALM] * 2, np.zeros(2, np.int64), rated, {}, ids=["a", "b"])
    with pytest.raises(ValueError, match=r"hue must be \(2,\)"):
        decide([CALM] * 2, np.zeros(2, np.int64), rated, {0: PASSED}, ids=["a", "b"], groups={"hue": np.zeros(3)})
    with pytest.raises(ValueError, match=r"rules.cap must be in"):
        Rules(cap=1.5)
    with pytest.raises(ValueError, match="one length"):
        Audit(features=[CALM], bad=np.zeros(2, bool), clusters=np.zeros(1, np.int64))


# ── students and clusters that nobody can trust ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("area", "words"), [(0.0, "sees nobody"), (1.0, "sees nothing but people")])
@pytest.mark.parametrize("audited", [False, True])
def test_a_student_that_has_collapsed_is_trusted_nowhere(area: float, words: str, audited: bool) -> None:
    samples = [replace(CALM, student_area=area, extra=0.01 * (i % 7), teacher_area=0.2) for i in range(40)]
    clusters, bad = np.repeat([3, 5], 20), np.arange(40) % 7 > 4
    audit = Audit(features=samples, bad=bad, clusters=clusters) if audited else None
    gates = gate(samples, clusters, corruption(samples, clusters, audit), audit)
    assert {g.outcome for g in gates.values()} == {"failed"}
    assert all(words in g.reason and "40 of 40" in g.reason for g in gates.values())


def test_a_student_that_sees_somebody_in_two_of_ten_images_has_not_collapsed() -> None:
    samples = [replace(CALM, student_area=0.3 if i % 5 == 0 else 0.0) for i in range(40)]
    clusters = np.zeros(40, np.int64)
    assert gate(samples, clusters, corruption(samples, clusters))[0].outcome == "passed"


@given(st.integers(0, 30), st.integers(1, 20))
def test_a_cluster_that_people_found_mostly_wrong_is_held_as_a_whole_and_only_then(bad: int, rest: int) -> None:
    samples = [CALM] * (30 + rest)
    clusters = np.zeros(30 + rest, np.int64)
    audit = Audit(features=samples[:30], bad=np.arange(30) < bad, clusters=clusters[:30])
    rated = corruption(samples, clusters, audit)
    decisions = decide(samples, clusters, rated, {0: PASSED}, ids=[f"{i:03}" for i in range(len(samples))])
    mostly = rated.rates[0].low > Rules().cap
    assert mostly == all(d.verdict == "hold" and d.reasons == ("mostly-wrong",) for d in decisions)
    assert not any(d.verdict == "drop" for d in decisions) or not mostly


@pytest.mark.parametrize("bad", [12, 11])
def test_a_cluster_that_nobody_looked_at_is_not_held_for_what_its_neighbour_is(bad: int) -> None:
    samples = [CALM] * 100
    clusters = np.repeat([0, 1], [40, 60])
    audit = Audit(features=samples[:12], bad=np.arange(12) < bad, clusters=clusters[:12])
    rated = corruption(samples, clusters, audit)
    decisions = decide(samples, clusters, rated, dict.fromkeys((0, 1), PASSED), ids=[f"{i:03}" for i in range(100)])
    assert "hold" not in {d.verdict for d in decisions[40:]}


def test_a_collapsed_student_holds_no_empty_room() -> None:
    rooms = [replace(CALM, teacher_area=0.0, student_area=1.0, miss=1.0, largest_miss=1.0, disagreement=1.0)] * 30
    samples = [*rooms, *[replace(CALM, student_area=1.0)] * 30]
    clusters = np.repeat([0, 1], 30)
    rated = corruption(samples, clusters)
    decisions = decide(samples, clusters, rated, gate(samples, clusters, rated), ids=[f"{i:03}" for i in range(60)])
    held = [d for d in decisions[:30] if d.verdict == "hold"]
    assert len(held) == 3  # the tenth that a closed gate holds
    assert all("gate-failed" in d.reasons for d in held)


def test_without_an_audit_no_cluster_is_held_as_a_whole() -> None:
    samples = [replace(CALM, miss=0.8, largest_miss=0.8, disagreement=0.8)] * 4
    clusters = np.zeros(4, np.int64)
    rated = corruption(samples, clusters)
    assert (rated.method, rated.counted) == ("absolute", False)
    assert rated.rates[0].low > 0.5
    decisions = decide(samples, clusters, rated, gate(samples, clusters, rated), ids=list("abcd"))
    assert "hold" not in {d.verdict for d in decisions}
