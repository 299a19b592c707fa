import dataclasses
import json
from collections import Counter
from datetime import date

import pytest

from manifests.release import parse_release, render_release, sha256_hex
from review.catalog import Catalog
from review.columns import CatalogError, Columns
from review.coverage import coverage, unknown_share
from review.overview import Review
from tests.review import releases

TODAY = date(2026, 1, 1)


@pytest.fixture(scope="module")
def samples():
    return releases.figures(60)


@pytest.fixture(scope="module")
def catalog(samples, tmp_path_factory):
    return Catalog.open(releases.write(tmp_path_factory.mktemp("root"), samples))


def changed(folder, **fields):
    """Commit the release with other fields; a mapping is put over the one that is there."""
    release = parse_release((folder / "release.json").read_bytes())
    (folder / "release.json").write_bytes(render_release(dataclasses.replace(release, **fields)))
    return Catalog.open(folder)


def test_cells_state_target_and_actual_of_the_release(catalog):
    cells = {cell["cell"]: cell for cell in catalog.coverage()["cells"]}
    assert set(cells) == set(catalog.release.cells)
    for name, counts in catalog.release.cells.items():
        cell = cells[name]
        assert (cell["target"], cell["actual"]) == (counts["target"], counts["actual"])
        assert f"{cell['attribute']}={cell['value']}" == name
        assert cell["share"] == pytest.approx(counts["actual"] / counts["target"])


def test_a_cell_that_is_not_full_says_why(catalog, samples):
    for cell in catalog.coverage()["cells"]:
        if cell["actual"] >= cell["target"]:
            assert cell["judged_unfillable"] is None
        elif cell["attribute"] == "group":
            assert "do not tell why" in cell["judged_unfillable"]
        else:
            value = None if cell["value"] == "unknown" else cell["value"]
            mine = Counter(s.decision for s in samples if s.attributes.get(cell["attribute"]) == value)
            told = f"{mine['drop']} were dropped and {mine['hold']} held"
            assert told in cell["judged_unfillable"]


def test_a_cell_for_which_too_few_were_chosen_says_so(samples, tmp_path):
    folder = releases.write(tmp_path, samples)
    cells = dict(parse_release((folder / "release.json").read_bytes()).cells)
    cells["lighting_level=dark"] = {**cells["lighting_level=dark"], "target": 500}
    found = {cell["cell"]: cell for cell in changed(folder, cells=cells).coverage()["cells"]}
    assert "only 20 of 500 could be chosen" in found["lighting_level=dark"]["judged_unfillable"]


def test_every_attribute_counts_every_row(catalog, samples):
    for attribute in catalog.coverage()["attributes"]:
        said = Counter((s.attributes.get(attribute["name"]), s.decision) for s in samples)
        rows = {None: attribute["unknown"]} | {value["value"]: value for value in attribute["values"]}
        assert {
            (value, decision): row[key]
            for value, row in rows.items()
            for key, decision in (("kept", "keep"), ("held", "hold"), ("dropped", "drop"))
            if row[key]
        } == said


def test_provenance_counts_every_row(catalog, samples):
    for one in catalog.coverage()["provenance"]:
        unknown = sum(s.attributes.get(one["attribute"]) is None for s in samples)
        assert (one["unknown"], one["model"], one["human"]) == (unknown, len(samples) - unknown, 0)


def test_cells_and_attributes_need_no_column(catalog, monkeypatch):
    columns = Columns(catalog.folder, catalog.release)
    monkeypatch.setattr(columns, "attributes", ())
    monkeypatch.setattr(columns, "_parts", lambda *_, **__: pytest.fail("a column was read"))
    body = coverage(catalog.release, catalog.stats, columns)
    assert body["cells"] == catalog.coverage()["cells"]
    assert body["attributes"] == catalog.coverage()["attributes"]


def test_the_least_known_attribute_is_named():
    values = {
        "a": {"x": {"keep": 9}, "unknown": {"keep": 1}},
        "b": {"unknown": {"keep": 5, "drop": 2}, "y": {"keep": 3}},
    }
    assert unknown_share({"attributes": values}) == ("b", 0.7)
    assert unknown_share({"attributes": {}}) is None


def test_the_overview_adds_up(catalog):
    body = catalog.overview(today=TODAY)
    counts = body["counts"]
    assert counts["read"] == sum(counts.values()) - counts["read"]
    assert body["adds_up"]
    assert sum(body["decisions"].values()) == sum(body["verdicts"].values()) == body["rows"] == 60
    json.dumps(body, allow_nan=False)


def checks(catalog, review=None, today=TODAY):
    return {one["name"]: one["state"] for one in catalog.overview(today=today, review=review)["checks"]}


def test_checks_pass_on_what_is_good_and_warn_of_what_is_open(catalog):
    assert checks(Catalog.open(catalog.folder))["Split leakage"] == "not run"
    catalog.warm()
    assert checks(catalog, Review(integrity="good", log="good", signoff={"state": "signed"})) == {
        "Counts": "pass",
        "Integrity": "pass",
        "Review log": "pass",
        "Split leakage": "pass",
        "Near duplicates": "pass",
        "Retention": "pass",
        "Quotas": "warn",
        "Unknown values": "pass",
        "Licences": "pass",
        "Consent": "pass",
        "Judge": "pass",
        "Labels": "warn",
        "Sign-off": "pass",
    }


@pytest.mark.parametrize(
    ("review", "name", "state"),
    [
        (Review(integrity="problems", problems=3), "Integrity", "fail"),
        (Review(integrity="running"), "Integrity", "not run"),
        (Review(), "Review log", "not run"),
        (Review(log="problems", log_told="event 0 was edited"), "Review log", "fail"),
        (Review(signoff={"state": "broken"}), "Sign-off", "fail"),
        (Review(signoff={"state": "expired"}), "Sign-off", "warn"),
        (Review(), "Sign-off", "warn"),
    ],
)
def test_checks_follow_the_review(catalog, review, name, state):
    assert checks(catalog, review)[name] == state


@pytest.mark.parametrize(
    ("row", "today", "name", "state"),
    [
        ({"split": "test"}, TODAY, "Split leakage", "fail"),
        ({"retention_until": TODAY}, date(2026, 1, 2), "Retention", "fail"),
        ({"retention_until": TODAY}, TODAY, "Retention", "pass"),
        ({"licence": "unknown"}, TODAY, "Licences", "warn"),
        ({"consent_status": "unknown"}, TODAY, "Consent", "warn"),
        ({"label_source": "human"}, TODAY, "Labels", "pass"),
    ],
)
def test_one_sample_is_enough_for_a_check(row, today, name, state, tmp_path):
    plain = [one for one in releases.figures(60) if one.split == "train"]
    folder = releases.write(tmp_path, [dataclasses.replace(plain[0], row=row), *plain[1:]])
    catalog = Catalog.open(folder)
    catalog.warm()
    assert checks(catalog, today=today)[name] == state


@pytest.mark.parametrize(
    "change",
    [
        lambda stats: stats["decisions"].update(keep=1),
        lambda stats: stats["splits"].update(train=1),
        lambda stats: stats["attributes"]["num_people"]["one"].update(keep=1),
    ],
)
def test_counts_that_contradict_each_other_fail(change, tmp_path, samples):
    stats = json.loads((releases.write(tmp_path, samples) / "stats.json").read_bytes())
    change(stats)
    found = with_stats(tmp_path, samples, json.dumps(stats).encode())
    assert not found.overview(today=TODAY)["adds_up"]
    assert checks(found)["Counts"] == "fail"


def with_stats(root, samples, data):
    """The release with another stats.json, listed as if it had always been there."""
    folder = releases.write(root, samples)
    (folder / "stats.json").write_bytes(data)
    files = [
        dataclasses.replace(e, bytes=len(data), sha256=sha256_hex(data)) if e.path == "stats.json" else e
        for e in parse_release((folder / "release.json").read_bytes()).files
    ]
    return changed(folder, files=tuple(files))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"decisions": {"keep": "many"}, "verdicts": {}, "splits": {}, "attributes": {}}',
        b'{"decisions": {}, "verdicts": {}, "splits": {}, "attributes": {"a": 1}}',
        b'{"decisions": {}, "verdicts": {}, "splits": {}, "attributes": {"a": {"b": {"keep": -1}}}}',
        b"\xff",
    ],
)
def test_a_stats_file_that_is_none_is_told(data, tmp_path, samples):
    with pytest.raises(CatalogError, match=r"stats\.json"):
        with_stats(tmp_path, samples[:6], data)
