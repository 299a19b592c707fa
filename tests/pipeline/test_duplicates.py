"""Laws of duplicates: an oracle in plain loops, and a first of every family that stays."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import duplicates
from pipeline.duplicates import DuplicateConfig, find_duplicates, near_hashes

CONFIG = DuplicateConfig()


def oracle(
    ids: list[str],
    content: list[str],
    sources: list[int],
    hashes: list[int],
    vectors: NDArray[np.float16],
    config: DuplicateConfig,
) -> list[int]:
    """The definition, one frame after another; equal ids are equal contents, so they need no rule of their own."""
    wide = vectors.astype(np.float64)
    of: list[int] = []
    for b in range(len(content)):
        repeats = [
            a
            for a in range(b)
            if of[a] < 0
            and (
                ids[a] == ids[b]
                or content[a] == content[b]
                or (
                    sources[a] != sources[b]
                    and (hashes[a] ^ hashes[b]).bit_count() <= config.distance
                    and wide[a] @ wide[b] >= config.cosine * np.sqrt((wide[a] @ wide[a]) * (wide[b] @ wide[b]))
                )
            )
        ]
        of.append(min(repeats, default=-1))
    return of


class Loaded:
    """Vectors that are given out by rows, and a record of the rows asked for."""

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self.vectors = vectors
        self.calls: list[list[int]] = []

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        assert (np.diff(rows) > 0).all()
        self.calls.append(rows.tolist())
        return self.vectors[rows]


def found(
    content: list[str],
    sources: list[int],
    hashes: list[int],
    vectors: NDArray[np.float16],
    config: DuplicateConfig = CONFIG,
    load: Loaded | None = None,
) -> list[int]:
    result = find_duplicates(
        np.array(content, "S32"),
        np.array(sources, np.int64),
        np.array(hashes, np.uint64),
        load or Loaded(vectors),
        config,
    )
    assert result.dtype == np.int64
    return [int(of) for of in result]


def same(count: int) -> NDArray[np.float16]:
    return np.tile(np.array([[0.6, 0.8]], np.float16), (count, 1))


def names(count: int) -> list[str]:
    return [f"{i:032x}" for i in range(count)]


def planted(rng: np.random.Generator, count: int) -> tuple[list[str], list[int], list[int], NDArray[np.float16]]:
    """Contents, sources, hashes and vectors of frames that are often equal, and often nearly."""
    seeds = rng.integers(0, 1 << 64, 3, np.uint64)
    angles = rng.integers(0, 3, count) * 0.5
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    hashes = []
    for _ in range(count):
        value = int(seeds[rng.integers(3)])
        for bit in rng.choice(64, rng.integers(0, 5), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
    content = [str(rng.integers(0, 3 * count)) for _ in range(count)]
    return content, [int(s) for s in rng.integers(0, 4, count)], hashes, vectors


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.data())
def test_planted_families_are_found_as_by_plain_loops(draws: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small limits, so that a few frames are many batches, and large families of several blocks.
    for name, most in (("_BATCH", 30), ("_LARGE", 9), ("_BLOCK", 5), ("_PAIRS", 4)):
        monkeypatch.setattr(duplicates, name, draws.draw(st.integers(1, most)))
    rng = np.random.default_rng(draws.draw(st.integers(0, 1 << 32)))
    config = DuplicateConfig(
        distance=draws.draw(st.integers(0, 3)), cosine=draws.draw(st.sampled_from([0.0, 0.9, 1.0]))
    )
    content, sources, hashes, vectors = planted(rng, draws.draw(st.integers(0, 40)))
    ids = [f"{c}-{rng.integers(2)}" for c in content]
    of = found(content, sources, hashes, vectors, config)
    assert of == oracle(ids, content, sources, hashes, vectors, config)
    assert all(target == -1 or of[target] == -1 for target in of)
    assert not of or of[0] == -1


def test_large_families_are_found_as_by_plain_loops() -> None:
    rng = np.random.default_rng(3)
    content, sources, hashes, _ = planted(rng, 700)
    wide = rng.normal(size=(700, 12)) + 4 * rng.normal(size=(40, 12))[rng.integers(0, 40, 700)]
    vectors = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)
    of = found(content, sources, hashes, vectors, DuplicateConfig(cosine=0.9))
    assert of == oracle(content, content, sources, hashes, vectors, DuplicateConfig(cosine=0.9))
    assert 100 < of.count(-1) < 600


def test_only_frames_that_may_repeat_another_are_loaded_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BATCH", 3)
    hashes = [0, 1 << 20, 3 << 40, 5, 0xFFFF << 48, 3 << 40, 0xFF << 30, 0xFF << 30, 0]
    sources = [0, 1, 2, 3, 4, 5, 6, 6, 0]
    load = Loaded(same(9))
    of = found(names(9), sources, hashes, load.vectors, load=load)
    assert of == [-1, 0, 0, 0, -1, 0, -1, -1, -1]
    # 4 is alone; 6 and 7 have one source.
    assert sorted(row for call in load.calls for row in call) == [0, 1, 2, 3, 5, 8]
    pairs = [0xFF << 8 * (i // 2) for i in range(10)]
    load = Loaded(same(10))
    assert found(names(10), list(range(10)), pairs, load.vectors, load=load) == [-1, 0, -1, 2, -1, 4, -1, 6, -1, 8]
    assert [len(call) for call in load.calls] == [4, 4, 2]


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=6), st.integers(0, 3), st.integers(0, 1 << 32))
def test_pairs_of_near_hashes_are_those_of_plain_loops(seeds: list[int], distance: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flips = [sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 6), replace=False)) for _ in range(8)]
    values = sorted({value ^ flip for value in seeds for flip in flips})
    pairs = near_hashes(np.array(values, np.uint64), distance)
    near = {(a, b) for a in range(len(values)) for b in range(a) if (values[a] ^ values[b]).bit_count() <= distance}
    assert {(max(pair), min(pair)) for pair in pairs.T.tolist()} == near


def test_a_frame_is_never_dropped_for_the_sake_of_a_dropped_one() -> None:
    # 1 is near 0 and dropped; 2 is near 1 only, so it stays.
    assert found(names(3), [0, 1, 2], [0, 0b111, 0b111111], same(3)) == [-1, 0, -1]
    # 1 is near 0 and dropped; 2 has the content of 1, but the source of 0.
    assert found(["a", "b", "b"], [0, 1, 0], [0, 1, 1], same(3)) == [-1, 0, -1]


@pytest.mark.parametrize("count", [40, 3000])
def test_frames_of_one_source_are_never_compared_by_hash(count: int) -> None:
    load = Loaded(same(count))
    assert found(names(count), [5] * count, [77] * count, load.vectors, load=load) == [-1] * count
    assert load.calls == []
    of = found(names(count), [5] * (count - 1) + [6], [77] * count, same(count))
    assert of == [-1] * (count - 1) + [0]


@pytest.mark.parametrize("count", [40, 3000])
def test_of_equal_pictures_in_many_sources_the_first_stays(count: int) -> None:
    assert found(names(count), list(range(count)), [0] * count, same(count)) == [-1] + [0] * (count - 1)


def test_equal_content_is_found_within_a_source_too() -> None:
    assert found(["a", "b", "a"], [0, 0, 0], [1, 2, 1], same(3)) == [-1, -1, 0]


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
def test_the_distance_is_a_limit_that_is_still_allowed(distance: int) -> None:
    rng = np.random.default_rng(distance)
    for bits in range(5):
        for _ in range(40):
            flipped = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
            value = int(rng.integers(0, 1 << 64, dtype=np.uint64))
            of = found(names(2), [0, 1], [value, value ^ flipped], same(2), DuplicateConfig(distance=distance))
            assert of == [-1, 0 if bits <= distance else -1]


def test_equal_hashes_of_pictures_that_differ_are_no_duplicates() -> None:
    vectors = np.array([[1, 0], [0.96, 0.28]], np.float16)
    assert found(names(2), [0, 1], [9, 9], vectors) == [-1, -1]
    assert found(names(2), [0, 1], [9, 9], vectors, DuplicateConfig(cosine=0.95)) == [-1, 0]


@pytest.mark.parametrize("distance", [-1, 4])
def test_a_distance_that_bands_cannot_find_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=r"duplicates.distance must be in 0..3"):
        DuplicateConfig(distance=distance)


@pytest.mark.parametrize("cosine", [-0.1, 1.1, float("nan")])
def test_a_cosine_is_a_share(cosine: float) -> None:
    with pytest.raises(ValueError, match=r"duplicates\.cosine must be in"):
        DuplicateConfig(cosine=cosine)
