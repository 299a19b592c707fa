"""Laws of duplicates: an oracle in plain loops, and a first of every family that stays."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.duplicates import DuplicateConfig, find_duplicates

CONFIG = DuplicateConfig()


def oracle(
    ids: list[str],
    content: list[str],
    sources: list[int],
    hashes: list[int],
    vectors: NDArray[np.float32],
    config: DuplicateConfig,
) -> list[int]:
    of: list[int] = []
    for b in range(len(ids)):
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
                    and float(vectors[a] @ vectors[b]) >= config.cosine
                )
            )
        ]
        of.append(min(repeats, default=-1))
    return of


def found(
    ids: list[str],
    content: list[str],
    sources: list[int],
    hashes: list[int],
    vectors: NDArray[np.float32],
    config: DuplicateConfig,
) -> list[int]:
    result = find_duplicates(
        np.array(ids, np.str_),
        np.array(content, np.bytes_),
        np.array(sources, np.int64),
        np.array(hashes, np.uint64),
        vectors,
        config,
    )
    assert result.dtype == np.int64
    return [int(of) for of in result]


def same(count: int) -> NDArray[np.float32]:
    return np.tile(np.array([[0.6, 0.8]], np.float32), (count, 1))


def names(count: int) -> list[str]:
    return [f"{i:032x}" for i in range(count)]


@settings(max_examples=150)
@given(st.data())
def test_planted_families_are_found_as_by_plain_loops(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    count = data.draw(st.integers(0, 40))
    config = DuplicateConfig(distance=data.draw(st.integers(0, 3)), cosine=data.draw(st.sampled_from([0.0, 0.9, 1.0])))
    seeds = rng.integers(0, 1 << 64, 3, np.uint64)
    angles = rng.integers(0, 3, count) * 0.5
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    hashes = []
    for _ in range(count):
        value = int(seeds[rng.integers(3)])
        for bit in rng.choice(64, rng.integers(0, 5), replace=False):
            value ^= 1 << int(bit)
        hashes.append(value)
    content = [str(rng.integers(0, 3 * count)) for _ in range(count)]
    ids = [f"{c}-{rng.integers(2)}" for c in content]
    sources = [int(s) for s in rng.integers(0, 4, count)]
    of = found(ids, content, sources, hashes, vectors, config)
    assert of == oracle(ids, content, sources, hashes, vectors, config)
    assert all(target == -1 or of[target] == -1 for target in of)
    assert not of or of[0] == -1


def test_a_frame_is_never_dropped_for_the_sake_of_a_dropped_one() -> None:
    # 1 is near 0 and dropped; 2 is near 1 only, so it stays.
    hashes = [0, 0b111, 0b111111]
    assert found(names(3), names(3), [0, 1, 2], hashes, same(3), CONFIG) == [-1, 0, -1]
    # 1 is near 0 and dropped; 2 has the content of 1, but the source of 0.
    assert found(names(3), ["a", "b", "b"], [0, 1, 0], [0, 1, 1], same(3), CONFIG) == [-1, 0, -1]
    # 1 and 2 share an id, 0 has their content at another time: both repeat 0.
    assert found(["x", "y", "y"], ["a"] * 3, [0, 0, 1], [0] * 3, same(3), CONFIG) == [-1, 0, 0]


def test_frames_of_one_source_are_never_compared_by_hash() -> None:
    count = 3000
    started = time.process_time()
    of = found(names(count), names(count), [5] * count, [77] * count, same(count), CONFIG)
    assert of == [-1] * count
    assert time.process_time() - started < 5


def test_equal_content_is_found_within_a_source_too() -> None:
    assert found(names(3), ["a", "b", "a"], [0, 0, 0], [1, 2, 1], same(3), CONFIG) == [-1, -1, 0]


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
def test_the_distance_is_a_limit_that_is_still_allowed(distance: int) -> None:
    rng = np.random.default_rng(distance)
    for bits in range(5):
        for _ in range(40):
            flipped = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
            value = int(rng.integers(0, 1 << 64, dtype=np.uint64))
            config = DuplicateConfig(distance=distance)
            of = found(names(2), names(2), [0, 1], [value, value ^ flipped], same(2), config)
            assert of == [-1, 0 if bits <= distance else -1]


def test_equal_hashes_of_pictures_that_differ_are_no_duplicates() -> None:
    vectors = np.array([[1, 0], [0.96, 0.28]], np.float32)
    assert found(names(2), names(2), [0, 1], [9, 9], vectors, CONFIG) == [-1, -1]
    assert found(names(2), names(2), [0, 1], [9, 9], vectors, DuplicateConfig(cosine=0.95)) == [-1, 0]


@pytest.mark.parametrize("distance", [-1, 4])
def test_a_distance_that_bands_cannot_find_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=r"duplicates.distance must be in 0..3"):
        DuplicateConfig(distance=distance)


@pytest.mark.parametrize("cosine", [-0.1, 1.1, float("nan")])
def test_a_cosine_is_a_share(cosine: float) -> None:
    with pytest.raises(ValueError, match=r"duplicates\.cosine must be in"):
        DuplicateConfig(cosine=cosine)
