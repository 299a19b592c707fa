import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.diff import KINDS, MAX_PAGE, Difference, _join, compare
from manifests.drift import BINS, MAX_VALUES, divergence, drift_of_numbers, drift_of_words
from manifests.release import canonical_json, read_release, render_release, sha256_hex
from manifests.scan import Words, open_side
from manifests.shard import ShardError, encode_parquet
from tests.review import releases

SAMPLES = releases.figures(40)
SHARES = st.lists(st.integers(0, 50), min_size=4, max_size=4)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of 40 samples."""
    return releases.write(tmp_path_factory.mktemp("a"), SAMPLES)


def _told(folder: Path) -> dict[str, dict[str, Any]]:
    """What is compared of every sample, read row by row."""
    files = [*sorted((folder / "manifest").iterdir()), *sorted((folder / "dropped").iterdir())]
    return {
        row["sample_id"]: {
            "decision": row["decision"],
            "split": row["split"],
            "mask": row["mask_sha256"],
            "attribute": {name: (said["value"], said["provenance"]) for name, said in row["attr"].items()},
        }
        for file in files
        for row in pq.ParquetFile(file).read().to_pylist()
    }


def _all(difference: Difference, kind: str) -> list[dict[str, Any]]:
    return list(difference.rows(kind, 0, MAX_PAGE)["samples"])


def _applied(rows: dict[str, dict[str, Any]], difference: Difference) -> dict[str, dict[str, Any]]:
    """The rows of A with the difference applied to them."""
    rows = {one: dict(row) for one, row in rows.items()}
    for sample in _all(difference, "removed"):
        del rows[sample["id"]]
    for kind in ("decision", "split"):
        for sample in _all(difference, kind):
            assert rows[sample["id"]][kind] == sample["before"][kind]
            rows[sample["id"]][kind] = sample["after"][kind]
    for sample in _all(difference, "mask"):
        digest = sample["after"]["mask_sha256"]
        rows[sample["id"]]["mask"] = digest and bytes.fromhex(digest)
    for sample in _all(difference, "attribute"):
        fresh = {name: (said["value"], said["provenance"]) for name, said in sample["after"]["attributes"].items()}
        assert fresh
        rows[sample["id"]]["attribute"] = {**rows[sample["id"]]["attribute"], **fresh}
    return rows


@st.composite
def _versions(draw: st.DrawFn) -> list[releases.Sample]:
    """Another version of the samples: some gone, some new, some decided, drawn or described otherwise."""
    version = []
    for sample in draw(st.lists(st.sampled_from(SAMPLES), unique_by=lambda one: one.id, min_size=1)):
        changed = sample
        if draw(st.booleans()):
            changed = dataclasses.replace(changed, decision=draw(st.sampled_from(["keep", "hold", "drop"])))
        if draw(st.booleans()):
            changed = dataclasses.replace(changed, mask=~changed.mask, teacher_mask=None)
        if draw(st.booleans()):
            light = draw(st.sampled_from(["dark", None, "<b>"]))
            changed = dataclasses.replace(changed, attributes={**changed.attributes, "lighting_level": light})
        version.append(changed)
    return version + releases.figures(draw(st.integers(0, 3)), seed=7)


def test_a_release_does_not_differ_from_itself(release: Path) -> None:
    difference = compare(release, release)
    told = difference.to_json()
    assert difference.empty
    assert told["samples"] == {"common": 40, "changed": 0, **dict.fromkeys(KINDS, 0)}
    assert told["relation"] == "same"
    assert (told["config"], told["models"], told["attributes"]) == ([], [], [])
    assert told["moves"] == {"decision": [], "split": []}
    assert all(drift.js == drift.linf == 0 for drift in difference.drift)
    assert all(cell["delta"] == 0 and cell["a"] == cell["b"] for cell in told["cells"])
    assert [difference.rows(kind, 0, 10) for kind in KINDS] == [{"total": 0, "samples": []}] * len(KINDS)


@settings(max_examples=10)
@given(version=_versions())
def test_the_difference_applied_to_a_gives_b(
    version: list[releases.Sample], release: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    samples = list({sample.id: sample for sample in version}.values())
    other = releases.write(tmp_path_factory.mktemp("b"), samples)
    before, after, difference = _told(release), _told(other), compare(release, other)
    fresh = _all(difference, "added")
    assert {sample["id"] for sample in fresh} == set(after) - set(before)
    assert all(sample["before"] is None for sample in fresh)
    rows = _applied(before, difference)
    assert rows == {one: row for one, row in after.items() if one in before}
    assert difference.common == len(rows)
    assert difference.changed == sum(before[one] != row for one, row in rows.items())
    for kind, moves in (("decision", difference.decisions), ("split", difference.splits)):
        pairs = Counter((before[one][kind], row[kind]) for one, row in rows.items())
        assert moves == {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    for name in releases.ATTRIBUTES:
        changed = sum(before[one]["attribute"][name] != row["attribute"][name] for one, row in rows.items())
        assert difference.attributes[name] == changed
    canonical_json(difference.to_json())


def test_pages_are_in_the_order_of_ids_and_together_hold_every_sample(release: Path, tmp_path: Path) -> None:
    other = releases.write(tmp_path, [dataclasses.replace(one, mask=~one.mask) for one in SAMPLES])
    difference = compare(release, other)
    pages = [difference.rows("mask", offset, 7)["samples"] for offset in range(0, 42, 7)]
    ids = [sample["id"] for page in pages for sample in page]
    assert ids == sorted(one.id for one in SAMPLES if one.decision != "drop" or one.audit)
    with pytest.raises(ValueError, match="kind must be one of"):
        difference.rows("everything", 0, 10)
    with pytest.raises(ValueError, match=r"limit in 1\.\.1000"):
        difference.rows("mask", 0, MAX_PAGE + 1)


def test_counts_cells_parents_and_settings_stand_side_by_side(release: Path, tmp_path: Path) -> None:
    parent = sha256_hex((release / "release.json").read_bytes())
    fewer = [one for one in SAMPLES if one.number % 3]
    child = releases.write(tmp_path, fewer, parents=(parent,), seed=9)
    told = compare(release, child).to_json()
    back = compare(child, release).to_json()
    one, two = read_release(release), read_release(child)
    assert (told["relation"], back["relation"]) == ("successor", "parent")
    assert told["config"] == [{"path": "seed", "a": 5, "b": 9}, {"path": "target_size", "a": 40, "b": len(fewer)}]
    assert {row["name"]: (row["a"], row["b"]) for row in told["counts"]} == {
        name: (getattr(one.counts, name), getattr(two.counts, name))
        for name in ("read", "undecodable", "duplicate", "not_sampled", "dropped", "held", "kept")
    }
    for cell in told["cells"]:
        name = f"{cell['attribute']}={cell['value']}"
        before, after = one.cells.get(name), two.cells.get(name)
        assert (cell["a"], cell["b"]) == (before, after)
        assert cell["delta"] == (after or {"actual": 0})["actual"] - (before or {"actual": 0})["actual"]


def test_drift_is_of_the_kept_rows_and_unknown_is_a_value(release: Path, tmp_path: Path) -> None:
    dark = [dataclasses.replace(one, attributes={**one.attributes, "lighting_level": None}) for one in SAMPLES]
    difference = compare(release, releases.write(tmp_path, dark))
    found = {drift.column: drift for drift in difference.drift}["attr.lighting_level"]
    assert difference.drift[0].column == "attr.lighting_level"
    assert (found.linf, found.js) == (1.0, 1.0)
    kept = [one for one in SAMPLES if one.decision == "keep"]
    counts = Counter(one.attributes["lighting_level"] for one in kept)
    shares = {value: pair.tolist() for value, pair in zip(found.values, found.shares, strict=True)}
    assert shares == {None: [0, 1], **{value: [count / len(kept), 0] for value, count in counts.items()}}
    assert found.rows == (len(kept), len(kept))


def test_an_attribute_that_one_release_lacks_differs_where_the_other_knows_it(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "ATTRIBUTES", ("apparent_skin_tone", "lighting_level"))
    difference = compare(release, releases.write(tmp_path, SAMPLES))
    assert difference.attributes == {"apparent_skin_tone": 0, "lighting_level": 0, "num_people": 40}
    row = _all(difference, "attribute")[0]
    assert list(row["before"]["attributes"]) == ["num_people"]
    assert row["after"]["attributes"] == {}


def test_names_of_attributes_may_hold_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "ATTRIBUTES", ("scene.value", *releases.ATTRIBUTES))
    samples = [[dataclasses.replace(s, attributes={**s.attributes, "scene.value": v}) for s in SAMPLES] for v in "ab"]
    one, two = (releases.write(tmp_path, version) for version in samples)
    difference = compare(one, two)
    assert difference.attributes["scene.value"] == 40
    row = _all(difference, "attribute")[0]
    assert [row[side]["attributes"]["scene.value"]["value"] for side in ("before", "after")] == ["a", "b"]


def test_long_values_are_shortened_where_they_are_shown(release: Path, tmp_path: Path) -> None:
    hostile = {"lighting_level": "<script>" + "x" * 100_000}
    loud = [dataclasses.replace(one, attributes={**one.attributes, **hostile}) for one in SAMPLES]
    difference = compare(release, releases.write(tmp_path, loud))
    assert difference.attributes["lighting_level"] == 40
    assert len(canonical_json(difference.to_json())) < 100_000
    assert len(canonical_json(difference.rows("attribute", 0, 40))) < 100_000


def test_tables_of_lower_minor_versions_are_read(release: Path, tmp_path: Path) -> None:
    old = _with_manifest(release, tmp_path, lambda table: table.drop(["persons"]), b"1.0")
    assert compare(old, release).empty
    assert compare(release, old).empty


def test_an_id_that_is_twice_or_none_is_refused(release: Path, tmp_path: Path) -> None:
    twice = _with_manifest(release, tmp_path / "twice", lambda table: pa.concat_tables([table, table.slice(3, 1)]))
    with pytest.raises(ShardError, match="a sample id is twice in"):
        compare(twice, release)
    with pytest.raises(ShardError, match="a sample id is twice in"):
        compare(release, twice)
    for wrong in ("x" * 32, "0" * 31, "  " + "0" * 30):

        def spoil(table: pa.Table, wrong: str = wrong) -> pa.Table:
            ids = [wrong, *table.column("sample_id").to_pylist()[1:]]
            return table.set_column(0, table.schema.field(0), pa.array(ids))

        with pytest.raises(ShardError, match=r"part-00000-of-00001.parquet: a sample id must be 32 hex digits"):
            compare(_with_manifest(release, tmp_path / f"bad-{len(wrong)}{wrong[0]}", spoil), release)


def test_a_damaged_table_is_named_with_its_row_group(release: Path, tmp_path: Path) -> None:
    def nothing(table: pa.Table) -> pa.Table:
        return table

    broken = _with_manifest(release, tmp_path, nothing)
    path = broken / "manifest/part-00000-of-00001.parquet"
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 8] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"manifest/part-00000-of-00001\.parquet: row group 1"):
        compare(broken, release)


def _with_manifest(folder: Path, root: Path, change: Any, version: bytes = b"1.2") -> Path:
    """The release again with other rows in manifest/; only what `compare` reads is there."""
    release = read_release(folder)
    target = root / "releases" / "other"
    entries = []
    for entry in release.files:
        data = (folder / entry.path).read_bytes()
        if entry.path.startswith("manifest/"):
            table = change(pq.ParquetFile(folder / entry.path).read())
            table = table.replace_schema_metadata({**table.schema.metadata, b"curate.schema_version": version})
            data = encode_parquet(table, row_group_rows=8)
            entry = dataclasses.replace(entry, bytes=len(data), sha256=sha256_hex(data), rows=len(table))  # noqa: PLW2901
        (target / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (target / entry.path).write_bytes(data)
        entries.append(entry)
    (target / "release.json").write_bytes(render_release(dataclasses.replace(release, files=tuple(entries))))
    return target


@settings(max_examples=50)
@given(ids=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1), st.booleans(), st.booleans()), unique=True))
def test_ids_are_joined_whatever_their_halves(ids: list[tuple[int, int, bool, bool]], release: Path) -> None:
    side = open_side(release)
    known = sorted({(high, low): (in_a, in_b) for high, low, in_a, in_b in ids}.items())
    sides = []
    for which in (0, 1):
        mine = [key for key, where in known if where[which]]
        halves = np.array(mine, np.uint64).reshape(-1, 2)
        sides.append(dataclasses.replace(side, high=halves[:, 0], low=halves[:, 1]))
    pairs, added, removed = _join(*sides)
    names = [[(int(h), int(low)) for h, low in zip(one.high, one.low, strict=True)] for one in sides]
    assert [names[0][i] for i in pairs[:, 0]] == [names[1][i] for i in pairs[:, 1]] == [k for k, w in known if all(w)]
    assert [names[1][i] for i in added] == [key for key, where in known if where == (False, True)]
    assert [names[0][i] for i in removed] == [key for key, where in known if where == (True, False)]


@given(a=SHARES, b=SHARES)
def test_the_divergence_is_a_symmetric_distance_in_bits(a: list[int], b: list[int]) -> None:
    p, q = (np.array(counts) / max(1, sum(counts)) for counts in (a, b))
    found = divergence(p, q)
    assert 0 <= found <= 1 + 1e-12
    assert found == pytest.approx(divergence(q, p), abs=1e-12)
    assert (found < 1e-15) == bool(np.allclose(p, q, atol=1e-9))


def test_the_divergence_of_known_distributions() -> None:
    half = np.array([0.5, 0.5])
    assert divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
    assert divergence(np.array([1.0, 0.0]), half) == pytest.approx(1.5 - 0.75 * np.log2(3))
    assert divergence(half, np.zeros(2)) == 1
    assert divergence(np.zeros(2), np.zeros(2)) == 0


def test_numbers_are_counted_in_common_bins_and_missing_ones_apart() -> None:
    a, b = np.array([0, 0.5, np.nan, 9], np.float32), np.array([1, 1, np.nan, np.nan], np.float32)
    kept = (np.array([True, True, True, False]), np.ones(4, np.bool_))
    drift = drift_of_numbers("x", a, b, kept)
    assert drift.edges is not None
    assert (drift.edges[0], drift.edges[-1], len(drift.values)) == (0, 1, BINS + 1)
    assert drift.shares.sum(0) == pytest.approx([1, 1])
    assert drift.shares[[0, BINS // 2, BINS - 1, BINS]].tolist() == [[1 / 3, 0], [1 / 3, 0], [0, 0.5], [1 / 3, 0.5]]
    same = drift_of_numbers("x", np.full(3, 2, np.float32), np.full(3, 2, np.float32), (np.ones(3, bool),) * 2)
    assert same.js == 0


def test_rare_values_are_told_together() -> None:
    words = Words(codes=(np.arange(200, dtype=np.int16), np.zeros(200, np.int16)), values=tuple(map(str, range(200))))
    told = drift_of_words("x", words, None).to_json()
    values = told["values"]
    assert isinstance(values, list)
    assert len(values) == MAX_VALUES + 1
    assert sum(value["a"] for value in values) == pytest.approx(1)
    assert json.dumps(told)
