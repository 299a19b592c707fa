"""Laws of tombstones and of the list of what must not come back."""

import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.erasures import (
    FOLDER,
    KEY,
    SUPPRESSED,
    Erasure,
    ErasureError,
    Replaced,
    Suppression,
    forebears,
    keyed_hash,
    make_key,
    parse_erasure,
    parse_suppression,
    read_erasures,
    read_key,
    read_suppression,
    render_erasure,
    replacements,
    sweep,
    withdraw_erasure,
    write_erasure,
    write_suppression,
)

AT = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
HASHES = st.binary(min_size=32, max_size=32)
WORDS = st.integers(0, 2**64 - 1)


def erasure(number: int = 0, **changes: object) -> Erasure:
    facts = {"state": "done", "at": AT, "reason": "a person asked", "count": 3, "keyed": ("ab",)}
    return Erasure(id=f"e-{number:016x}", **{**facts, **changes})  # type: ignore[arg-type]


# The list -------------------------------------------------------------------------------------------------------------


@given(
    sources=st.frozensets(HASHES, max_size=5),
    contents=st.frozensets(HASHES, max_size=5),
    dhashes=st.frozensets(WORDS, max_size=5),
    other=HASHES,
)
def test_a_list_knows_what_was_put_in_and_nothing_else(
    sources: frozenset[bytes], contents: frozenset[bytes], dhashes: frozenset[int], other: bytes
) -> None:
    listed = Suppression(key=b"k" * 32).joined(sources, contents, dhashes)
    again = parse_suppression(listed.render(), b"k" * 32, "list")
    assert again.render() == listed.render()
    for source in sources:
        assert again.has_source(source)
    for content in contents:
        assert again.has_frame(content, 0, -1)
    for dhash in dhashes:
        assert again.has_frame(bytes(32), dhash, 0)
    assert again.has_source(other) == (other in sources)
    assert again.has_frame(other, 0, -1) == (other in contents)


@given(dhash=WORDS, flips=st.sets(st.integers(0, 63), max_size=8))
def test_a_frame_comes_back_only_if_more_bits_differ_than_allowed(dhash: int, flips: set[int]) -> None:
    listed = Suppression(key=b"k" * 32).joined([], [], [dhash])
    seen = dhash ^ sum(1 << bit for bit in flips)
    for distance in range(5):
        assert listed.has_frame(bytes(32), seen, distance) == (len(flips) <= distance)


@given(first=st.frozensets(HASHES), second=st.frozensets(HASHES), words=st.frozensets(WORDS))
def test_lists_are_joined_in_any_order_to_equal_bytes(
    first: frozenset[bytes], second: frozenset[bytes], words: frozenset[int]
) -> None:
    empty = Suppression(key=b"k" * 32)
    one = empty.joined(first, second, words).joined(second, first, [])
    other = empty.joined(second, first, []).joined(first, second, words)
    assert one.render() == other.render()


@given(first=st.frozensets(HASHES), second=st.frozensets(HASHES), words=st.frozensets(WORDS), more=st.frozensets(WORDS))
def test_what_an_erasure_put_on_the_list_is_what_taking_it_off_removes(
    first: frozenset[bytes], second: frozenset[bytes], words: frozenset[int], more: frozenset[int]
) -> None:
    empty = Suppression(key=b"k" * 32)
    before, put = empty.joined(first, second, words), empty.joined(second, first, more)
    added = put.less(before)
    assert before.more(added).render() == before.more(put).render()
    assert before.more(put).less(added).render() == before.render()


def test_an_empty_list_is_no_file(tmp_path: Path) -> None:
    empty = Suppression(key=make_key(tmp_path))
    write_suppression(tmp_path, empty.joined([], [], [7]))
    write_suppression(tmp_path, empty)
    assert not (tmp_path / FOLDER / SUPPRESSED).exists()
    assert read_suppression(tmp_path) is None


def test_only_a_planned_erasure_can_be_withdrawn(tmp_path: Path) -> None:
    planned = erasure(state="planned", target={"samples": {}})
    write_erasure(tmp_path, planned)
    with pytest.raises(ErasureError, match="is done: only a planned one"):
        withdraw_erasure(tmp_path, erasure())
    withdraw_erasure(tmp_path, planned)
    assert read_erasures(tmp_path) == ()


def test_the_files_tell_nothing_of_what_they_list(tmp_path: Path) -> None:
    source, content = os.urandom(32), os.urandom(32)
    listed = Suppression(key=make_key(tmp_path)).joined([source], [content], [7])
    write_suppression(tmp_path, listed)
    data = (tmp_path / FOLDER / SUPPRESSED).read_bytes()
    for value in (source, content):
        assert value not in data
        assert value.hex().encode() not in data


def test_equal_values_of_two_kinds_have_other_hashes() -> None:
    assert keyed_hash(b"k", "source", b"x") != keyed_hash(b"k", "content", b"x") != keyed_hash(b"l", "content", b"x")


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    assert len(key) == 32
    assert make_key(tmp_path) == read_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / FOLDER / KEY).stat().st_mode) == 0o600


def test_nothing_erased_is_no_list(tmp_path: Path) -> None:
    assert read_suppression(tmp_path) is None
    assert read_erasures(tmp_path) == ()


def test_a_list_without_its_key_is_refused_and_no_new_key_is_made(tmp_path: Path) -> None:
    write_suppression(tmp_path, Suppression(key=make_key(tmp_path)).joined([b"s" * 32], [], []))
    (tmp_path / FOLDER / KEY).unlink()
    with pytest.raises(ErasureError, match=r"key is missing.*put it back"):
        read_suppression(tmp_path)
    with pytest.raises(ErasureError, match="key is missing"):
        make_key(tmp_path)


def test_a_list_of_another_key_is_refused(tmp_path: Path) -> None:
    write_suppression(tmp_path, Suppression(key=make_key(tmp_path)).joined([], [], [7]))
    (tmp_path / FOLDER / KEY).write_bytes(bytes(32))
    with pytest.raises(ErasureError, match="another key"):
        read_suppression(tmp_path)
    (tmp_path / FOLDER / KEY).write_bytes(b"short")
    with pytest.raises(ErasureError, match="must have 32 bytes, has 5"):
        read_suppression(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format":1}', b'{"format":2}', b'{"format":1,"sources":3}'])
def test_a_damaged_list_is_refused_with_its_name(data: bytes) -> None:
    with pytest.raises(ErasureError, match="the-list"):
        parse_suppression(data, b"k" * 32, "the-list")


# Tombstones -----------------------------------------------------------------------------------------------------------


def test_an_erasure_is_read_as_it_was_written_and_by_time(tmp_path: Path) -> None:
    replaced = (Replaced(name="r-1", fingerprint="f" * 64, parents=("e" * 64,), successor=None),)
    late = erasure(1, replaced=replaced)
    early = erasure(2, at=AT - timedelta(days=1), state="planned", target={"samples": {"a": "b"}})
    write_erasure(tmp_path, late)
    write_erasure(tmp_path, early)
    assert read_erasures(tmp_path) == (early, late)
    assert replacements(tmp_path) == {"f" * 64: replaced[0]}


def test_done_nothing_is_named_any_more(tmp_path: Path) -> None:
    planned = erasure(state="planned", target={"samples": {"secret": ""}})
    write_erasure(tmp_path, planned)
    assert b"secret" in (tmp_path / FOLDER / f"{planned.id}.json").read_bytes()
    write_erasure(tmp_path, replace(planned, state="done", target={}))
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{planned.id}.json"]
    assert b"secret" not in (tmp_path / FOLDER / f"{planned.id}.json").read_bytes()


def test_a_time_is_kept_in_utc() -> None:
    there = erasure(at=AT.astimezone(timezone(timedelta(hours=9))))
    assert json.loads(render_erasure(there))["at"] == "2026-03-01T12:30:00Z"
    assert parse_erasure(render_erasure(there), "x").at == AT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "gone"}, "state must be one of"),
        ({"at": AT.replace(tzinfo=None)}, "time zone"),
        ({"at": AT.replace(microsecond=1)}, "whole seconds"),
        ({"reason": ""}, "reason must be one line"),
        ({"reason": "two\nlines"}, "reason must be one line"),
        ({"reason": "x" * 501}, "reason must be one line"),
        ({"count": -1}, "count must be"),
        ({"state": "planned"}, "must be named until it is done"),
        ({"target": {"a": 1}}, "must be named until it is done"),
    ],
)
def test_an_erasure_that_breaks_a_rule_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ErasureError, match=message):
        erasure(**change)


def test_a_damaged_tombstone_is_refused_with_its_name(tmp_path: Path) -> None:
    write_erasure(tmp_path, erasure())
    path = tmp_path / FOLDER / f"{erasure().id}.json"
    for data in (b"", b"[]", b"{}", path.read_bytes()[:-2], path.read_bytes().replace(b'"count":3', b'"count":"3"')):
        path.write_bytes(data)
        with pytest.raises(ErasureError, match=path.name):
            read_erasures(tmp_path)


def test_files_of_other_names_are_no_tombstones(tmp_path: Path) -> None:
    write_erasure(tmp_path, erasure())
    make_key(tmp_path)
    (tmp_path / FOLDER / "e-notes.json").write_text("no")
    assert len(read_erasures(tmp_path)) == 1


def test_a_write_that_was_killed_is_swept(tmp_path: Path) -> None:
    write_erasure(tmp_path, erasure())
    (tmp_path / FOLDER / f".{erasure().id}.json.77.tmp").write_text("secret")
    sweep(tmp_path)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{erasure().id}.json"]


def test_a_chain_goes_on_behind_erased_releases() -> None:
    """A <- B, erased twice: A' <- A'' and B' <- B''; what B'' comes from is A'' too."""

    def gone(name: str, parents: tuple[str, ...], successor: str) -> Replaced:
        return Replaced(name=name, fingerprint=name, parents=parents, successor=successor)

    listed = [gone("A", (), "A1"), gone("B", ("A",), "B1"), gone("A1", ("A",), "A2"), gone("B1", ("B",), "B2")]
    replaced = {one.fingerprint: one for one in listed}
    assert {"A2", "A1", "A"} <= forebears(("B1",), replaced)
    assert "B2" not in forebears(("A1",), replaced)
    assert forebears(("x",), replaced) == {"x"}


def test_a_list_holds_each_hash_once() -> None:
    listed = Suppression(key=b"k" * 32).joined([], [], [3, 1, 2]).joined([], [], [2, 3])
    assert np.array_equal(listed.dhashes, np.array([1, 2, 3], np.uint64))
