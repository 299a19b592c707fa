import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import disk
from manifests.release import canonical_json, sha256_hex
from manifests.signoff import event_name
from review.log import Event, EventError, FrozenListError, Reviewer, ReviewLog, ReviewLogError

FINGERPRINT = "f" * 64
ADA = Reviewer(name="Ada")
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def sample(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def log(tmp_path: Path) -> ReviewLog:
    return another(tmp_path)


def another(root: Path) -> ReviewLog:
    return ReviewLog(root / "reviews" / FINGERPRINT, FINGERPRINT)


def comment(log: ReviewLog, text: str = "fine", number: int = 0) -> int:
    return log.append("comment", reviewer=ADA, target={"ids": [sample(number)]}, text=text).seq


def leftovers(log: ReviewLog) -> list[str]:
    return sorted(path.name for path in log.folder.iterdir() if not path.name.endswith((".json", ".bin", ".sig")))


# What is written is what is read


def test_an_event_is_read_as_it_was_written(log: ReviewLog, tmp_path: Path) -> None:
    written = log.append(
        "sample_decision",
        reviewer=Reviewer(name="Åsa Öberg", how_known="shown a card"),
        at=AT.astimezone(timezone(timedelta(hours=9))),
        target={"ids": [sample(1), sample(2)]},
        verdict="reject",
        reasons=["hand missing"],
        adjudicates=False,
    )
    (read,) = another(tmp_path).events()
    assert read == written
    assert (read.seq, read.kind, read.at, read.ids) == (0, "sample_decision", AT, [sample(1), sample(2)])
    data = (log.folder / event_name(0)).read_bytes()
    assert read.sha256 == sha256_hex(data)
    assert canonical_json(json.loads(data)) == data
    assert json.loads(data)["at"] == "2026-03-01T12:00:00Z"
    assert leftovers(log) == []


def test_an_empty_log_has_no_head_and_leaves_no_folder(log: ReviewLog) -> None:
    assert list(log.events()) == []
    assert (log.head().seq, log.head().sha256) == (-1, None)
    assert log.verify() == []
    assert not log.folder.exists()


def test_each_event_bears_the_sha256_of_the_one_before(log: ReviewLog) -> None:
    for number in range(4):
        comment(log, f"{number}")
    for seq in range(1, 4):
        event = json.loads((log.folder / event_name(seq)).read_bytes())
        assert event["prev"] == sha256_hex((log.folder / event_name(seq - 1)).read_bytes())
    assert (log.head().seq, log.head().sha256) == (3, sha256_hex((log.folder / event_name(3)).read_bytes()))


def test_two_logs_of_one_folder_see_each_other(log: ReviewLog, tmp_path: Path) -> None:
    other = another(tmp_path)
    assert [comment(log), comment(other), comment(other), comment(log)] == [0, 1, 2, 3]
    assert log.events() == other.events()
    assert log.verify() == other.verify() == []


def test_threads_share_a_log(log: ReviewLog) -> None:
    def write(writer: int) -> None:
        for number in range(10):
            comment(log, f"{writer} {number}")

    threads = [threading.Thread(target=write, args=[writer]) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [event.fields["text"] for event in log.events()]
    assert sorted(texts) == sorted(f"{writer} {number}" for writer in range(6) for number in range(10))
    for writer in range(6):  # each thread's own in its order
        assert [text for text in texts if text.startswith(f"{writer} ")] == [f"{writer} {n}" for n in range(10)]


def test_the_order_is_that_of_the_numbers_whatever_the_clocks_say(log: ReviewLog) -> None:
    for days in (5, -4000, 0, 3):
        log.append("comment", reviewer=ADA, at=AT + timedelta(days=days), target={"ids": [sample(0)]}, text=f"{days}")
    assert [event.fields["text"] for event in log.events()] == ["5", "-4000", "0", "3"]
    assert log.verify() == []


def test_an_instant_without_a_time_zone_is_refused(log: ReviewLog) -> None:
    with pytest.raises(EventError, match="needs a time zone"):
        log.append("comment", reviewer=ADA, at=datetime(2026, 3, 1), target={"ids": [sample(0)]}, text="x")
    assert list(log.events()) == []


# Four writers, killed at random times


def _write_until_killed(root: Path, writer: int, acknowledged: int) -> None:
    log = another(root)
    for number in range(1_000_000):
        text = f"{writer} {number}"
        seq = comment(log, text, number)
        os.write(acknowledged, f"{seq} {text}\n".encode())


def _forked(root: Path, writer: int, acknowledged: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _write_until_killed(root, writer, acknowledged)
    finally:
        os._exit(1)


@pytest.mark.slow
def test_killed_writers_lose_no_acknowledged_event(tmp_path: Path) -> None:
    rng, kills, writers = random.Random(7), 0, 4
    path = tmp_path / "acknowledged"
    acknowledged = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    running = [_forked(tmp_path, number, acknowledged) for number in range(writers)]
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.02, 0.3))
        place = rng.randrange(len(running))
        os.kill(running[place], signal.SIGKILL)
        assert os.waitpid(running[place], 0)[1] == signal.SIGKILL  # it did not fail by itself
        kills += 1
        running[place] = _forked(tmp_path, writers, acknowledged)
        writers += 1
    for child in running:
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(acknowledged)

    log = another(tmp_path)
    assert log.verify() == []
    said = {event.seq: event.fields["text"] for event in log.events()}
    told = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    assert kills > 20
    assert len(told) > 20
    assert [seq for seq, text in told.items() if said.get(int(seq)) != text] == []  # none lost
    assert len(set(said.values())) == len(said)  # none twice
    assert len(said) - len(told) <= kills + 4  # at most one more per kill

    left = leftovers(log)
    assert disk.sweep(log.folder) == 0
    assert leftovers(log) == left  # they may be of live ones
    for name in left:
        os.utime(log.folder / name, (time.time() - 7200,) * 2)
    comment(another(tmp_path))
    assert leftovers(log) == []


def test_the_sweeper_removes_what_is_older_than_an_hour_and_nothing_else(log: ReviewLog) -> None:
    comment(log)
    old, young, foreign = (log.folder / name for name in (".a.json-1-x.tmp", ".b.json-2-y.tmp", "notes.tmp"))
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (time.time() - 3700,) * 2)
    os.utime(young, (time.time() - 3500,) * 2)
    assert disk.sweep(log.folder) == 1
    assert leftovers(log) == [young.name, foreign.name]


def test_a_writer_whose_file_was_swept_writes_it_again(log: ReviewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    link, lost = os.link, []

    def swept(source: Path, target: Path) -> None:
        if not lost:
            lost.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", swept)
    comment(log)
    assert len(lost) == 1
    assert log.verify() == []
    assert leftovers(log) == []


def test_a_lost_answer_of_a_network_disk_makes_no_second_event(log: ReviewLog, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def deaf(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", deaf)
    assert [comment(log), comment(log)] == [0, 1]
    assert len(log.events()) == 2


def test_who_loses_a_race_takes_the_next_number(
    log: ReviewLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other = os.link, another(tmp_path)

    def overtaken(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        comment(other, "first")
        link(source, target)

    monkeypatch.setattr(os, "link", overtaken)
    assert comment(log, "second") == 1
    assert [event.fields["text"] for event in log.events()] == ["first", "second"]
    assert log.verify() == []


def test_a_check_is_asked_again_with_the_events_of_who_was_faster(
    log: ReviewLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other, asked = os.link, another(tmp_path), []
    comment(log)

    def overtaken(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        comment(other, "faster")
        link(source, target)

    def check(events: Sequence[Event]) -> None:
        asked.append(len(events))
        if any(event.fields["text"] == "faster" for event in events):
            raise KeyError("others were faster")

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(KeyError, match="faster"):
        log.append("comment", reviewer=ADA, target={"ids": [sample(0)]}, text="slow", check=check)
    assert asked == [1, 2]
    assert [event.fields["text"] for event in log.events()] == ["fine", "faster"]


def test_samples_are_frozen_with_the_event_that_is_about_them_or_not_at_all(log: ReviewLog) -> None:
    body = {"reviewer": ADA, "target": {"query": {}}, "freeze": [sample(2), sample(1)], "reasons": []}

    def refuse(_: Sequence[Event]) -> None:
        raise KeyError("no")

    with pytest.raises(EventError, match="verdict"):
        log.append("bulk_decision", verdict="maybe", **body)
    with pytest.raises(KeyError):
        log.append("bulk_decision", verdict="approve", check=refuse, **body)
    assert not log.folder.exists()
    target = log.append("bulk_decision", verdict="approve", **body).fields["target"]
    assert (target["count"], log.frozen(target["ids_sha256"])) == (2, [sample(1), sample(2)])
    about = {"kind": "overlap", "size": 1, "seed": 0, "blind": True, "of_task": 0}
    with pytest.raises(EventError, match="must be the seq of a task"):
        log.append("task", reviewer=ADA, target={"query": {}}, freeze=[sample(9)], task=about, title="again")
    assert len(list(log.folder.glob("ids-*"))) == 1


# What is damaged is named


def _edit(folder: Path) -> None:
    path = folder / event_name(1)
    path.write_bytes(path.read_bytes().replace(b"Ada", b"Eve"))


def _swap(folder: Path) -> None:
    one, two = folder / event_name(1), folder / event_name(2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _insert(folder: Path) -> None:
    for seq in (3, 2):
        (folder / event_name(seq)).rename(folder / event_name(seq + 1))
    (folder / event_name(2)).write_bytes((folder / event_name(1)).read_bytes())


def _delete(folder: Path) -> None:
    (folder / event_name(1)).unlink()


@pytest.mark.parametrize(("damage", "seq"), [(_edit, 2), (_swap, 1), (_insert, 2), (_delete, 1)])
def test_a_damaged_event_is_named_by_its_number(
    log: ReviewLog, tmp_path: Path, damage: Callable[[Path], None], seq: int
) -> None:
    for number in range(4):
        comment(log, f"{number}")
    damage(log.folder)
    (problem,) = log.verify()
    assert f"event {seq} " in problem
    with pytest.raises(ReviewLogError, match=f"event {seq} "):
        another(tmp_path).append("comment", reviewer=ADA, target={"ids": [sample(0)]}, text="more")
    assert f"event {seq} " in another(tmp_path).verify()[0]


@pytest.mark.parametrize("lost", [1, 2])
def test_the_loss_of_the_last_events_shows_to_who_has_read_them(log: ReviewLog, tmp_path: Path, lost: int) -> None:
    for number in range(3):
        comment(log, f"{number}")
    for seq in range(3 - lost, 3):
        (log.folder / event_name(seq)).unlink()
    assert another(tmp_path).verify() == []  # the chain alone cannot show it
    assert f"event {3 - lost} was edited or removed" in log.verify()[0]
    with pytest.raises(ReviewLogError, match="event 2 was edited or removed"):
        log.events()
    with pytest.raises(ReviewLogError):
        comment(log)


def test_the_last_event_edited_shows_to_who_has_read_it(log: ReviewLog) -> None:
    comment(log)
    path = log.folder / event_name(0)
    path.write_bytes(path.read_bytes().replace(b"Ada", b"Eve"))
    with pytest.raises(ReviewLogError, match="event 0 was edited or removed"):
        log.head()
    assert "event 0 " in log.verify()[0]


def test_an_event_of_another_tool_that_lacks_a_field_is_named(log: ReviewLog) -> None:
    comment(log)
    event = json.loads((log.folder / event_name(0)).read_bytes())
    event |= {"seq": 1, "prev": log.head().sha256, "type": "sample_decision", "verdict": "maybe"}
    (log.folder / event_name(1)).write_bytes(canonical_json(event))
    with pytest.raises(ReviewLogError, match=r"event 1 is no sample_decision: verdict must be one of .* got 'maybe'"):
        log.events()


def test_a_signature_of_no_event_is_a_problem(log: ReviewLog) -> None:
    comment(log)
    (log.folder / event_name(1)).with_suffix(".sig").write_bytes(b"x")
    (problem,) = log.verify()
    assert "event 1 is missing, though its signature is there" in problem


# Frozen lists


ids = st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=40)


@given(ids, st.randoms())
@settings(max_examples=15)
def test_a_frozen_list_is_a_sorted_set_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[bytes], rng: random.Random
) -> None:
    log = another(tmp_path_factory.mktemp("log"))
    texts = [one.hex() for one in wanted]
    sha256 = log.freeze(texts)
    rng.shuffle(texts)
    assert log.freeze([*texts, texts[0]]) == sha256
    assert log.freeze(np.array(wanted, "S16")) == sha256
    assert log.frozen(sha256) == sorted(set(texts))
    path = log.folder / f"ids-{sha256}.bin"
    assert path.read_bytes() == b"".join(sorted(set(wanted)))
    assert sha256_hex(path.read_bytes()) == sha256


@pytest.mark.parametrize("wrong", [[], ["abc"], ["g" * 32], [" " * 32], ["ab " * 10 + "ab"] * 16])
def test_what_is_no_sample_id_is_not_frozen(log: ReviewLog, wrong: list[str]) -> None:
    with pytest.raises(EventError):
        log.freeze(wrong)
    assert not log.folder.exists()


def bulk(log: ReviewLog, sha256: str, count: int) -> int:
    target = {"query": {"decision": ["hold"]}, "ids_sha256": sha256, "count": count}
    return log.append("bulk_decision", reviewer=ADA, target=target, verdict="approve", reasons=[]).seq


def test_a_bulk_decision_needs_its_frozen_list(log: ReviewLog) -> None:
    sha256 = log.freeze([sample(1), sample(2)])
    with pytest.raises(EventError, match="that of its frozen list, 2, got 3"):
        bulk(log, sha256, 3)
    with pytest.raises(EventError, match="cannot be read"):
        bulk(log, "0" * 64, 2)
    assert bulk(log, sha256, 2) == 0
    assert log.verify() == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-16])


def _turn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[16:] + data[:16])


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize("damage", [_cut, _turn, _link, Path.unlink])
def test_a_damaged_frozen_list_is_named_with_its_event(log: ReviewLog, damage: Callable[[Path], None]) -> None:
    comment(log)
    sha256 = log.freeze([sample(1), sample(2)])
    bulk(log, sha256, 2)
    damage(log.folder / f"ids-{sha256}.bin")
    (problem,) = log.verify()
    assert "event 1: " in problem
    assert sha256 in problem
    with pytest.raises(FrozenListError, match="put back the original list"):
        log.frozen(sha256)


def test_a_name_that_fits_does_not_make_a_list_ascending(log: ReviewLog) -> None:
    comment(log)
    data = bytes.fromhex(sample(2) + sample(1))
    (log.folder / f"ids-{sha256_hex(data)}.bin").write_bytes(data)
    with pytest.raises(FrozenListError, match="must hold ascending ids"):
        log.frozen(sha256_hex(data))


# Tasks refer to what is there


def task(log: ReviewLog, ids: list[str], kind: str = "audit", **more: Any) -> int:
    target = {"query": {}, "ids_sha256": log.freeze(ids), "count": len(ids)}
    about = {"kind": kind, "size": len(ids), "seed": 3, "blind": True, **more}
    return log.append("task", reviewer=ADA, target=target, task=about, title="look").seq


def test_a_result_is_one_of_a_sample_that_was_drawn_for_a_task(log: ReviewLog) -> None:
    comment(log)
    audit = task(log, [sample(1), sample(2)])
    result = {"reviewer": ADA, "verdict": "good", "reasons": []}
    log.append("task_result", target={"ids": [sample(1)]}, task=audit, **result)
    with pytest.raises(EventError, match="was not drawn for task 1"):
        log.append("task_result", target={"ids": [sample(3)]}, task=audit, **result)
    for wrong in (0, 9):
        with pytest.raises(EventError, match=f"task must be the seq of a task in this log, got {wrong}"):
            log.append("task_result", target={"ids": [sample(1)]}, task=wrong, **result)
    again = task(log, [sample(1)], "overlap", of_task=audit)
    with pytest.raises(EventError, match=f"of_task must be the seq of an audit, got {again}"):
        task(log, [sample(1)], "overlap", of_task=again)
