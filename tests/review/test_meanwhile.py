"""What others do between the look of a reviewer and their decision: nothing is decided that they did not see."""

import dataclasses
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import review.change
from manifests import disk
from manifests.datacard import QUESTIONS
from manifests.release import FileEntry, canonical_json, read_release, render_release, sha256_hex, write_release
from manifests.signoff import UnsignedError, check_signed, event_name
from manifests.verify import verify_release
from review.event import Reviewer
from review.log import ReviewLog
from review.server import running
from review.verify import verify_review
from tests.review import releases
from tests.review.asked import ANSWERS, BY_ID, checked, good, refused, until
from tests.review.client import Client
from tests.review.test_change import sign

IDS = sorted(BY_ID)


def decide(client: Client, verdict: str, *ids: str, **more: Any) -> Any:
    return client.post("/api/decide", ids=list(ids), verdict=verdict, reasons=[], **more)


def before(name: str, then: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something just before the server calls a function of its own, once."""
    real = getattr(review.change, name)

    def called(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(review.change, name, real)
        then()
        return real(*arguments, **more)

    monkeypatch.setattr(review.change, name, called)


def held_decided(client: Client) -> None:
    held = good(client.get("/api/signoff"))["undecided_held"]
    good(client.post("/api/bulk", filter={"decision": ["hold"]}, verdict="hold", reasons=[], expect=held))


def edit(folder: Path, seq: int, old: bytes, new: bytes) -> Path:
    path = ReviewLog.open(folder).folder / event_name(seq)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


# Two at once


def test_a_bulk_decision_by_state_holds_for_the_samples_that_were_seen_alone(
    ada: Client, bob: Client, folder: Path
) -> None:
    query = {"state": ["approve"]}
    good(decide(ada, "approve", *IDS[:2]))
    seen = good(ada.get("/api/page", filter=query))
    assert (seen["total"], seen["head"]) == (2, 0)
    good(decide(bob, "reject", IDS[0]))
    good(decide(bob, "approve", IDS[5]))
    assert good(ada.get("/api/page", filter=query))["total"] == 2  # as many, but others
    body = {"filter": query, "verdict": "reject", "reasons": [], "expect": 2}
    refused(ada.post("/api/bulk", **body, head=seen["head"]), 409, "others decided meanwhile; look again")
    refused(ada.post("/api/bulk", **body), 400, "head must be int")
    refused(ada.post("/api/bulk", **body, head=99), 409, "head must be that of the page")
    assert len(ReviewLog.open(folder).events()) == 3
    good(bob.post("/api/comment", id=IDS[0], text="a comment moves no sample"))
    assert good(ada.post("/api/bulk", **body, head=2))["count"] == 2


def test_a_bulk_decision_is_refused_where_somebody_decides_while_it_is_written(
    ada: Client, bob: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = {"state": ["undecided"]}
    before("_append", lambda: good(decide(bob, "reject", IDS[0])), monkeypatch)
    answer = ada.post("/api/bulk", filter=query, verdict="approve", reasons=[], expect=len(IDS), head=-1)
    refused(answer, 409, "others decided meanwhile")
    assert [event.kind for event in ReviewLog.open(folder).events()] == ["sample_decision"]
    assert not list(ReviewLog.open(folder).folder.glob("ids-*"))


def test_of_two_who_settle_a_dispute_at_once_the_later_looks_again(
    url: str, ada: Client, bob: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, cyd = IDS[0], Client.of(url, "Cyd")
    good(decide(ada, "approve", one))
    good(decide(bob, "reject", one))
    head = good(cyd.get(f"/api/sample/{one}"))["head"]
    assert head == 1
    ruling = {"adjudicates": True, "head": head}
    before("_append", lambda: good(decide(bob, "reject", one, **ruling)), monkeypatch)
    refused(decide(cyd, "approve", one, **ruling), 409, f"others decided meanwhile on sample {one}")
    assert good(ada.get(f"/api/sample/{one}"))["state"] == "reject"
    assert len(ReviewLog.open(folder).events()) == 3


def test_a_dispute_that_arises_while_somebody_signs_off_stands_against_it(
    url: str, ada: Client, bob: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_decided(ada)
    checked(ada)
    good(decide(bob, "approve", IDS[0]))
    before("_expiry", lambda: good(decide(Client.of(url, "Cyd"), "reject", IDS[0])), monkeypatch)
    refused(sign(ada), 400, "1 samples are disputed")
    with pytest.raises(UnsignedError):
        check_signed(folder)


def test_an_overlap_takes_no_result_of_who_judged_the_sample_before(ada: Client, bob: Client) -> None:
    task = good(ada.post("/api/tasks", kind="audit", size=4, filter={"decision": ["keep"]}, title="audit"))
    for one in task["next"]:
        good(ada.post(f"/api/tasks/{task['seq']}/result", id=one, verdict="good", reasons=[]))
    again = good(bob.post("/api/tasks", kind="overlap", size=4, of_task=task["seq"], title="again"))
    assert set(again["next"]) == set(task["next"])
    body = {"id": task["next"][0], "verdict": "good", "reasons": []}
    assert good(ada.get(f"/api/tasks/{again['seq']}"))["next"] == []
    refused(ada.post(f"/api/tasks/{again['seq']}/result", **body), 409, "you judged sample")
    good(bob.post(f"/api/tasks/{again['seq']}/result", **body))


def test_who_has_not_judged_is_not_told_what_others_found(url: str, ada: Client, bob: Client) -> None:
    task = good(ada.post("/api/tasks", kind="audit", size=3, filter={"decision": ["keep"]}, title="audit"))
    for one in task["next"]:
        last = good(ada.post(f"/api/tasks/{task['seq']}/result", id=one, verdict="defect", reasons=[]))
    assert (last["hidden"], last["defects"]) == (False, 3)
    for who in (bob, Client.of(url)):
        for body in (good(who.get("/api/tasks"))[0], good(who.get(f"/api/tasks/{task['seq']}"))):
            assert (body["hidden"], body["defects"], body["rate"], body["interval"]) == (True, None, None, None)
            assert body["done"] == 3
    assert "next" not in good(bob.get("/api/tasks"))[0]
    assert good(Client.of(url).get(f"/api/tasks/{task['seq']}"))["next"] == []


# A log that is broken


def test_an_event_in_the_middle_that_is_edited_voids_the_sign_off_and_every_further_one(
    ada: Client, folder: Path
) -> None:
    good(decide(ada, "approve", IDS[0]))
    good(ada.post("/api/comment", id=IDS[0], text="x"))
    good(sign(ada, checklist={}, conditions="for tests only"))
    path = edit(folder, 0, b"approve", b"reject")
    refused(sign(ada, checklist={}, conditions="for tests only"), 409, "review log is broken")
    assert len(list(path.parent.glob("*.json"))) == 3
    assert checked(ada)["log"]["state"] == "problems"
    found = good(ada.get("/api/signoff"))
    assert found["state"] == "broken"
    assert "the review log is broken: " in found["why"]
    assert "event 1 " in found["why"]
    checks = {check["name"]: check for check in good(ada.get("/api/overview"))["checks"]}
    assert (checks["Review log"]["state"], checks["Sign-off"]["state"], checks["Integrity"]["state"]) == (
        "fail", "fail", "pass",
    )  # fmt: skip
    edit(folder, 0, b"reject", b"approve")
    assert checked(ada)["log"]["state"] == "good"
    assert good(ada.get("/api/signoff"))["state"] == "signed"
    checks = {check["name"]: check["state"] for check in good(ada.get("/api/overview"))["checks"]}
    assert (checks["Review log"], checks["Sign-off"]) == ("pass", "pass")


def test_a_server_and_the_command_agree_on_a_log_whose_frozen_list_is_damaged(folder: Path) -> None:
    with running(folder) as url:
        ada = Client.of(url, "Ada")
        held_decided(ada)
        good(sign(ada, checklist={}, conditions="for tests only"))
    (path,) = ReviewLog.open(folder).folder.glob("ids-*")
    path.write_bytes(path.read_bytes()[16:])
    assert verify_review(folder).signoff.state == "broken"
    with running(folder) as url:
        ada = Client.of(url, "Ada")
        found = good(ada.get("/api/signoff"))
        assert (found["state"], "frozen list" in found["why"]) == ("broken", True)
        for _ in range(2):
            refused(ada.post("/api/comment", id=IDS[0], text="x"), 409, "frozen list")
            refused(decide(ada, "approve", IDS[0]), 409, "frozen list")
    assert len(ReviewLog.open(folder).events()) == 2


def test_a_server_and_the_command_agree_on_a_signature_without_an_event(folder: Path) -> None:
    log = ReviewLog.open(folder)
    log.append("signoff", reviewer=Reviewer(name="Ada"), verdict="approved")
    (log.folder / event_name(7)).with_suffix(".sig").write_text("lost")
    assert verify_review(folder).signoff.state == "broken"
    with running(folder) as url:
        client = Client.of(url)
        found = until(lambda: good(client.get("/api/signoff")), lambda found: found["state"] != "signed")
    assert (found["state"], "event 7" in found["why"]) == ("broken", True)


def test_what_is_recorded_though_the_disk_does_not_confirm_it_is_not_said_to_be_refused(
    ada: Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good(decide(ada, "approve", IDS[0]))

    def unsure(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", unsure)
        answer = decide(ada, "reject", IDS[0])
    refused(answer, 507, "is written, but the disk does not confirm it")
    assert "nothing" not in answer.json["remedy"]
    assert len(ReviewLog.open(folder).events()) == 2


def test_a_change_that_is_refused_leaves_no_frozen_list(ada: Client, folder: Path) -> None:
    keep = {"decision": ["keep"]}
    n = good(ada.get("/api/page", filter=keep))["total"]
    refused(ada.post("/api/bulk", filter=keep, verdict="approve", reasons=["x" * 500], expect=n), 400, "reasons")
    refused(ada.post("/api/tasks", kind="audit", size=7, seed=1, title=""), 400, "title")
    refused(ada.post("/api/tasks", kind="party", size=9, seed=1, title="t"), 400, "kind")
    assert not ReviewLog.open(folder).folder.exists()


# Bytes that changed


def test_nothing_is_decided_on_bytes_that_changed_until_a_check_finds_them_good(ada: Client, folder: Path) -> None:
    task = good(ada.post("/api/tasks", kind="audit", size=4, filter={"decision": ["keep"]}, title="audit"))
    path = next((folder / "shards" / "train").glob("*.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    time.sleep(1.1)  # what was found of the files holds for a second

    def all_refused() -> None:
        for answer in (
            decide(ada, "approve", IDS[0]),
            ada.post("/api/bulk", filter={"decision": ["hold"]}, verdict="hold", reasons=[], expect=1),
            ada.post(f"/api/tasks/{task['seq']}/result", id=task["next"][0], verdict="good", reasons=[]),
            sign(ada, checklist={}, conditions="for tests only"),
        ):
            refused(answer, 409, path.name)
            assert answer.json["stale"] is True

    all_refused()
    assert "bytes" in checked(ada)["problems"][0]["message"]
    all_refused()
    told = good(ada.get("/api/signoff"))["why"]
    assert "review log" not in told
    checks = {check["name"]: check["told"] for check in good(ada.get("/api/overview"))["checks"]}
    assert told in checks["Sign-off"]
    assert len(ReviewLog.open(folder).events()) == 1
    path.write_bytes(data)
    assert checked(ada)["state"] == "good"
    assert good(decide(ada, "approve", IDS[0]))["states"] == {IDS[0]: "approve"}


# What is open


def test_a_retention_that_ended_stands_against_a_sign_off_and_fails_the_verification(tmp_path: Path) -> None:
    ended = {"retention_until": date(2020, 1, 1)}
    samples = [dataclasses.replace(one, row=ended if one.number < 6 else {}) for one in releases.figures(24)]
    folder = releases.write(tmp_path, samples)
    assert verify_release(folder) == []
    assert verify_release(folder, today=date(2020, 1, 1)) == []
    problems = verify_release(folder, today=date(2020, 1, 2))
    assert {problem.path.split("/")[0] for problem in problems} == {"manifest", "dropped"}
    told = "retention of {} samples ended on 2020-01-01: forget them or renew"
    dropped = sum(one.decision == "drop" for one in samples[:6])
    assert {problem.message for problem in problems} == {told.format(dropped), told.format(6 - dropped)}
    with running(folder) as url:
        ada = Client.of(url, "Ada")
        held_decided(ada)
        checked(ada)
        refused(sign(ada), 400, "Retention: 6 samples are kept longer")
        assert any("Retention" in text for text in good(ada.get("/api/signoff"))["unmet"])


def test_a_sign_off_with_conditions_records_what_was_open(ada: Client, folder: Path) -> None:
    found = good(sign(ada, checklist={**ANSWERS, QUESTIONS[0].key: ""}, conditions="for tests only"))
    recorded = ReviewLog.open(folder).events()[-1].fields["unmet"]
    assert any("held samples are undecided" in text for text in recorded)
    assert any("integrity" in text for text in recorded)
    assert any(QUESTIONS[0].question in text for text in recorded)
    assert found["signoff"]["unmet"] == recorded


def test_reasons_without_a_letter_are_left_out(ada: Client, folder: Path) -> None:
    good(ada.post("/api/decide", ids=[IDS[0]], verdict="approve", reasons=["  ", "blur", ""]))
    assert ReviewLog.open(folder).events()[0].fields["reasons"] == ["blur"]


def test_of_many_decisions_and_comments_on_a_sample_the_newest_are_told(ada: Client, folder: Path) -> None:
    log, target = ReviewLog.open(folder), {"ids": [IDS[0]]}
    for number in range(103):
        log.append("comment", reviewer=Reviewer(name="Eve"), target=target, text=f"{number}")
    for _ in range(101):
        log.append("sample_decision", reviewer=Reviewer(name="Eve"), target=target, verdict="hold", reasons=[])
    found = good(ada.get(f"/api/sample/{IDS[0]}"))
    assert (len(found["comments"]), found["comments_n"]) == (100, 103)
    assert (found["comments"][0]["text"], found["comments"][-1]["text"]) == ("3", "102")
    assert (len(found["history"]), found["history_n"], found["head"]) == (100, 101, 203)
    answer = good(ada.post("/api/comment", id=IDS[0], text="last"))
    assert (len(answer["comments"]), answer["comments_n"]) == (100, 104)


@pytest.mark.parametrize("data", [b'{"config": NaN}', b'{"config": 1e999}', b"[" * 100_000])
def test_documents_that_not_every_reader_takes_are_named_and_not_shown(tmp_path: Path, data: bytes) -> None:
    folder = releases.write(tmp_path, releases.figures(12))
    release = read_release(folder)

    def changed(entry: FileEntry) -> FileEntry:
        same = entry.path != "config.json"
        return entry if same else dataclasses.replace(entry, bytes=len(data), sha256=sha256_hex(data))

    (folder / "config.json").write_bytes(data)
    (folder / "release.json").unlink()
    files = tuple(changed(entry) for entry in release.files)
    write_release(folder, render_release(dataclasses.replace(release, files=files)))
    assert [(one.path, one.message[:20]) for one in verify_release(folder)] == [("config.json", "is no JSON that ever")]
    with running(folder) as url:
        assert good(Client.of(url).get("/api/integrity"))["run"]["config"] is None


def test_an_event_of_another_tool_may_say_more_than_ours(ada: Client, folder: Path) -> None:
    good(sign(ada, checklist={}, conditions="for tests only"))
    path = ReviewLog.open(folder).folder / event_name(0)
    event = json.loads(path.read_bytes())
    del event["unmet"]
    path.write_bytes(canonical_json({**event, "further": 1}))
    with running(folder) as url:
        found = good(Client.of(url).get("/api/signoff"))
    assert (found["state"], found["signoff"]["unmet"]) == ("signed", [])
