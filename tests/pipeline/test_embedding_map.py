"""The map: equal bits for equal frames, a fair sample, and neighbours that stay neighbours."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import embedding_map as embedding_map_module
from pipeline.embedding_map import EmbeddingMap, embedding_map, hashed_again, laid_out
from pipeline.select import selection_key
from pipeline.stage import Done
from tests.pipeline.chains import Chain, rows_of, step
from tests.pipeline.selections import halved, recut

vectors = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(1, 5)), elements=st.floats(-1, 1, width=16))


def _assigned(folder: Path, count: int, *, parts: int = 1, dead: int = 0) -> Done:
    """An assign stage of frames without sources; the first of them have dead vectors."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8))
    kind = pa.list_(pa.field("element", pa.float16(), nullable=False), 8)
    found = centres[np.arange(count) % 3] + 0.1 * rng.standard_normal((count, 8))
    table = pa.table(
        {
            "sample_id": pa.array([f"f{at}" for at in range(count)], pa.string()),
            "key": pa.array([selection_key(0, f"f{at}") for at in range(count)], pa.uint64()),
            "cluster_path": pa.array(
                [[-1, -1] if at < dead else [at % 3, at % 3] for at in range(count)], pa.list_(pa.int32())
            ),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(found.astype(np.float16).ravel()), type=kind),
        }
    )
    cuts = np.linspace(0, count, parts + 1).astype(int)
    return step("assign", folder, [table.slice(a, b - a) for a, b in itertools.pairwise(cuts.tolist())])


def _chosen(ids: list[str]) -> pa.Table:
    return pa.table({"sample_id": pa.array(ids, pa.string())})


def _same(one: EmbeddingMap, two: EmbeddingMap) -> bool:
    return (
        one.ids == two.ids
        and (one.places == two.places).all()
        and (one.groups == two.groups).all()
        and (one.chosen == two.chosen).all()
    )


def test_the_cut_of_the_shards_changes_no_bit_of_the_map(
    whole: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_map_module, "_LEAST", 14)
    _, chosen = halved(whole.assigned, [])
    other = recut(whole.assigned, tmp_path / "cut", [0, 3, 11])
    maps = [embedding_map(each, chosen, points) for each in (whole.assigned, other) for points in (18, 12)]
    assert [found.method for found in maps] == ["t-SNE", "PCA"] * 2
    assert _same(maps[0], maps[2])
    assert _same(maps[1], maps[3])


def test_every_point_is_a_frame_with_its_own_group_and_choice(whole: Chain) -> None:
    rows, (_, chosen) = rows_of(whole.assigned), halved(whole.assigned, [])
    found = embedding_map(whole.assigned, chosen, 10_000)
    paths = dict(zip(rows.column("sample_id").to_pylist(), rows.column("cluster_path").to_pylist(), strict=True))
    taken = set(chosen.column("sample_id").to_pylist())
    assert sorted(found.ids) == sorted(paths)
    assert [paths[i][0] for i in found.ids] == found.groups.tolist()
    assert [i in taken for i in found.ids] == found.chosen.tolist()
    assert ((found.places >= 0) & (found.places <= 1)).all()


def test_few_points_are_their_principal_components(tmp_path: Path) -> None:
    found = embedding_map(_assigned(tmp_path / "a", 20), _chosen([]), 100)
    assert found.method == "PCA"
    assert len({tuple(p) for p in found.places.tolist()}) == 20


@pytest.mark.parametrize("parts", [1, 7])
def test_a_third_of_the_points_is_chosen_and_the_rest_is_a_fair_sample(tmp_path: Path, parts: int) -> None:
    ids = [f"f{at}" for at in range(2000)]
    first = sorted(ids, key=lambda i: selection_key(0, i))[:400]  # as a choice takes them: by the smallest hashes
    found = embedding_map(_assigned(tmp_path / "a", 2000, parts=parts), _chosen(first), 27)
    assert len(found.ids) == 27
    assert 9 <= found.chosen.sum() < 27
    every = embedding_map(_assigned(tmp_path / "b", 2000, parts=parts), _chosen(first[:2]), 27)
    assert every.chosen.sum() == 2


def test_other_hashes_tell_nothing_of_the_first() -> None:
    keys = np.sort(np.array([selection_key(1, str(at)) for at in range(4000)], np.uint64))
    again = hashed_again(keys)
    assert len(set(again.tolist())) == len(keys)
    assert abs(np.corrcoef(np.arange(4000), again.argsort().argsort())[0, 1]) < 0.06


def test_dead_vectors_are_not_on_the_map(tmp_path: Path) -> None:
    found = embedding_map(_assigned(tmp_path / "a", 20, dead=5), _chosen(["f2", "f7"]), 100)
    assert set(found.ids) == {f"f{at}" for at in range(5, 20)}
    assert found.chosen.sum() == 1


def test_neighbours_stay_neighbours(tmp_path: Path) -> None:
    found = embedding_map(_assigned(tmp_path / "a", 90), _chosen([]), 90)
    apart = np.square(found.places[:, None] - found.places[None]).sum(axis=2) + np.eye(90) * 9
    assert (found.groups[apart.argmin(axis=1)] == found.groups).all()


@settings(max_examples=40)
@given(vectors)
def test_any_few_vectors_have_finite_places_of_which_none_exceeds_its_row(rows: np.ndarray) -> None:
    places = laid_out(rows)
    assert places.shape == (len(rows), 2)
    assert np.isfinite(places).all()
    centred = rows - rows.mean(axis=0) if len(rows) else rows
    assert (np.linalg.norm(places, axis=1) <= np.linalg.norm(centred, axis=1) + 1e-9).all()


def test_equal_vectors_lie_on_one_place() -> None:
    assert (laid_out(np.ones((50, 4))) == 0).all()


def test_nothing_to_show_is_an_empty_map(tmp_path: Path) -> None:
    assert embedding_map(_assigned(tmp_path / "a", 0), _chosen([]), 10).ids == ()
    assert embedding_map(_assigned(tmp_path / "b", 9), _chosen(["f1"]), 0).ids == ()
    with pytest.raises(ValueError, match="points must be >= 0, got -1"):
        embedding_map(_assigned(tmp_path / "c", 9), _chosen([]), -1)


def test_places_must_fit_their_frames() -> None:
    with pytest.raises(ValueError, match=r"places must be \(1, 2\)"):
        EmbeddingMap(
            ids=("a",), places=np.zeros((2, 2)), groups=np.zeros(1, np.int64), chosen=np.zeros(1, bool), method="PCA"
        )
