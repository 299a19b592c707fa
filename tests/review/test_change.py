"""Every address of the review server that records something: decisions, tasks, sign-off; and the integrity check."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from manifests.datacard import QUESTIONS
from manifests.release import canonical_json, read_release
from manifests.signoff import UnsignedError, check_signed
from review.event import Reviewer
from review.log import ReviewLog
from tests.review.asked import ANSWERS, BY_ID, SAMPLES, checked, good, refused, rows_of
from tests.review.client import Answer, Client


def test_a_decision_is_durable_and_shown_everywhere(ada: Client, folder: Path) -> None:
    ids = sorted(BY_ID)[:3]
    found = good(ada.post("/api/decide", ids=ids, verdict="reject", reasons=[" hand is missing ", "blur"]))
    assert found == {"seq": 0, "states": dict.fromkeys(ids, "reject")}
    events = ReviewLog.open(folder).events()
    assert [event.kind for event in events] == ["sample_decision"]
    assert events[0].ids == ids
    assert events[0].reviewer == Reviewer(name="Ada")
    assert events[0].fields["reasons"] == ["hand is missing", "blur"]
    sample = good(ada.get(f"/api/sample/{ids[0]}"))
    assert sample["state"] == "reject"
    assert [event["verdict"] for event in sample["history"]] == ["reject"]
    assert {one["id"] for one in good(ada.get("/api/page", filter={"state": ["reject"]}))["samples"]} == set(ids)
    overview = good(ada.get("/api/overview"))
    assert overview["review"]["counts"]["reject"] == 3
    assert overview["review"]["counts"]["undecided"] == len(SAMPLES) - 3
    assert (overview["review"]["events"], overview["review"]["head"]) == (1, events[0].sha256)


def test_two_people_on_one_sample_are_both_kept_and_disputed_until_somebody_settles_it(
    ada: Client, bob: Client, folder: Path
) -> None:
    one = min(BY_ID)
    assert good(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]))["states"] == {one: "approve"}
    assert good(bob.post("/api/decide", ids=[one], verdict="reject", reasons=["edge"]))["states"] == {one: "disputed"}
    history = good(ada.get(f"/api/sample/{one}"))["history"]
    assert [(event["reviewer"], event["verdict"]) for event in history] == [("Ada", "approve"), ("Bób ☺", "reject")]
    assert good(ada.get("/api/signoff"))["disputes"] == 1
    other = sorted(BY_ID)[1]
    calm = {"ids": [other], "verdict": "hold", "reasons": [], "adjudicates": True}
    refused(ada.post("/api/decide", **calm, head=1), 409, "not disputed")
    refused(ada.post("/api/decide", **calm), 400, "head must be int")
    settled = good(ada.post("/api/decide", ids=[one], verdict="hold", reasons=["edge"], adjudicates=True, head=1))
    assert settled["states"] == {one: "hold"}
    assert len(ReviewLog.open(folder).events()) == 3


def test_decisions_at_the_same_time_are_all_kept(url: str, folder: Path) -> None:
    clients = [Client.of(url, f"reviewer {number}") for number in range(6)]
    one, answers = min(BY_ID), []

    def decide(client: Client) -> None:
        answers.extend(client.post("/api/decide", ids=[one], verdict="approve", reasons=[]) for _ in range(5))

    threads = [threading.Thread(target=decide, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(good(answer)["seq"] for answer in answers) == list(range(30))
    log = ReviewLog.open(folder)
    assert len(log.events()) == 30
    assert log.verify() == []


def test_what_another_process_records_shows_at_once(ada: Client, folder: Path) -> None:
    one = min(BY_ID)
    assert good(ada.get(f"/api/sample/{one}"))["state"] == "undecided"
    ReviewLog.open(folder).append(
        "sample_decision",
        reviewer=Reviewer(name="Eve"),
        target={"ids": [one]},
        verdict="redraw",
        reasons=[],
        adjudicates=False,
    )
    assert good(ada.get(f"/api/sample/{one}"))["state"] == "redraw"
    page = good(ada.get("/api/page", filter={"state": ["redraw"]}))
    assert [found["id"] for found in page["samples"]] == [one]


def test_a_bulk_decision_freezes_what_the_reviewer_saw(ada: Client, folder: Path) -> None:
    query = {"decision": ["hold"]}
    held = sorted(one for one, row in rows_of(folder).items() if row["decision"] == "hold")
    refused(ada.post("/api/bulk", filter=query, verdict="approve", reasons=[], expect=len(held) + 1), 409, "now")
    assert ReviewLog.open(folder).events() == ()
    assert good(ada.get("/api/signoff"))["undecided_held"] == len(held)
    found = good(ada.post("/api/bulk", filter=query, verdict="approve", reasons=["seen"], expect=len(held)))
    assert found == {"seq": 0, "count": len(held)}
    log = ReviewLog.open(folder)
    event = log.events()[0]
    assert log.frozen(event.fields["target"]["ids_sha256"]) == held
    assert event.fields["target"]["query"] == query
    assert good(ada.get("/api/page", filter={"state": ["approve"]}))["total"] == len(held)
    assert good(ada.get("/api/signoff"))["undecided_held"] == 0
    left = {"state": ["undecided"], "decision": ["hold"]}
    refused(ada.post("/api/bulk", filter=left, verdict="approve", reasons=[], expect=0, head=0), 400, "finds no sample")


def test_comments_are_kept_with_their_sample(ada: Client, bob: Client) -> None:
    one = min(BY_ID)
    good(ada.post("/api/comment", id=one, text="  <script>alert(1)</script> \u202e a hand? "))
    found = good(bob.post("/api/comment", id=one, text="yes"))
    assert [comment["text"] for comment in found["comments"]] == ["<script>alert(1)</script> \u202e a hand?", "yes"]
    assert [comment["reviewer"] for comment in good(ada.get(f"/api/sample/{one}"))["comments"]] == ["Ada", "Bób ☺"]
    refused(ada.post("/api/comment", id=one, text="   "), 400, "text")
    refused(ada.post("/api/comment", id=one, text="x" * 5000), 400, "text")
    refused(ada.post("/api/comment", id="0" * 32, text="x"), 404, "no sample")


def test_a_review_task_is_drawn_worked_through_and_repeated_by_a_second_reviewer(
    ada: Client, bob: Client, folder: Path
) -> None:
    query = {"decision": ["keep"]}
    task = good(ada.post("/api/tasks", kind="audit", size=10, seed=3, filter=query, title="kept masks"))
    rows = rows_of(folder)
    kept = [row for row in rows.values() if row["decision"] == "keep"]
    assert (task["size"], task["done"], task["population"], task["title"]) == (10, 0, len(kept), "kept masks")
    assert len(set(task["next"])) == 10
    assert {rows[one]["decision"] for one in task["next"]} == {"keep"}
    for number, one in enumerate(task["next"]):
        verdict = "defect" if number == 0 else "good"
        left = good(ada.post(f"/api/tasks/{task['seq']}/result", id=one, verdict=verdict, reasons=[]))
        assert (left["done"], left["mine"]) == (number + 1, number + 1)
        assert one not in left["next"]
    assert (left["defects"], left["rate"], left["next"]) == (1, 0.1, [])
    assert left["interval"][0] < 0.1 < left["interval"][1]
    again = good(bob.post("/api/tasks", kind="overlap", size=5, of_task=task["seq"], title="second look"))
    assert set(again["next"]) <= set(task["next"])
    for one in again["next"]:
        done = good(bob.post(f"/api/tasks/{again['seq']}/result", id=one, verdict="good", reasons=[]))
    assert done["agreement"]["both"] == 5
    listed = good(ada.get("/api/tasks"))
    assert [one["seq"] for one in listed] == [task["seq"], again["seq"]]
    assert good(bob.get(f"/api/tasks/{task['seq']}"))["mine"] == 0
    refused(ada.get("/api/tasks/999"), 404, "no task")
    refused(ada.post("/api/tasks/999/result", id=task["next"][0], verdict="good", reasons=[]), 400, "seq of a task")
    strange = next(one for one in rows if one not in task["next"])
    refused(ada.post(f"/api/tasks/{task['seq']}/result", id=strange, verdict="good", reasons=[]), 400, "not drawn")
    refused(ada.post("/api/tasks", kind="party", size=3, title="x"), 400, "kind")
    refused(ada.post("/api/tasks", kind="audit", size=0, title="x"), 400, "size")
    refused(ada.post("/api/tasks", kind="overlap", size=3, of_task=99, title="x"), 404, "no task")
    refused(ada.post("/api/tasks", kind="audit", size=3, filter={"id": "0" * 32}, title="x"), 400, "no sample")


def test_equal_seeds_draw_equal_tasks_and_only_samples_that_can_be_looked_at(ada: Client, folder: Path) -> None:
    rows = rows_of(folder)
    first, second = (good(ada.post("/api/tasks", kind="audit", size=48, seed=1, title="all")) for _ in range(2))
    assert first["next"] == second["next"]
    assert {rows[one]["shard"] is None for one in first["next"]} == {False}
    assert first["size"] == sum(row["shard"] is not None for row in rows.values())


def sign(client: Client, **changes: Any) -> Answer:
    body = {"name": client.reviewer, "checklist": ANSWERS, "conditions": "", "expires_at": None, **changes}
    return client.post("/api/signoff", **{name: value for name, value in body.items() if value != "left out"})


def test_a_sign_off_needs_every_answer_or_conditions_and_is_void_when_a_byte_changes(ada: Client, folder: Path) -> None:
    before = good(ada.get("/api/signoff"))
    assert before["state"] == "none"
    assert [one["key"] for one in before["requirements"]] == [one.key for one in QUESTIONS]
    held = before["undecided_held"]
    assert held > 0
    refused(sign(ada), 400, "points stand against a sign-off without conditions")
    good(ada.post("/api/bulk", filter={"decision": ["hold"]}, verdict="hold", reasons=[], expect=held))
    refused(sign(ada), 400, "integrity")
    assert checked(ada)["state"] == "good"
    missing = {key: value for key, value in ANSWERS.items() if key != QUESTIONS[0].key}
    refused(sign(ada, checklist=missing), 400, QUESTIONS[0].question)
    refused(sign(ada, checklist={**ANSWERS, "surplus": True}), 400, "surplus")
    refused(sign(ada, name="Somebody Else"), 400, "not that of this browser")
    refused(sign(ada, expires_at="2020-01-01T00:00:00Z"), 400, "in the future")
    refused(sign(ada, expires_at="tomorrow"), 400, "expires_at")
    found = good(sign(ada, expires_at="2999-12-31"))
    assert found["state"] == "signed"
    assert found["signoff"]["reviewer"] == "Ada"
    assert found["signoff"]["expires_at"] == "2999-12-31T00:00:00Z"
    assert check_signed(folder).reviewer == "Ada"
    assert good(ada.get("/api/overview"))["signoff"]["state"] == "signed"

    path = next((folder / "shards" / "train").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    time.sleep(1.1)  # what was found of the files holds for a second
    broken = good(ada.get("/api/signoff"))
    assert broken["state"] == "broken"
    assert path.name in broken["why"]
    assert good(ada.get("/api/overview"))["signoff"]["state"] == "broken"
    result = checked(ada)
    assert result["state"] == "problems"
    assert {problem["path"] for problem in result["problems"]} == {path.relative_to(folder).as_posix()}
    assert good(ada.get("/api/signoff"))["state"] == "broken"
    answer = sign(ada)
    refused(answer, 409, path.name)
    assert answer.json["stale"] is True

    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert checked(ada)["state"] == "good"
    assert good(ada.get("/api/signoff"))["state"] == "signed"  # the same bytes again, and proved


def test_a_sign_off_can_be_given_with_conditions_and_taken_back(ada: Client, folder: Path) -> None:
    refused(ada.post("/api/withdraw", reasons=["no"]), 409, "no sign-off to withdraw")
    assert good(sign(ada, checklist={}, conditions="for tests only"))["signoff"]["conditions"] == "for tests only"
    assert good(ada.post("/api/withdraw", reasons=["an error"]))["state"] == "withdrawn"
    with pytest.raises(UnsignedError, match="withdrew"):
        check_signed(folder)


def test_an_edited_event_breaks_the_sign_off_and_is_told(ada: Client, folder: Path) -> None:
    good(sign(ada, checklist={}, conditions="for tests only"))
    log = ReviewLog.open(folder)
    path = log.folder / f"{0:020d}.json"
    event = json.loads(path.read_bytes())
    event["conditions"] = "for everything"
    path.write_bytes(canonical_json(event))
    found = good(ada.get("/api/signoff"))
    assert found["state"] == "broken"
    assert "event 0" in found["why"]
    assert good(ada.get("/api/overview"))["signoff"]["state"] == "broken"
    one = min(BY_ID)
    refused(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]), 409, "event 0")
    refused(ada.get(f"/api/sample/{one}"), 409, "event 0")
    assert ada.get("/api/coverage").status == 200  # what no event changes is still told


def test_the_integrity_check_tells_the_log_s_problems_apart_and_can_be_stopped(ada: Client, folder: Path) -> None:
    one = min(BY_ID)
    good(ada.post("/api/decide", ids=[one], verdict="approve", reasons=[]))
    found = checked(ada)
    assert (found["state"], found["log"]) == ("good", {"state": "good", "problems": []})
    assert found["files"] == len(read_release(folder).files)
    assert found["bytes"] == sum(entry.bytes for entry in read_release(folder).files)
    assert found["run"]["config"] == json.loads((folder / "config.json").read_bytes())
    assert found["run"]["lineage"] == json.loads((folder / "lineage.json").read_bytes())
    path = ReviewLog.open(folder).folder / f"{0:020d}.json"
    path.write_bytes(path.read_bytes().replace(b"approve", b"reject!"))
    found = checked(ada)
    assert (found["state"], found["log"]["state"]) == ("good", "problems")
    assert "event 0" in found["log"]["problems"][0]
    assert good(ada.post("/api/integrity"))["state"] == "running"
    refused(ada.post("/api/integrity"), 409, "is running")
    assert good(ada.post("/api/integrity", cancel=True))["state"] == "not run"
    assert checked(ada)["state"] == "good"
