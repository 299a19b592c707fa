"""What people decide in the page: by keys that do not wait for answers, against each other, and blindly."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.review import releases

pytest.importorskip("playwright.sync_api", reason="playwright is absent (pip install playwright)")

from playwright.sync_api import Browser

from review.catalog import Catalog
from review.event import Reviewer
from review.log import ReviewLog
from review.query import parse_query
from review.server import running
from tests.review.browser import HOSTILE, Visit, launched, listed, need_chromium, visit


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_chromium()
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releases.write(tmp_path_factory.mktemp("plain"), releases.figures(24, seed=1))


@pytest.fixture
def own(plain: Path, tmp_path: Path) -> Path:
    """A release that a test may decide on and break."""
    copy = tmp_path / "root" / "releases" / plain.name
    shutil.copytree(plain, copy)
    return copy


def decided(folder: Path) -> list[tuple[str, str]]:
    """(sample, verdict) of each decision on one sample, in the order of the log."""
    return [(event.ids[0], event.fields["verdict"]) for event in ReviewLog.open(folder).events()]


def cursor(who: Visit) -> str | None:
    return who.page.get_attribute(".tile.at", "data-id")


def test_keys_that_do_not_wait_decide_each_the_sample_at_the_cursor(browser: Browser, own: Path) -> None:
    order, held = listed(own), listed(own, decision=["hold"])
    verdicts = {"a": "approve", "r": "reject", "h": "hold", "f": "redraw"}
    with running(own, reviewer="Ada") as url, visit(browser, url) as ada:
        ada.open("grid").slow("/api/decide", 0.2)
        ada.press(*"arhfaarr")
        assert cursor(ada) == order[8]
        assert len(decided(own)) < 8  # the keys were quicker than the answers
        ada.page.wait_for_selector(f".tile[data-id='{order[7]}'][data-state=reject]")
        expected = [(one, verdicts[key]) for one, key in zip(order, "arhfaarr", strict=False)]
        assert decided(own) == expected

        ada.press("a", "p", "r")  # another mind: the later key is the later event
        ada.page.wait_for_selector(f".tile[data-id='{order[8]}'][data-state=reject]")
        assert decided(own)[8:] == [(order[8], "approve"), (order[8], "reject")]

        ada.go(f"grid?filter={json.dumps({'decision': ['hold']})}")
        ada.press(*"h" * (len(held) + 2))  # more keys than samples: the last one is not decided again
        ada.hears("just been decided")
        ada.page.wait_for_selector(".tile:not([data-state=hold])", state="detached")
        assert decided(own)[10:] == [(one, "hold") for one in held]

        ada.go(f"sample?id={order[0]}")
        ada.press("r", "r")
        ada.page.wait_for_selector("#history [data-event='0'] ~ [data-event]")
    assert decided(own)[10 + len(held) :] == [(order[0], "reject")]


def test_a_refused_decision_takes_the_cursor_back_and_those_after_it_are_not_sent(browser: Browser, own: Path) -> None:
    order = listed(own)
    with running(own, reviewer="Ada") as url, visit(browser, url) as ada:
        ada.open("grid").slow("/api/decide", 0.2)
        ada.press("a")
        ada.page.get_by_label("Reasons").fill("x" * 300)
        ada.page.click(f".tile[data-id='{order[1]}'] .picture")
        ada.press(*"rhf")
        dialog = ada.page.get_by_role("dialog", name="Not recorded")
        dialog.wait_for()
        assert "reject of sample" in dialog.inner_text()
        assert "2 decisions made after it: not sent either" in dialog.inner_text()
        ada.press("a", "r")  # nobody looks at the sample that they would meet
        dialog.get_by_role("button", name="Go back to it").click()
        dialog.wait_for(state="detached")
        assert cursor(ada) == order[1]
        assert decided(own) == [(order[0], "approve")]
        ada.forgive(400)
        ada.page.get_by_label("Reasons").fill("rough edge")
        ada.page.click(f".tile[data-id='{order[1]}'] .picture")
        ada.press("r", "a")
        ada.page.wait_for_selector(f".tile[data-id='{order[2]}'][data-state=approve]")
    assert decided(own) == [(order[0], "approve"), (order[1], "reject"), (order[2], "approve")]


def test_one_browser_is_one_reviewer_in_all_its_tabs(browser: Browser, own: Path) -> None:
    with running(own) as url, visit(browser, url) as first:
        first.open("overview")
        second = Visit(first.page.context.new_page(), url).open("overview")
        first.page.click("#reviewer")
        assert "every tab and window of this browser" in first.text("dialog")
        first.name("Ada")
        second.page.bring_to_front()
        second.page.get_by_role("button", name="Reviewer: Ada").wait_for()
        assert "every tab of this browser; not verified" in second.text("#who")
        second.go(f"sample?id={listed(own)[0]}").press("a")
        second.hears("by Ada")
        second.clean()


def test_of_a_long_history_the_newest_events_are_shown_and_all_are_counted(browser: Browser, own: Path) -> None:
    log, one = ReviewLog.open(own), listed(own)[0]
    for number in range(103):
        log.append("comment", reviewer=Reviewer(name="Ada"), target={"ids": [one]}, text=f"remark {number}")
    with running(own) as url, visit(browser, url) as found:
        found.open(f"sample?id={one}")
        assert "The newest 100 of 103." in found.text("main")
        assert found.page.locator("#comments li").count() == 100
        assert found.page.get_by_text("remark 102", exact=True).count() == 1
        assert found.page.get_by_text("remark 2", exact=True).count() == 0


def test_keys_decide_and_walk_after_the_name_was_asked_once(browser: Browser, own: Path) -> None:
    order = listed(own)
    with running(own) as url, visit(browser, url) as ada:
        ada.open("grid")
        ada.press("?")
        assert "Redraw" in ada.text("dialog")
        ada.press("Escape", "a")
        ada.name("Ada Łovelace")
        ada.page.wait_for_selector(f".tile[data-id='{order[0]}'][data-state=approve]")
        ada.press("r")
        ada.page.wait_for_selector(f".tile[data-id='{order[1]}'][data-state=reject]")
        ada.press("n", "ArrowRight", "p", "h")
        ada.page.wait_for_selector(f".tile[data-id='{order[3]}'][data-state=hold]")
        ada.press("Space", "ArrowRight", "ArrowRight", "Shift+Space", "f")
        ada.page.wait_for_selector(f".tile[data-id='{order[6]}'][data-state=redraw]")
        ada.press("Enter")
        ada.stands("sample")
        assert ada.page.get_attribute("[data-sample]", "data-sample") == order[6]
        ada.press("n")
        ada.page.wait_for_selector(f"[data-sample='{order[7]}']")
    events = ReviewLog.open(own).events()
    assert [event.fields["verdict"] for event in events] == ["approve", "reject", "hold", "redraw"]
    assert events[3].ids == order[4:7]
    assert {event.reviewer.name for event in events} == {"Ada Łovelace"}


def test_two_reviewers_at_once_dispute_a_sample_until_one_settles_it(browser: Browser, own: Path) -> None:
    one = listed(own, verdict=["keep"])[0]
    with running(own) as url, visit(browser, url) as ada, visit(browser, url) as bob:
        for who, name in ((ada, "Ada"), (bob, "Bob")):
            who.open(f"sample?id={one}")
            who.page.click("#reviewer")
            who.name(name)
        ada.press("a")
        bob.press("r")
        for who in (ada, bob):
            who.hears("event")
        ada.go("tasks")
        ada.page.click(f"[data-dispute='{one}']")
        ada.page.wait_for_selector("#adjudicate")
        assert ada.page.locator("#history [data-event]").count() == 2
        target = {"ids": [one]}
        ReviewLog.open(own).append("sample_decision", reviewer=Reviewer(name="Cid"), target=target, verdict="hold")
        ada.page.click("#adjudicate [data-verdict=approve]")  # without having seen what Cid said
        ada.page.wait_for_selector("#history [data-event='2']")
        ada.hears("others decided meanwhile")
        ada.forgive(409)
        ada.page.click("#adjudicate [data-verdict=approve]")
        ada.page.wait_for_selector("#history [data-event='3']")
        assert ada.text("main .chip") == "approve"
        bob.go("tasks")
        assert "No sample is disputed" in bob.text("main")
    events = ReviewLog.open(own).events()
    assert {(event.reviewer.name, event.fields["verdict"]) for event in events[:2]} == {
        ("Ada", "approve"),
        ("Bob", "reject"),
    }
    assert events[2].fields["verdict"] == "hold"
    assert events[3].fields["adjudicates"] is True
    assert ReviewLog.open(own).verify() == []


def test_a_bulk_decision_freezes_the_number_that_was_shown_or_does_nothing(browser: Browser, own: Path) -> None:
    catalog = Catalog.open(own)
    held = {found["id"] for found in catalog.page(parse_query({"decision": ["hold"]}), offset=0, limit=50)["samples"]}
    wanted = json.dumps({"decision": ["hold"], "state": ["undecided"]})
    with running(own, reviewer="Ada") as url, visit(browser, url) as ada, visit(browser, url) as bob:
        ada.open(f"grid?filter={wanted}")
        ada.page.click("[data-bulk=open]")
        assert ada.text("[data-bulk=count]") == f"{len(held)} samples"
        bob.open(f"sample?id={min(held)}").press("a")
        bob.hears("event 0")
        ada.page.click("dialog [data-verdict=hold]")
        ada.page.click("[data-bulk=send]")
        ada.hears(f"finds {len(held) - 1} samples now")
        ada.forgive(409)
        ada.page.wait_for_selector("dialog", state="detached")
        ada.page.wait_for_selector(f".tile[data-id='{min(held)}']", state="detached")  # the list was read again
        bob.press("r")
        bob.hears("event 1")
        ada.page.click("[data-bulk=open]")
        ada.hears("Others decided meanwhile")
        assert ada.page.locator("dialog").count() == 0
        ada.go(f"grid?filter={json.dumps({'decision': ['hold']})}")
        ada.page.click("[data-bulk=open]")
        ada.page.click("dialog [data-verdict=hold]")
        ada.page.click("[data-bulk=send]")
        ada.page.wait_for_selector(".tile:not([data-state=hold])", state="detached")
    log = ReviewLog.open(own)
    assert [event.kind for event in log.events()] == ["sample_decision"] * 2 + ["bulk_decision"]
    assert set(log.frozen(log.events()[2].fields["target"]["ids_sha256"])) == held


def test_a_comment_is_text_whatever_it_holds(browser: Browser, own: Path) -> None:
    one = listed(own, verdict=["keep"])[0]
    with running(own, reviewer="Ada") as url, visit(browser, url) as ada:
        ada.open(f"sample?id={one}")
        ada.page.fill("#comment textarea", HOSTILE)
        ada.page.click("#comment button")
        ada.page.wait_for_selector("#comments li")
        assert HOSTILE in ada.text("#comments")
    (event,) = ReviewLog.open(own).events()
    assert event.fields["text"] == HOSTILE


def work_through(who: Visit, verdicts: list[str]) -> None:
    seen = set()
    for verdict in verdicts:
        one = who.page.get_attribute("[data-work]", "data-work")
        seen.add(one)
        assert "Defect rate" not in who.text("main")
        who.page.click(f"[data-result={verdict}]")
        who.page.wait_for_selector(f"[data-work]:not([data-work='{one}']), #done")
    assert len(seen) == len(verdicts)
    who.page.wait_for_selector("#done")


def test_a_task_is_worked_through_blindly_and_judged_again_by_another(browser: Browser, own: Path) -> None:
    with running(own) as url, visit(browser, url) as ada, visit(browser, url) as bob:
        ada.open("tasks")
        ada.page.fill("#task [name=title]", "Ten of the kept")
        ada.page.fill("#task [name=size]", "4")
        ada.page.click("#task [type=submit]")
        ada.name("Ada").page.wait_for_selector("[data-work]")
        work_through(ada, ["good"] * 4)
        assert "at most 75.0%" in ada.text("#figures")  # the rule of three
        bob.open("tasks")
        assert "told when you have judged all" in bob.text("main table")
        bob.page.get_by_label("Draw from").select_option("0")
        bob.page.fill("#task [name=size]", "4")
        bob.page.click("#task [type=submit]")
        bob.name("Bob").page.wait_for_selector("[data-work]")
        assert "Defect rate" not in bob.text("main")
        work_through(bob, ["good", "good", "good", "defect"])
        assert "agree on 3 of 4" in bob.text("#figures")
        bob.go("tasks")
        assert "75.0 % of 4" in bob.text("main")
    kinds = [event.kind for event in ReviewLog.open(own).events()]
    assert kinds == ["task", *["task_result"] * 4, "task", *["task_result"] * 4]
