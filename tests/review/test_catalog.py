import dataclasses
import json
import math
import threading
from collections import Counter
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.release import parse_release, render_release, sha256_hex
from manifests.shard import encode_parquet
from review.catalog import MAX_PAGE, Catalog, UnknownSample
from review.coding import REST, shown
from review.columns import CatalogError, Columns, hex_of
from review.query import NUMBERS, STATES, Query, QueryError, parse_query
from tests.review import releases

COUNT = 48


def varied(count=COUNT):
    """Figures with missing numbers, several reasons and every label source."""
    extra = [
        {"temporal_iou": None, "label_source": "human", "n_persons": 2, "decision_reasons": ["a", "b"]},
        {"temporal_iou": 0.5, "student_iou": None, "judge": None},
        {"temporal_iou": 1.0, "cluster_path": [7], "licence": "unknown"},
        {},
    ]
    return [dataclasses.replace(one, row=extra[one.number % 4]) for one in releases.figures(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return releases.write(tmp_path_factory.mktemp("root"), varied())


@pytest.fixture(scope="module")
def catalog(folder):
    return Catalog.open(folder)


@pytest.fixture(scope="module")
def rows(folder):
    """Every row of the release in plain Python, by id: what all answers are held against."""
    found = [row for path in folder.glob("[md]*/*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted(found, key=lambda row: row["sample_id"])


def number_of(row, name):
    if name == "mask_area_share":
        return row["mask_area_px"] / (row["width"] * row["height"])
    value = (row["judge"] or {}).get(name) if name in ("q", "miss", "extra", "stability") else row[name]
    return None if value is None else float(np.float32(value))


def matches(row, query):
    """The query's meaning, written out."""
    tests = [
        not wanted or row[name] in wanted
        for name, wanted in ((n, getattr(query, n)) for n in ("decision", "split", "verdict", "label_source"))
    ]
    tests += [not values or row["attr"][name]["value"] in values for name, values in query.attr]
    tests.append(not query.reason or bool(set(query.reason) & set(row["decision_reasons"])))
    tests.append(row["cluster_path"][: len(query.cluster)] == list(query.cluster))
    tests.append(query.group is None or row["group_id"] == query.group)
    tests.append(query.id is None or row["sample_id"].startswith(query.id))
    for name, low, high in query.range:
        value = number_of(row, name)
        inside = value is not None and (low is None or value >= low)
        tests.append(inside and (high is None or value < high or (value == high and high >= 1)))
    return all(tests)


def ordered(rows, query):
    if query.sort == "id":
        return rows[::-1] if query.descending else rows
    values = [number_of(row, query.sort) for row in rows]
    keys = [(v is None, 0 if v is None else -v if query.descending else v) for v in values]
    return [rows[at] for at in sorted(range(len(rows)), key=keys.__getitem__)]


SHARES = ("label_confidence", "student_iou", "temporal_iou", "q", "boundary_uncertainty")
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "decision": st.lists(st.sampled_from(("keep", "drop", "hold"))),
        "split": st.lists(st.sampled_from(("train", "val", "test", "hold", "dropped"))),
        "verdict": st.lists(st.sampled_from(("keep", "correct", "none"))),
        "label_source": st.lists(st.sampled_from(("pseudo", "human", "none"))),
        "reason": st.lists(st.sampled_from(("a", "gate failed", "probably wrong", "other"))),
        "attr": st.dictionaries(
            st.sampled_from(releases.ATTRIBUTES),
            st.lists(st.sampled_from((None, "dark", "normal", "light", "one", "nothing"))),
        ),
        "range": st.dictionaries(
            st.sampled_from(SHARES),
            st.tuples(*[st.none() | st.integers(0, 20).map(lambda n: n / 20)] * 2).map(
                lambda b: sorted(b) if None not in b else list(b)
            ),
        ),
        "cluster": st.sampled_from(([], [0], [7], [1, 4], [0, 0, 0], [2, 2, 2, 2])),
        "group": st.sampled_from(("video-0", "video-3", "nowhere")),
        "id": st.text("0123456789abcdef", min_size=1, max_size=2),
        "sort": st.sampled_from(("id", *SHARES, "n_persons")),
        "descending": st.booleans(),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(QUERIES)
def test_a_query_finds_exactly_the_rows_that_match(catalog, rows, value):
    query = parse_query(value)
    expected = [row["sample_id"] for row in ordered([row for row in rows if matches(row, query)], query)]
    assert [hex_of(catalog.ids, row) for row in catalog.select(query).tolist()] == expected


def test_every_row_is_there_once_in_the_order_of_ids(catalog, rows):
    assert catalog.rows == COUNT
    assert [hex_of(catalog.ids, row) for row in range(catalog.rows)] == [row["sample_id"] for row in rows]


def test_pages_tile_the_selection(catalog):
    query = parse_query({"sort": "q", "descending": True})
    pages = [catalog.page(query, offset=offset, limit=7) for offset in range(0, 56, 7)]
    assert {page["total"] for page in pages} == {COUNT}
    ids = [tile["id"] for page in pages for tile in page["samples"]]
    assert ids == [hex_of(catalog.ids, row) for row in catalog.select(query).tolist()]


def test_a_tile_says_what_the_manifest_says(catalog, rows):
    for tile, row in zip(catalog.page(Query(), offset=0, limit=COUNT)["samples"], rows, strict=True):
        for name in ("width", "height", "decision", "split", "verdict", "label_source", "media_kind"):
            assert tile[name] == row[name]
        assert tile["reasons"] == row["decision_reasons"]
        assert tile["pixels"] == (row["shard"] is not None)
        for name in ("q", "label_confidence", "student_iou"):
            assert tile[name] == pytest.approx(number_of(row, name))


@pytest.mark.parametrize(("offset", "limit"), [(-1, 10), (0, 0), (0, MAX_PAGE + 1)])
def test_a_page_out_of_range_is_refused(catalog, offset, limit):
    with pytest.raises(QueryError):
        catalog.page(Query(), offset=offset, limit=limit)


def test_review_states_filter_and_show(catalog):
    states = (np.arange(COUNT) % len(STATES)).astype(np.int8)
    for number, name in enumerate(STATES):
        query = parse_query({"state": [name]})
        assert catalog.select(query, states).tolist() == np.flatnonzero(states == number).tolist()
        assert {tile["state"] for tile in catalog.page(query, offset=0, limit=60, states=states)["samples"]} == {name}
    assert len(catalog.select(parse_query({"state": ["undecided"]}))) == COUNT
    assert not len(catalog.select(parse_query({"state": ["reject"]})))
    slices = catalog.histogram("q", Query(), "state", states=states)["series"]
    assert {one["value"]: one["n"] for one in slices} == {name: COUNT // len(STATES) for name in STATES}


@pytest.mark.parametrize("column", NUMBERS)
@pytest.mark.parametrize("by", [None, "lighting_level", "apparent_skin_tone"])
def test_asking_for_a_bin_finds_the_rows_that_it_counts(catalog, column, by):
    query = parse_query({"split": ["train", "hold", "dropped"]})
    body = catalog.histogram(column, query, by)
    assert body["n"] == sum(series["n"] for series in body["series"]) == len(catalog.select(query))
    assert body["missing"] == sum(series["missing"] for series in body["series"])
    for series in body["series"]:
        assert series["n"] == sum(series["counts"]) + series["missing"]
        for place, count in enumerate(series["counts"]):
            value = {"range": {column: body["edges"][place : place + 2]}, "split": list(query.split)}
            found = catalog.select(parse_query(value if by is None else value | {"attr": {by: [series["value"]]}}))
            assert len(found) == count


def test_a_filter_moves_no_edge(catalog):
    whole = catalog.histogram("mask_area_share", Query())
    assert catalog.histogram("mask_area_share", parse_query({"decision": ["hold"]}))["edges"] == whole["edges"]


@pytest.mark.parametrize(
    ("column", "by", "bins"), [("widht", None, 40), ("q", "lighting", 40), ("q", None, 1), ("q", None, 10**6)]
)
def test_an_unknown_histogram_is_refused(catalog, column, by, bins):
    with pytest.raises(QueryError):
        catalog.histogram(column, Query(), by, bins)


def test_every_cell_of_the_release_is_found_again(catalog):
    assert catalog.columns.cells(len(releases.BALANCED)) is not None
    for cell, counts in catalog.release.cells.items():
        assert len(catalog.select(parse_query({"cell": cell, "decision": ["keep"]}))) == counts["actual"]


def test_cells_are_found_whatever_their_texts_hold(tmp_path):
    texts = ("dark, warm", 'a"b', "[1]", "back\\slash", "unknown", "3", "", "é=.*", None)
    samples = [
        dataclasses.replace(one, attributes={"lighting_level": texts[one.number % 9]}) for one in releases.figures(45)
    ]
    catalog = Catalog.open(releases.write(tmp_path, samples))
    assert catalog.columns.cells(2) is None, "a comma in a text keeps the quick way off"
    for cell, counts in catalog.release.cells.items():
        assert len(catalog.select(parse_query({"cell": cell, "decision": ["keep"]}))) == counts["actual"]


def test_a_whole_quota_cell_is_found(catalog, rows):
    cells = Counter(row["quota_cell"] for row in rows)
    for cell, count in cells.items():
        assert len(catalog.select(parse_query({"cell": cell}))) == count


def test_an_unknown_cell_or_attribute_is_refused(catalog):
    for value in ({"cell": "weather=rain"}, {"cell": "x" * 2000}, {"attr": {"weather": ["rain"]}}):
        with pytest.raises(QueryError):
            catalog.select(parse_query(value))


def test_a_sample_says_all_that_the_manifest_says(catalog, rows):
    for row in rows[:12]:
        body = json.loads(json.dumps(catalog.sample(row["sample_id"])))
        told = {**body["identity"], **body["label"], **body["decision"], **body["rights"]}
        assert set(told) | {"sample_id", "attr", "judge", "embedding_shard", "embedding_row"} == set(row)
        assert told["source_sha256"] == row["source_sha256"].hex()
        assert int(told["dhash64"], 16) == row["dhash64"]
        assert told["retention_until"] == row["retention_until"].isoformat()
        assert told["source_uri"] == row["source_uri"]
        assert told["decision_reasons"] == row["decision_reasons"]
        assert {one["name"]: one["value"] for one in body["attributes"]} == {
            name: said["value"] for name, said in row["attr"].items()
        }
        known = {name for name, said in row["attr"].items() if said["value"] is not None}
        assert {one["name"] for one in body["evidence"]} == known


def test_neighbours_are_the_frames_of_the_source_in_time(catalog, rows):
    for row in rows:
        same = [other for other in rows if other["source_sha256"] == row["source_sha256"] and other is not row]
        found = catalog.sample(row["sample_id"])["neighbours"]
        assert [one["id"] for one in found] == [o["sample_id"] for o in sorted(same, key=lambda o: o["frame_pts_us"])]
        assert [one["frame_pts_us"] for one in found] == sorted(o["frame_pts_us"] for o in same)


def test_a_place_holds_the_pixels_of_its_sample(catalog, folder, rows):
    for row in rows:
        place = catalog.place(row["sample_id"])
        if row["shard"] is None:
            assert place is None
            assert not any(catalog.sample(row["sample_id"])["pixels"].values())
            continue
        there = pq.read_table(folder / place.entry.path).to_pylist()[place.row]
        assert (there["sample_id"], there["mask_sha256"]) == (row["sample_id"], place.mask_sha256)
        assert (place.width, place.height) == (row["width"], row["height"])
        pixels = catalog.sample(row["sample_id"])["pixels"]
        assert pixels == {
            "image": True,
            "mask": True,
            "teacher_mask": there["teacher_mask"] is not None,
            "ignore": False,
        }


@pytest.mark.parametrize("wrong", ["", "0" * 32, "0" * 31, "g" * 32, "../" * 10, "F" * 32, "0" * 10**6])
def test_an_unknown_sample_is_told(catalog, wrong):
    with pytest.raises(UnknownSample):
        catalog.sample(wrong)
    with pytest.raises(UnknownSample):
        catalog.place(wrong)


def test_threads_read_each_column_once_and_agree(folder, monkeypatch):
    read = Counter()
    plain = Columns._parts

    def counted(self, path, *, words=True):
        read[tuple(path)] += 1
        return plain(self, path, words=words)

    monkeypatch.setattr(Columns, "_parts", counted)
    catalog = Catalog.open(folder)
    assert not read, "opening reads no column"
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append((catalog.page(Query(sort="q"), offset=0, limit=50), catalog.warm()))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(page == found[0] for page in found)
    assert set(read.values()) == {1}


def test_the_overview_reads_no_column(folder, monkeypatch):
    monkeypatch.setattr(Columns, "_parts", lambda *_, **__: pytest.fail("a column was read"))
    body = Catalog.open(folder).overview(today=date(2026, 1, 1))
    assert body["rows"] == COUNT
    assert {one["state"] for one in body["checks"]} <= {"pass", "warn", "fail", "not run"}


def rewritten(folder, path, *, table, write=lambda table: encode_parquet(table, row_group_rows=10)):
    """Put other bytes in the place of a file, and list them as if they had always been there."""
    release = parse_release((folder / "release.json").read_bytes())
    data = write(table)
    entry = {"bytes": len(data), "sha256": sha256_hex(data), "rows": len(table)}
    files = tuple(dataclasses.replace(e, **entry) if e.path == path else e for e in release.files)
    (folder / path).write_bytes(data)
    (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, files=files)))


@pytest.fixture
def own(tmp_path):
    return releases.write(tmp_path, releases.figures(24))


MANIFEST = "manifest/part-00000-of-00001.parquet"


def test_a_table_of_an_earlier_minor_version_is_read(own):
    table = pq.read_table(own / MANIFEST).drop_columns(["persons"])
    table = table.replace_schema_metadata({b"curate.schema": b"manifest", b"curate.schema_version": b"1.0"})
    rewritten(own, MANIFEST, table=table)
    catalog = Catalog.open(own)
    catalog.warm()
    kept = catalog.select(parse_query({"decision": ["keep"]}))
    assert "persons" not in catalog.sample(hex_of(catalog.ids, int(kept[0])))["label"]


def test_a_column_of_a_later_minor_version_is_shown(own):
    table = pq.read_table(own / MANIFEST)
    rewritten(own, MANIFEST, table=table.append_column("mood", pa.array(["x"] * len(table))))
    catalog = Catalog.open(own)
    kept = catalog.select(parse_query({"decision": ["keep"]}))
    assert catalog.sample(hex_of(catalog.ids, int(kept[0])))["more"] == {"mood": "x"}


def test_long_and_odd_texts_are_shortened_and_still_found(tmp_path, monkeypatch):
    names = ("apparent_skin_tone", "a.b</script>\0\n", "lighting_level")
    monkeypatch.setattr(releases, "ATTRIBUTES", names)
    long, other = "x" * 10_000_000, "x" * 9_999_999 + "y"
    samples = [
        dataclasses.replace(one, attributes={names[1]: (long, other, "\x07'\";--", None)[one.number % 4]})
        for one in releases.figures(12)
    ]
    catalog = Catalog.open(releases.write(tmp_path, samples))
    body = catalog.bias(names[1])
    assert len(json.dumps(body)) < 20_000
    assert {row["value"] for row in body["rows"]} == {shown(long), shown(other), "\x07'\";--", None}
    for value in (long, shown(long), other, "\x07'\";--", None):
        assert len(catalog.select(parse_query({"attr": {names[1]: [value]}}))) == 3
    assert len(json.dumps(catalog.sample(hex_of(catalog.ids, 0)))) < 20_000


def test_no_number_that_is_not_finite_leaves(own):
    table = pq.read_table(own / MANIFEST)
    wrong = pa.array(np.resize(np.array([math.nan, math.inf, -math.inf, 0.5], np.float32), len(table)))
    at = table.schema.get_field_index("student_iou")
    table = table.set_column(at, table.schema.field(at), wrong)
    rewritten(own, MANIFEST, table=table, write=unchecked)
    catalog = Catalog.open(own)
    kept = parse_query({"decision": ["keep", "hold"]})
    body = catalog.histogram("student_iou", kept)
    assert (body["n"], body["missing"], body["edges"][-1]) == (len(table), len(table) - len(table) // 4, 1.0)
    json.dumps([body, catalog.sample(hex_of(catalog.ids, int(catalog.select(kept)[0])))], allow_nan=False)


def test_more_texts_than_a_page_has_words_for_are_read_and_counted(own, monkeypatch):
    few = pq.read_table(own / MANIFEST)
    size = 3000
    texts = [f"{number:05d}" * 200 for number in range(size)]  # 3 MB: Parquet gives the dictionary up
    table = few.take(np.arange(size) % len(few))
    table = table.set_column(0, few.schema.field(0), pa.array([f"{number:032x}" for number in range(size)]))
    at = table.schema.get_field_index("attr")
    said = [
        {**row, "num_people": {**row["num_people"], "value": texts[n]}}
        for n, row in enumerate(table.column(at).to_pylist())
    ]
    table = table.set_column(at, table.schema.field(at), pa.array(said, table.schema.field(at).type))
    rewritten(own, MANIFEST, table=table, write=unchecked)
    monkeypatch.setattr("review.coding.MAX_VALUES", 2500)
    catalog = Catalog.open(own)
    found = catalog.columns.attribute("num_people")
    assert len(found.values) == 2501
    assert found.counts()[REST] == size + 1 - 2500
    for number in (0, 7, 2400):
        ids = [
            hex_of(catalog.ids, row) for row in catalog.select(parse_query({"attr": {"num_people": [texts[number]]}}))
        ]
        assert ids == [f"{number:032x}"]
    body = catalog.sample(f"{2999:032x}")
    assert {one["name"]: one["value"] for one in body["attributes"]}["num_people"] == shown(texts[2999])


def unchecked(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("path", [MANIFEST, "stats.json"])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b" ", lambda data: data[:3] * 9])
def test_a_changed_file_is_named(own, path, change):
    (own / path).write_bytes(change((own / path).read_bytes()))
    with pytest.raises(CatalogError, match=r"curate verify"):
        Catalog.open(own)


def test_a_flipped_bit_in_a_page_is_told_and_nothing_else_is_raised(own):
    data = (own / MANIFEST).read_bytes()
    told = []
    for at in range(8, len(data) - 8, len(data) // 8):
        (own / MANIFEST).write_bytes(flip(data, at))
        try:
            Catalog.open(own).warm()
        except CatalogError as error:
            told.append("curate verify" in str(error))
    assert len(told) > 1
    assert all(told)


def test_a_file_that_is_not_there_or_leads_out_is_named(own, tmp_path):
    (tmp_path / "elsewhere").write_bytes((own / MANIFEST).read_bytes())
    (own / MANIFEST).unlink()
    with pytest.raises(CatalogError, match="manifest"):
        Catalog.open(own)
    (own / MANIFEST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogError, match="link"):
        Catalog.open(own)


@pytest.mark.parametrize("ids", [["0" * 31 + "g"], ["0"], ["0" * 32, "0" * 32]])
def test_ids_that_are_none_are_told(own, ids):
    table = pq.read_table(own / MANIFEST).slice(0, len(ids))
    rewritten(own, MANIFEST, table=table.set_column(0, table.schema.field(0), pa.array(ids)))
    with pytest.raises(CatalogError):
        _ = Catalog.open(own).ids


def test_a_release_without_rows_answers_everything(tmp_path):
    catalog = Catalog.open(releases.write(tmp_path, []))
    catalog.warm()
    assert catalog.page(Query(sort="q"), offset=0, limit=10)["total"] == 0
    assert catalog.histogram("q", Query(), "lighting_level")["n"] == 0
    answers = [catalog.bias(), catalog.coverage(), catalog.clusters(), catalog.leakage(), catalog.reasons()]
    answers += [catalog.rights(date(2026, 1, 1)), catalog.overview(today=date(2026, 1, 1))]
    json.dumps(answers, allow_nan=False)
