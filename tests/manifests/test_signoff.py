import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.release import Counts, Release, canonical_json, fingerprint, render_release, sha256_hex, write_release
from manifests.signoff import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    ReviewLogError,
    UnsignedError,
    check_signed,
    count_events,
    event_name,
    parse_instant,
    render_instant,
    review_folder,
    signoff_of,
)

AT = "2026-03-01T12:00:00Z"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release without files."""
    place = tmp_path / "releases" / "people"
    write_release(place, render_release(_release(0)))
    return place


def _release(seed: int) -> Release:
    return Release(
        name="people",
        schemas={"release": "1.0"},
        config_fingerprint="0" * 64,
        parents=(),
        run_id="run",
        tool={"version": "0"},
        packages={},
        seed=seed,
        inputs={},
        models=(),
        counts=Counts(read=0, undecodable=0, duplicate=0, not_sampled=0, dropped=0, held=0, kept=0),
        splits={},
        cells={},
        files=(),
        erasures=(),
    )


def _log(folder: Path) -> Path:
    return review_folder(folder, fingerprint((folder / "release.json").read_bytes()))


def _write(folder: Path, *types: str, **changes: Any) -> Path:
    """Append events to the log as the module's docstring describes them; `changes` go into the last one."""
    log = _log(folder)
    log.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(types):
        seq = len(list(log.glob("*.json")))
        before = log / f"{seq - 1:020d}.json"
        event = {
            "seq": seq,
            "prev": sha256_hex(before.read_bytes()) if seq else None,
            "release": log.name,
            "type": kind,
            "reviewer": {"name": "Ada", "how_known": "not verified"},
            "tool": "test 1",
            "at": AT,
        }
        event |= changes if number == len(types) - 1 else {}
        (log / f"{seq:020d}.json").write_bytes(canonical_json(event))
    return log


def test_a_release_without_a_log_is_unsigned(folder: Path) -> None:
    assert signoff_of(folder) is None
    with pytest.raises(UnsignedError, match=f"{_log(folder).name} has no sign-off: no event signs it off"):
        check_signed(folder)


def test_the_last_signoff_holds(folder: Path) -> None:
    _write(folder, "comment", "signoff", "sample_decision")
    found = check_signed(folder)
    assert found == signoff_of(folder)
    assert (found.reviewer, found.how_known, found.seq) == ("Ada", "not verified", 1)
    assert found.at == datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("kind", EVENT_TYPES[:5])
def test_an_event_of_any_other_type_leaves_a_signoff_as_it_is(folder: Path, kind: str) -> None:
    _write(folder, kind, "signoff", kind)
    assert check_signed(folder).seq == 1


def test_a_withdrawal_ends_a_signoff_and_another_signoff_renews_it(folder: Path) -> None:
    _write(folder, "signoff", "withdraw_signoff")
    assert signoff_of(folder) is None
    with pytest.raises(UnsignedError, match="event 1 withdrew it"):
        check_signed(folder)
    _write(folder, "signoff")
    assert check_signed(folder).seq == 2


def test_a_signoff_expires(folder: Path) -> None:
    _write(folder, "signoff", expires_at="2026-06-01T00:00:00Z")
    assert check_signed(folder, now=datetime(2026, 5, 31, 23, 59, tzinfo=UTC)).seq == 0
    with pytest.raises(UnsignedError, match="event 0 expired at 2026-06-01"):
        check_signed(folder, now=datetime(2026, 6, 1, tzinfo=UTC))


def test_a_changed_release_loses_its_signoff(folder: Path) -> None:
    _write(folder, "signoff")
    (folder / "release.json").write_bytes(render_release(_release(1)))
    assert signoff_of(folder) is None


def test_the_log_of_another_release_signs_nothing(folder: Path) -> None:
    log = _write(folder, "comment", "signoff")
    (folder / "release.json").write_bytes(render_release(_release(1)))
    log.rename(_log(folder))
    with pytest.raises(ReviewLogError, match="event 0 must have release"):
        signoff_of(folder)


def _edit(log: Path) -> None:
    path = log / f"{1:020d}.json"
    path.write_bytes(path.read_bytes().replace(b"Ada", b"Eve"))


def _reorder(log: Path) -> None:
    one, two = (log / f"{seq:020d}.json" for seq in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _insert(log: Path) -> None:
    for seq in (3, 2):
        (log / f"{seq:020d}.json").rename(log / f"{seq + 1:020d}.json")
    (log / f"{2:020d}.json").write_bytes((log / f"{1:020d}.json").read_bytes())


def _link(log: Path) -> None:
    path = log / f"{2:020d}.json"
    path.rename(log / "elsewhere")
    path.symlink_to(log / "elsewhere")


def _pipe(log: Path) -> None:
    path = log / f"{2:020d}.json"
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "seq"),
    [
        (_edit, 2),  # the event after it no longer fits
        (_reorder, 1),
        (_insert, 2),
        (_link, 2),
        (_pipe, 2),
        (lambda log: (log / f"{1:020d}.json").unlink(), 1),
        (lambda log: (log / f"{0:020d}.json").unlink(), 0),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b""), 1),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b"\xff"), 1),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b"[" * 100_000), 1),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b" " * (MAX_EVENT_BYTES + 1)), 1),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b'{"a":1,"a":1}'), 1),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b'{"a":NaN}'), 1),
        (lambda log: (log / f"{1:020d}.json").write_bytes(b"[]"), 1),
    ],
)
def test_a_broken_chain_names_its_event_and_voids_the_signoff(
    folder: Path, damage: Callable[[Path], object], seq: int
) -> None:
    log = _write(folder, "comment", "signoff", "comment", "signoff")
    assert check_signed(folder).seq == 3
    damage(log)
    with pytest.raises(ReviewLogError, match=f"event {seq} ") as caught:
        signoff_of(folder)
    assert caught.value.seq == seq
    with pytest.raises(UnsignedError, match=f"event {seq} .*let a person review"):
        check_signed(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq": 5}, "event 1 must have seq 1, got 5"),
        ({"seq": True}, "event 1 must have seq 1, got True"),
        ({"prev": None}, "event 1 must have prev"),
        ({"type": "approve"}, "event 1 must have a type of"),
        ({"type": ["signoff"]}, "event 1 must have a type of"),
        ({"reviewer": {"name": "", "how_known": "x"}}, "event 1 must name its reviewer"),
        ({"reviewer": "Ada"}, "event 1 must name its reviewer"),
        ({"tool": ""}, "event 1 must name its tool"),
        ({"at": "2026-03-01 12:00"}, "event 1 must have at in UTC"),
        ({"at": "2026-13-01T12:00:00Z"}, "event 1 must have at in UTC"),
        ({"expires_at": 5}, "event 1 must have expires_at in UTC"),
    ],
)
def test_a_malformed_event_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    _write(folder, "comment", "signoff", **changes)
    with pytest.raises(ReviewLogError, match=message):
        signoff_of(folder)


def test_unfinished_writes_and_further_fields_do_no_harm(folder: Path) -> None:
    log = _write(folder, "signoff", conditions="none", note="good")
    (log / ".event-1.tmp").write_bytes(b"half")
    (log / "1.json").write_bytes(b"no event's name")
    assert check_signed(folder).seq == 0


def test_a_release_elsewhere_has_its_log_by_the_same_rule(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    write_release(folder, render_release(_release(0)))
    assert _write(folder, "signoff").parent == tmp_path / "a" / "reviews"
    assert check_signed(folder).seq == 0


def test_a_rejection_signs_nothing_and_ends_an_earlier_signoff(folder: Path) -> None:
    _write(folder, "signoff", verdict="approved")
    assert signoff_of(folder) is not None
    _write(folder, "signoff", verdict="rejected")
    assert signoff_of(folder) is None
    with pytest.raises(UnsignedError, match="event 1 has the verdict 'rejected'"):
        check_signed(folder)


def test_a_release_that_was_exchanged_is_not_signed(folder: Path) -> None:
    _write(folder, "signoff")
    with pytest.raises(UnsignedError, match="exchanged while it was read"):
        check_signed(folder, fingerprint=64 * "0")


def test_events_that_a_listing_missed_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _write(folder, "comment", "comment", "signoff")
    real = os.scandir

    class Late:
        """A listing that was begun before event 1 was written, and ended after event 2 was."""

        def __init__(self, path: Path) -> None:
            self.found = [entry for entry in real(path) if entry.name != event_name(1)]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.found

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Late)
    assert count_events(log) == 3
    assert check_signed(folder).seq == 2


@given(st.datetimes(), st.integers(-1439, 1439))
def test_an_instant_is_read_as_it_was_written_whatever_its_time_zone(naive: datetime, minutes: int) -> None:
    instant = naive.replace(tzinfo=UTC)
    try:
        elsewhere = instant.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:
        return
    assert render_instant(elsewhere) == render_instant(instant)
    assert parse_instant(render_instant(elsewhere)) == instant
    with pytest.raises(ValueError, match="needs a time zone"):
        render_instant(naive)
