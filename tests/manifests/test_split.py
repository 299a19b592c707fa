import hashlib
import itertools
import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from manifests.split import split_of


def test_splits_have_about_their_shares() -> None:
    groups = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(10_000)]
    for seed in range(3):
        found = Counter(split_of(group, seed, val=0.1, test=0.3) for group in groups)
        for split, share in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
            assert abs(found[split] - share * 10_000) < 4.5 * math.sqrt(10_000 * share * (1 - share))


@given(st.text(max_size=20), st.integers(0, 99), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.15))
def test_a_split_is_a_function_of_group_and_seed_and_grows_without_moving(
    group: str, seed: int, val: float, test: float, more: float
) -> None:
    before = split_of(group, seed, val=val, test=test)
    larger = split_of(group, seed, val=val + more, test=test)
    assert before == larger or (before, larger) == ("train", "val")


@given(st.text(max_size=20), st.integers(0, 99))
def test_a_split_without_a_share_stays_empty(group: str, seed: int) -> None:
    assert split_of(group, seed, val=0, test=0) == "train"
    assert split_of(group, seed, val=0.5, test=0) != "test"


def test_another_seed_splits_in_another_way() -> None:
    drawn = [[split_of(str(group), seed, val=0.5, test=0) for group in range(64)] for seed in range(4)]
    assert all(one != other for one, other in itertools.combinations(drawn, 2))
