import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.release import (
    ConservationError,
    Counts,
    FileEntry,
    Json,
    Model,
    Release,
    ReleaseError,
    ReleaseExistsError,
    canonical_json,
    check_path,
    fingerprint,
    parse_release,
    read_release,
    render_release,
    sha256_hex,
    write_release,
)

HASH = sha256_hex(b"x")
RELEASE = Release(
    name="people-1",
    schemas={"release": "1.0", "manifest": "1.0"},
    config_fingerprint=HASH,
    parents=(HASH,),
    run_id="run-1",
    tool={"version": "0.1.0"},
    packages={"pyarrow": "25.0"},
    seed=7,
    inputs={"videos": 2, "seconds": 1.5, "uris": ["a", "b"], "none": None},
    models=(Model(role="teacher", id="pointrend", sha256=HASH, source="zoo", licence="Apache-2.0"),),
    counts=Counts(read=21, undecodable=1, duplicate=2, not_sampled=3, dropped=4, held=5, kept=6),
    splits={"train": 4, "val": 1, "test": 1, "hold": 5},
    cells={"c0/indoor": {"target": 5, "actual": 4}},
    files=(
        FileEntry(path="config.json", bytes=2, sha256=HASH),
        FileEntry(
            path="manifest/part-00000-of-00001.parquet",
            bytes=9,
            sha256=HASH,
            rows=11,
            min_id="a",
            max_id="z",
            schema="manifest",
        ),
    ),
    erasures=(),
)
DATA = render_release(RELEASE)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé\u2028'\"\\"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _edited(**changes: Any) -> bytes:
    return canonical_json({**json.loads(DATA), **changes})


@given(VALUES)
def test_canonical_json_is_json_and_a_function_of_the_value(value: Json) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


def test_canonical_json_is_sorted_utf8_without_spaces() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {"a": [-float("inf")]}, {1: "a"}, b"x", "\ud800", {1, 2}]
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(ReleaseError):
        canonical_json(value)


def test_a_release_comes_back_and_equal_releases_have_equal_fingerprints() -> None:
    assert parse_release(DATA) == RELEASE
    shuffled = dataclasses.replace(RELEASE, splits=dict(sorted(RELEASE.splits.items())), schemas={**RELEASE.schemas})
    assert fingerprint(render_release(shuffled)) == fingerprint(DATA) == sha256_hex(DATA)
    assert fingerprint(render_release(dataclasses.replace(RELEASE, seed=8))) != fingerprint(DATA)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Counts)])
def test_counts_that_do_not_add_up_cannot_be_made(name: str) -> None:
    for step in (1, -1):
        with pytest.raises(ConservationError, match="counts: "):
            dataclasses.replace(RELEASE.counts, **{name: getattr(RELEASE.counts, name) + step})
    with pytest.raises(ConservationError, match=f"{name} must be an integer >= 0"):
        dataclasses.replace(RELEASE.counts, **{name: -1})


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_counts_that_add_up_can_be_made(duplicate: int, held: int, kept: int) -> None:
    read = duplicate + held + kept
    counts = Counts(read=read, undecodable=0, duplicate=duplicate, not_sampled=0, dropped=0, held=held, kept=kept)
    assert counts.read - counts.kept == duplicate + held


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "a\\b", "C:x", "a\0b", ".", "..", "release.json", 5],
)
def test_a_path_never_leaves_the_release(path: object) -> None:
    with pytest.raises(ReleaseError, match="path"):
        check_path(path)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Release)])
def test_a_missing_field_is_named(name: str) -> None:
    value = json.loads(DATA)
    del value[name]
    with pytest.raises(ReleaseError, match=name):
        parse_release(canonical_json(value))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Release)])
@pytest.mark.parametrize("value", [5.5, True, None, "", [3], {"a": [1]}])
def test_a_field_of_another_type_is_named(name: str, value: Json) -> None:
    if (name, value) != ("inputs", {"a": [1]}):  # inputs are free JSON
        with pytest.raises(ReleaseError, match=name):
            parse_release(_edited(**{name: value}))


def test_a_surplus_field_is_named_at_every_level() -> None:
    with pytest.raises(ReleaseError, match=r"surplus fields .'later'"):
        parse_release(_edited(later=1))
    for name in ("counts", "models", "files"):
        value = json.loads(DATA)
        (value[name] if name == "counts" else value[name][0])["later"] = 1
        with pytest.raises(ReleaseError, match=f"{name}: missing fields .., surplus fields .'later'"):
            parse_release(canonical_json(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../x"}, "path must be relative"),
        ({"bytes": -1}, "bytes must be"),
        ({"bytes": 2.0}, "bytes must be"),
        ({"sha256": "0" * 63}, "sha256 must be 64"),
        ({"sha256": "A" * 64}, "sha256 must be 64"),
        ({"rows": 3}, "rows and schema belong together"),
        ({"rows": 3, "schema": "table"}, "schema must be one of"),
        ({"rows": 3, "schema": "shard"}, "min_id and max_id"),
        ({"rows": 0, "schema": "shard", "min_id": "a", "max_id": "b"}, "min_id and max_id"),
        ({"min_id": 3}, "min_id must be"),
    ],
)
def test_a_bad_file_entry_is_named(changes: dict[str, Any], message: str) -> None:
    value = json.loads(DATA)
    value["files"][0].update(changes)
    with pytest.raises(ReleaseError, match=message):
        parse_release(canonical_json(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemas": {"release": "2.0"}}, r"'release' has version 2\.0, this curate reads 1\.2"),
        ({"schemas": {"release": "2.0"}, "later": 1}, r"'release' has version 2\.0"),
        ({"schemas": {"release": "1.0", "shard": "3.1"}}, r"'shard' has version 3\.1"),
        ({"schemas": {"manifest": "1.0"}}, "version of 'release'"),
        ({"tool": {}}, "tool must name its version"),
        ({"name": "../x"}, "name must match"),
        ({"parents": ["x"]}, "parents must be 64"),
        ({"splits": {"train": -1}}, "splits: train must be"),
        ({"cells": {"c": {"target": 1}}}, "cells: c: must have target and actual"),
        ({"cells": {"c": {"target": 1, "actual": 1.5}}}, "cells: c: actual must be"),
    ],
)
def test_a_bad_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        parse_release(_edited(**changes))


def test_files_are_sorted_and_none_is_twice() -> None:
    for files in (RELEASE.files[::-1], (RELEASE.files[0],) * 2):
        with pytest.raises(ReleaseError, match="sorted by path, none twice"):
            dataclasses.replace(RELEASE, files=files)


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_release_is_refused(length: int) -> None:
    with pytest.raises(ReleaseError):
        parse_release(DATA[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA.replace(b'"seed":7', b'"seed":7,"seed":8'), "'seed' is there twice"),
        (DATA.replace(b"1.5", b"NaN"), "finite, got NaN"),
        (DATA.replace(b"1.5", b"1e999"), "finite, got 1e999"),
        (DATA.replace(b'"seed":7', b'"seed": 7'), "canonical form"),
        (DATA + b"\n", "canonical form"),
        (DATA + b"}", "not valid JSON"),
        (b"\xff" + DATA, "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b" " * ((64 << 20) + 1), "at most"),
    ],
    ids=range(10),
)
def test_what_is_no_canonical_json_object_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        parse_release(data)


def test_deep_inputs_are_an_error_not_a_crash() -> None:
    with pytest.raises(ReleaseError):
        parse_release(DATA.replace(b"1.5", b"[" * 900 + b"]" * 900))


def test_a_written_release_is_read_and_writing_it_again_is_a_success(tmp_path: Path) -> None:
    folder = tmp_path / "releases" / "people-1"
    write_release(folder, DATA)
    write_release(folder, DATA)
    assert read_release(folder) == RELEASE
    assert [path.name for path in folder.iterdir()] == ["release.json"]


def test_another_release_is_never_overwritten_and_its_fingerprint_is_told(tmp_path: Path) -> None:
    write_release(tmp_path, DATA)
    with pytest.raises(ReleaseExistsError) as caught:
        write_release(tmp_path, render_release(dataclasses.replace(RELEASE, seed=8)))
    assert caught.value.fingerprint == fingerprint(DATA)
    assert read_release(tmp_path) == RELEASE
    assert [path.name for path in tmp_path.iterdir()] == ["release.json"]


def test_an_invalid_release_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError):
        write_release(tmp_path, DATA[:-1])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(handle: int) -> None:
        raise OSError(28, f"no space left for {handle}")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        write_release(tmp_path, DATA)
    assert not list(tmp_path.iterdir())


def test_an_absent_release_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"release\.json cannot be read"):
        read_release(tmp_path)
