"""Laws of the list of labels to draw first: best first, gates opened where that mends much, no source that fills it."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.next_labels import Candidates, GateState, chance_to_open, gates_of, label_first, pool_small


def gate(outcome: str, audited: int, bad: int, noise: float, fold: int = 0, name: str = "cluster 7") -> GateState:
    return GateState(name=name, fold=fold, outcome=outcome, audited=audited, bad=bad, noise=noise)


PASSED = gate("passed", 20, 8, 0.4)
CLOSED = gate("uncertain", 8, 4, 0.5)


def draw_candidates(seed: int, count: int, clusters: int, sources: int, steps: int = 5) -> Candidates:
    """Random labels on a coarse grid of q and distance, so that many gains are equal."""
    rng = np.random.default_rng(seed)
    gates: list[GateState] = []
    for _ in range(clusters):
        audited = int(rng.integers(0, 30))
        outcome = ("passed", "failed", "uncertain")[rng.integers(3)]
        bad = int(rng.integers(0, audited + 1))
        gates.append(gate(outcome, audited, bad, float(rng.random()), int(rng.integers(2)), f"cluster {len(gates)}"))
    return Candidates(
        q=rng.integers(0, steps + 1, count) / steps,
        distance=rng.integers(0, steps + 1, count) / steps,
        cluster=rng.integers(0, clusters, count),
        source=rng.integers(0, sources, count),
        gates=gates,
    )


def candidates(
    q: Sequence[float],
    cluster: Sequence[int],
    gates: Sequence[GateState],
    *,
    source: Sequence[int] | None = None,
    distance: float = 1.0,
) -> Candidates:
    return Candidates(
        q=np.array(q, np.float64),
        distance=np.full(len(q), distance),
        cluster=np.array(cluster, np.int64),
        source=np.arange(len(q)) if source is None else np.array(source, np.int64),
        gates=gates,
    )


DRAWN = st.builds(
    draw_candidates, st.integers(0, 9999), st.integers(0, 60), st.integers(1, 5), st.integers(1, 12), st.integers(1, 9)
)
LABELS = st.integers(1, 80)


def slow_gains(drawn: Candidates) -> tuple[np.ndarray, list[float]]:
    """Direct gains, and the unlock of each cluster, one label after another as the module's docstring has them."""
    direct = drawn.q * drawn.distance
    unlock = []
    for number, gate in enumerate(drawn.gates):
        mine = sorted(direct[drawn.cluster == number].tolist(), reverse=True)
        error = math.fsum(mine[gate.needed :])
        unlock.append(chance_to_open(drawn.gates) * error / gate.needed if gate.needed else 0.0)
    return direct, unlock


# The gains ------------------------------------------------------------------------------------------------------------


@given(DRAWN, LABELS)
def test_the_gain_never_rises_along_the_list(drawn: Candidates, labels: int) -> None:
    gain = label_first(drawn, labels).gain
    assert (np.diff(gain) <= 1e-12).all()


@given(DRAWN, LABELS)
def test_a_list_holds_as_many_different_labels_as_were_asked_for_or_all(drawn: Candidates, labels: int) -> None:
    rows = label_first(drawn, labels).rows
    assert len(rows) == len(set(rows.tolist())) == min(labels, len(drawn.q))


@given(DRAWN, LABELS)
def test_each_gain_is_that_of_the_formulas(drawn: Candidates, labels: int) -> None:
    direct, unlock = slow_gains(drawn)
    first = label_first(drawn, labels)
    np.testing.assert_array_equal(first.direct, direct[first.rows])
    seen: Counter[int] = Counter()
    for i, cluster in enumerate(drawn.cluster[first.rows].tolist()):
        left = max(0, drawn.gates[cluster].needed - seen[cluster])
        assert first.left[i] == left
        assert first.unlock[i] == pytest.approx(unlock[cluster] if left else 0.0, abs=1e-12)
        seen[cluster] += 1


@given(DRAWN, LABELS)
def test_where_no_source_is_large_the_list_is_the_greedy_choice(drawn: Candidates, labels: int) -> None:
    """Each label drawn is the best of all that are left, by what was drawn before it; equal gains by the first row."""
    assume(labels >= 3)
    count = len(drawn.q)
    spread = Candidates(
        q=drawn.q, distance=drawn.distance, cluster=drawn.cluster, source=np.arange(count), gates=drawn.gates
    )
    direct, unlock = slow_gains(spread)
    left, seen, expected = set(range(count)), Counter[int](), []
    for _ in range(min(labels, count)):
        gain = {
            i: direct[i] + unlock[c] * (seen[c] < spread.gates[c].needed)
            for i in left
            for c in (int(spread.cluster[i]),)
        }
        expected.append(max(gain.values()))
        best = min(i for i in left if gain[i] >= expected[-1] - 1e-12)
        seen[int(spread.cluster[best])] += 1
        left.remove(best)
    np.testing.assert_allclose(label_first(spread, labels).gain, expected, atol=1e-12)


@given(DRAWN)
def test_what_opening_a_gate_brings_is_never_more_than_its_chance_of_the_errors_beyond_it(drawn: Candidates) -> None:
    first = label_first(drawn, max(1, len(drawn.q)))
    direct, chance = drawn.q * drawn.distance, chance_to_open(drawn.gates)
    for number, gate in enumerate(drawn.gates):
        brought = first.unlock[drawn.cluster[first.rows] == number].sum()
        mine = np.sort(direct[drawn.cluster == number])[::-1]
        assert brought <= chance * mine[gate.needed :].sum() + 1e-9
        if gate.outcome == "passed" or len(mine) <= gate.needed:
            assert brought == 0


@given(DRAWN, LABELS, st.integers(0, 99))
def test_equal_labels_in_another_order_have_equal_gains(drawn: Candidates, labels: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(drawn.q))
    spread = np.arange(len(drawn.q))
    one = Candidates(q=drawn.q, distance=drawn.distance, cluster=drawn.cluster, source=spread, gates=drawn.gates)
    other = Candidates(
        q=drawn.q[order],
        distance=drawn.distance[order],
        cluster=drawn.cluster[order],
        source=spread[order],
        gates=drawn.gates,
    )
    np.testing.assert_allclose(label_first(one, labels).gain, label_first(other, labels).gain, atol=1e-12)


def test_equal_gains_go_by_row() -> None:
    assert label_first(candidates([0.5] * 9, [0] * 9, [PASSED]), 9).rows.tolist() == list(range(9))


# Gates ----------------------------------------------------------------------------------------------------------------


def test_a_cluster_with_a_closed_gate_and_a_large_error_comes_first() -> None:
    many = 40
    drawn = candidates([0.4] * many + [0.6] * many, [0] * many + [1] * many, [CLOSED, PASSED])
    first = label_first(drawn, 10)
    assert drawn.cluster[first.rows].tolist() == [0] * CLOSED.needed + [1] * (10 - CLOSED.needed)
    assert first.left.tolist() == [2, 1, *([0] * 8)]
    opened = Candidates(
        q=drawn.q, distance=drawn.distance, cluster=drawn.cluster, source=drawn.source, gates=[PASSED, PASSED]
    )
    assert set(drawn.cluster[label_first(opened, 10).rows].tolist()) == {1}


@given(st.integers(20, 60), st.floats(0.1, 1), st.floats(0, 0.9))
def test_of_two_closed_gates_the_one_that_hides_more_comes_first(count: int, high: float, ratio: float) -> None:
    drawn = candidates([high * ratio] * count + [high] * count, [0] * count + [1] * count, [CLOSED, CLOSED])
    assert drawn.cluster[label_first(drawn, 4).rows].tolist()[: CLOSED.needed] == [1, 1]


@pytest.mark.parametrize(
    ("outcome", "audited", "bad", "noise", "needed"),
    [
        ("passed", 0, 0, 0.5, 0),
        ("failed", 0, 0, 0.5, 10),
        ("uncertain", 0, 0, 0.1, 50),
        ("uncertain", 0, 0, 0.9, 50),
        ("uncertain", 0, 0, 0.0, 250),
        ("uncertain", 0, 0, 1.0, 250),
        ("uncertain", 9, 5, 0.5, 2),
        ("uncertain", 9, 4, 0.25, 4),
        ("failed", 10, 5, 0.5, 10),
        ("failed", 40, 12, 0.3, 40),
    ],
)
def test_a_gate_needs_five_bad_and_five_good_or_twice_what_failed(
    outcome: str, audited: int, bad: int, noise: float, needed: int
) -> None:
    assert gate(outcome, audited, bad, noise).needed == needed


def test_the_chance_to_open_a_gate_is_that_of_the_audited_ones() -> None:
    never = gate("passed", 0, 0, 0.1)  # passed by agreement alone: tells nothing
    assert chance_to_open([]) == chance_to_open([never, never]) == 0.5
    assert chance_to_open([PASSED, PASSED, CLOSED, never]) == 2.5 / 4


@given(DRAWN)
def test_small_closed_clusters_of_a_fold_share_a_gate_and_the_others_keep_theirs(drawn: Candidates) -> None:
    sizes = np.bincount(drawn.cluster, minlength=len(drawn.gates))
    gates, number = pool_small(drawn.gates, sizes)
    assert sorted(set(number.tolist())) == list(range(len(gates)))
    for total in ("audited", "bad"):
        assert sum(getattr(g, total) for g in gates) == sum(getattr(g, total) for g in drawn.gates)
    for i, (one, size) in enumerate(zip(drawn.gates, sizes.tolist(), strict=True)):
        mine = gates[number[i]]
        others = [j for j in range(len(sizes)) if j != i and number[j] == number[i]]
        small = [j for j, g in enumerate(drawn.gates) if g.outcome != "passed" and sizes[j] <= g.needed]
        assert mine.fold == one.fold
        assert others == [j for j in small if j != i and i in small and drawn.gates[j].fold == one.fold]
        assert (mine == one) == (not others)
        if others:
            assert mine.name == f"the {len(others) + 1} small clusters of fold {one.fold}"
            low, high = (f(drawn.gates[j].noise for j in [i, *others]) for f in (min, max))
            assert low - 1e-9 <= mine.noise <= high + 1e-9
        assert size >= 0


def test_clusters_too_small_to_open_their_gates_open_them_together() -> None:
    """Ten clusters of four labels: each needs ten, all together need ten as well and have forty."""
    cluster = np.repeat(np.arange(10), 4)
    single = [gate("uncertain", 0, 0, 0.5, name=f"cluster {i}") for i in range(10)]
    assert label_first(candidates([0.5] * 40, cluster.tolist(), single), 12).unlock.max() == 0
    gates, number = pool_small(single, np.bincount(cluster))
    first = label_first(candidates([0.5] * 40, number[cluster].tolist(), gates), 12)
    assert [g.name for g in gates] == ["the 10 small clusters of fold 0"]
    np.testing.assert_allclose(first.unlock, [0.5 * (30 * 0.5) / 10] * 10 + [0, 0])


# Sources --------------------------------------------------------------------------------------------------------------


@given(DRAWN, LABELS)
def test_no_source_has_more_than_a_third_as_long_as_others_are_left(drawn: Candidates, labels: int) -> None:
    rows = label_first(drawn, labels).rows
    cap = max(1, min(labels, len(drawn.q)) // 3)
    held = Counter(drawn.source[rows].tolist())
    if max(held.values(), default=0) > cap:
        rest = set(range(len(drawn.q))) - set(rows.tolist())
        assert all(held[int(drawn.source[i])] >= cap for i in rest)


def test_a_rich_source_gives_a_third_and_the_rest_only_where_no_other_is_left() -> None:
    drawn = candidates([0.9] * 20 + [0.1] * 4, [0] * 24, [PASSED], source=[0] * 20 + [1, 2, 3, 4])
    sources = drawn.source[label_first(drawn, 6).rows].tolist()
    assert sources == [0, 0, 1, 2, 3, 4]
    assert Counter(drawn.source[label_first(drawn, 12).rows].tolist()) == {0: 8, 1: 1, 2: 1, 3: 1, 4: 1}


# What is no list ------------------------------------------------------------------------------------------------------


def test_of_no_labels_there_is_an_empty_list() -> None:
    for gates in ([], [CLOSED]):
        first = label_first(candidates([], [], gates), 5)
        assert len(first.rows) == len(first.gain) == 0


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be >= 1, got 0"):
        label_first(candidates([0.5], [0], [PASSED]), 0)
    with pytest.raises(ValueError, match=r"q must be in \[0, 1\]"):
        candidates([math.nan], [0], [PASSED])
    with pytest.raises(ValueError, match=r"distance must be in \[0, 1\]"):
        candidates([0.5], [0], [PASSED], distance=1.5)
    with pytest.raises(ValueError, match="cluster must be a number below 1"):
        candidates([0.5], [1], [PASSED])
    with pytest.raises(ValueError, match=r"must have one shape \(N,\)"):
        candidates([0.5, 0.5], [0], [PASSED])
    with pytest.raises(ValueError, match="gate must be passed, failed or uncertain, got 'open'"):
        gate("open", 0, 0, 0)
    with pytest.raises(ValueError, match="bad must be from 0 to the 3 audited labels, got 4"):
        gate("failed", 3, 4, 0)
    with pytest.raises(ValueError, match=r"noise must be in \[0, 1\], got 2"):
        gate("failed", 3, 1, 2)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "cluster '7' has judged labels but is not in the judge's summary"),
        ({"gate": "failed", "audited": 1, "bad": 0, "noise": [0.1]}, "must state fold, audited, bad and noise"),
        ({"fold": 0, "gate": "failed", "audited": 1, "bad": 0, "noise": []}, "must state fold, audited, bad and noise"),
        (
            {"fold": 0, "gate": "failed", "audited": True, "bad": 0, "noise": [0.1]},
            "must state fold, audited, bad and noise",
        ),
        ({"fold": 0, "gate": "shut", "audited": 1, "bad": 0, "noise": [0.1]}, "cluster '7': gate must be passed"),
        ({"fold": 0, "gate": "failed", "audited": 1, "bad": 2, "noise": [0.1]}, "cluster '7': bad must be from 0"),
    ],
)
def test_a_summary_that_says_no_gate_is_refused(said: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gates_of({} if said is None else {"7": said}, ["7"])  # type: ignore[dict-item]


def test_gates_are_read_from_the_summary() -> None:
    said = {"fold": 0, "gate": "uncertain", "audited": 8, "bad": 4, "noise": [0.5, 0.2, 0.8]}
    assert gates_of({"7": said, "8": {}}, ["7"]) == [CLOSED]
