"""What the review server records: one function for each change, that appends an event and says what it came to.

CHANGES is their table: address, function, fields of the body.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.signoff import MAX_EVENTS, parse_instant
from review.api import MAX_EVENTS_TOLD, integrity_of, signoff_of, unmet, unsettled
from review.ask import Ask, number_in, sample_id
from review.decisions import Decisions
from review.desk import Desk, reviewer_of
from review.event import MAX_IDS, VERDICTS, Event, Reviewer
from review.guard import Refusal
from review.ids import Ids
from review.query import parse_query
from review.tasks import barred, draw, task_json

Answer = Callable[[Ask], Any]
_DECIDING = ("sample_decision", "bulk_decision")
_AGAIN = "look at the samples again, then decide"
MAX_TASK = 100_000
"""Samples that one task may draw."""


def session(ask: Ask) -> dict[str, Any]:
    """The name of a browser as it will be kept; nothing is recorded."""
    who = reviewer_of(ask.body.get("reviewer"))
    return {"reviewer": who.name, "how_known": who.how_known}


def decide(ask: Ask) -> dict[str, Any]:
    """A verdict on some samples; one that adjudicates, on samples that nobody decided on since they were looked at."""
    desk, ids = ask.desk, _samples(ask)
    desk.check_bytes()
    adjudicates = ask.given("adjudicates", bool, False)
    head = ask.given("head", int) if adjudicates else -1

    def settles(decisions: Decisions, events: Sequence[Event]) -> None:
        _check_head(events, head)
        for one in ids:
            if any(event.seq > head for event in decisions.history(one)):
                raise Refusal(409, f"others decided meanwhile on sample {one}", _AGAIN)
            if decisions.state(one) != "disputed":
                told = f"sample {one} is not disputed, there is nothing to settle"
                raise Refusal(409, told, "decide without it")

    event = _append(
        ask,
        "sample_decision",
        check=settles if adjudicates else None,
        target={"ids": ids},
        verdict=_verdict(ask),
        reasons=ask.reasons(),
        adjudicates=adjudicates,
    )
    after = desk.decisions()
    return {"seq": event.seq, "states": {one: after.state(one) for one in ids}}


def bulk(ask: Ask) -> dict[str, Any]:
    """A verdict on all samples that a filter finds, where it finds those that the reviewer saw."""
    desk, query = ask.desk, parse_query(ask.given("filter", dict, {}))
    desk.check_bytes()
    expected, verdict = ask.given("expect", int), _verdict(ask)
    head = ask.given("head", int) if query.state else -1
    rows = desk.catalog.select(query, desk.states())

    def unmoved(_: Decisions, events: Sequence[Event]) -> None:
        _check_head(events, head)
        if any(event.kind in _DECIDING for event in events[head + 1 :]):
            raise Refusal(409, "others decided meanwhile; look again", _AGAIN)

    if len(rows) != expected:
        raise Refusal(
            409,
            f"the filter finds {len(rows):,} samples now, {expected:,} were to be decided",
            "look at them again: somebody has decided, or the filter is another",
        )
    if not len(rows):
        raise Refusal(400, "the filter finds no sample", "choose a filter that finds some")
    event = _append(
        ask,
        "bulk_decision",
        check=unmoved if query.state else None,
        freeze=desk.catalog.ids[rows],
        target={"query": query.to_json()},
        verdict=verdict,
        reasons=ask.reasons(),
    )
    return {"seq": event.seq, "count": len(rows)}


def comment(ask: Ask) -> dict[str, Any]:
    """A comment on one sample."""
    one = sample_id(ask.body.get("id"))
    ask.desk.catalog.row_of(one)
    text = ask.given("text", str).strip()
    event = _append(ask, "comment", target={"ids": [one]}, text=text)
    comments = ask.desk.decisions().comments(one)
    newest = [found.to_json() for found in comments[-MAX_EVENTS_TOLD:]]
    return {"seq": event.seq, "comments": newest, "comments_n": len(comments)}


def task(ask: Ask) -> Any:
    """Draw samples that are to be looked at blindly."""
    desk, who = ask.desk, ask.reviewer()
    kind, size = ask.given("kind", str), ask.given("size", int)
    if not 1 <= size <= MAX_TASK:
        raise Refusal(400, f"size must be within 1 and {MAX_TASK}, got {size}", "draw fewer")
    seed = ask.given("seed", int, len(desk.decisions().tasks))
    of_task = {"of_task": ask.given("of_task", int)} if kind == "overlap" else {}
    query, ids, strata = _again(desk, of_task["of_task"]) if of_task else _pool(ask)
    if not len(ids):
        raise Refusal(400, "there is no sample to draw", "choose a filter that finds samples with pixels")
    drawn = ids[draw(ids, strata, size, seed)]
    event = _append(
        ask,
        "task",
        freeze=drawn,
        target={"query": query},
        title=ask.given("title", str).strip(),
        task={"kind": kind, "size": len(drawn), "seed": seed, "blind": True, "population": len(ids), **of_task},
    )
    return task_json(desk.decisions(), event.seq, who.name)


def _pool(ask: Ask) -> tuple[dict[str, Any], Ids, NDArray[np.int64]]:
    """The samples with pixels that a filter finds, in strata of the coarsest cluster and the decision."""
    catalog, query = ask.desk.catalog, parse_query(ask.given("filter", dict, {}))
    rows = catalog.select(query, ask.desk.states())
    rows = rows[catalog.has_pixels()[rows]]
    path = catalog.columns.clusters()
    cluster = path[rows, 0].astype(np.int64) if path.shape[1] else np.zeros(len(rows), np.int64)
    decision = catalog.columns.words("decision")
    strata = cluster * (len(decision.values) + 1) + decision.codes[rows]
    return query.to_json(), catalog.ids[rows], strata


def _again(desk: Desk, seq: int) -> tuple[dict[str, Any], Ids, NDArray[np.int64]]:
    """The samples of a task, to be judged again by somebody else."""
    try:
        found = desk.decisions().task(seq)
    except KeyError as error:
        raise Refusal(404, str(error.args[0]), "choose one of /api/tasks") from error
    return dict(found.query), found.ids, np.zeros(found.size, np.int64)


def task_result(ask: Ask) -> Any:
    """What a reviewer says of one sample of a task."""
    desk, who = ask.desk, ask.reviewer()
    seq = number_in(ask.path["seq"], "seq", 0, MAX_EVENTS)
    desk.check_bytes()
    one = sample_id(ask.body.get("id"))

    def may_judge(decisions: Decisions, _: Sequence[Event]) -> None:
        with contextlib.suppress(KeyError):  # no such task: the log says so
            if one in barred(decisions, decisions.task(seq), who.name):
                told = f"you judged sample {one} in the task that this one repeats"
                raise Refusal(409, told, "leave it to somebody else: an overlap says how far two people agree")

    verdict = ask.given("verdict", str)
    target = {"ids": [one]}
    _append(ask, "task_result", check=may_judge, target=target, task=seq, verdict=verdict, reasons=ask.reasons())
    return task_json(desk.decisions(), seq, who.name)


def integrity(ask: Ask) -> dict[str, Any]:
    """Begin to check every byte, or stop it; nothing of the release or its log is changed."""
    if ask.given("cancel", bool, False):
        ask.desk.integrity.stop()
    else:
        ask.desk.start_check()
    return integrity_of(ask.desk)


def signoff(ask: Ask) -> dict[str, Any]:
    """Sign the release off: every question of the checklist answered, or conditions stated for what is open."""
    desk, who = ask.desk, _named(ask)
    checklist = ask.given("checklist", dict, {})
    conditions = ask.given("conditions", str, "").strip()
    desk.check_bytes()
    _check_sound(desk)
    desk.catalog.warm()
    against: list[str] = []
    known = unmet(desk, checklist)

    def met(decisions: Decisions, _: Sequence[Event]) -> None:
        against[:] = [*known, *unsettled(decisions.counts.get("disputed", 0), desk.undecided_held(decisions))]
        if against and not conditions:
            raise Refusal(
                400,
                f"{len(against)} points stand against a sign-off without conditions, the first: {against[0]}",
                "settle them, or say under which conditions the release may be used all the same",
            )

    event = _append(
        ask,
        "signoff",
        who=who,
        check=met,
        verdict="approved",
        checklist=checklist,
        conditions=conditions,
        expires_at=_expiry(ask),
        unmet=against,
    )
    return {"seq": event.seq, **signoff_of(desk)}


def withdraw(ask: Ask) -> dict[str, Any]:
    """Take the sign-off back."""

    def holds(decisions: Decisions, _: Sequence[Event]) -> None:
        state = decisions.signoff_state.at()
        if state.signoff is None:
            raise Refusal(409, f"there is no sign-off to withdraw: {state.why}", "look at the state of the sign-off")

    event = _append(ask, "withdraw_signoff", check=holds, reasons=ask.reasons())
    return {"seq": event.seq, **signoff_of(ask.desk)}


def _append(
    ask: Ask,
    kind: str,
    *,
    who: Reviewer | None = None,
    check: Callable[[Decisions, Sequence[Event]], None] | None = None,
    **fields: Any,
) -> Event:
    """Append an event to a log that can be read to its end, so that what is recorded can be answered too.

    `check` is asked with what all events before this one come to, at the moment that it is written.
    """
    desk = ask.desk

    def checked(events: Sequence[Event]) -> None:
        decisions = desk.decisions_of(events)
        if check is not None:
            check(decisions, events)

    return desk.log.append(kind, reviewer=who or ask.reviewer(), check=checked, **fields)


def _check_head(events: Sequence[Event], head: int) -> None:
    if not -1 <= head < len(events):
        raise Refusal(409, f"head must be that of the page, the log ends with {len(events) - 1}, got {head}", _AGAIN)


def _check_sound(desk: Desk) -> None:
    """Check that a sign-off would count: that nothing is known against the bytes, and nothing wrong with the log."""
    state = desk.signoff()
    if state["state"] == "broken":
        raise Refusal(409, f"a release that is broken cannot be signed off: {state['why']}", "repair it first")
    if problems := desk.log.verify():
        told = f"a release whose review log is broken cannot be signed off: {problems[0]}"
        raise Refusal(409, told, "`curate review verify` names what is wrong with the log")


def _samples(ask: Ask) -> list[str]:
    """The samples of the body: all of this release, none twice."""
    found = ask.given("ids", list)
    if not 1 <= len(found) <= MAX_IDS:
        raise Refusal(400, f"ids must be a list of 1..{MAX_IDS} samples, got {len(found)}", "decide in bulk")
    ids = list(dict.fromkeys(sample_id(one) for one in found))
    for one in ids:
        ask.desk.catalog.row_of(one)
    return ids


def _verdict(ask: Ask) -> str:
    found = ask.given("verdict", str)
    if found not in VERDICTS:
        raise Refusal(400, f"verdict must be one of {', '.join(VERDICTS)}, got {found!r:.60}", "give one of these")
    return str(found)


def _named(ask: Ask) -> Any:
    """Who signs: the name typed under the checklist, which must be the reviewer's own where the browser gives one."""
    typed = reviewer_of(ask.body.get("name"))
    if ask.name is not None and typed != ask.reviewer():
        raise Refusal(400, "the name under the sign-off is not that of this browser", "sign with your own name")
    return typed


def _expiry(ask: Ask) -> str | None:
    """An instant in UTC that is still to come."""
    given = ask.body.get("expires_at")
    if given is None:
        return None
    text = given.strip() if isinstance(given, str) else ""
    try:
        at = parse_instant(f"{text}T00:00:00Z" if len(text) == len("2026-03-01") else text)
    except ValueError as error:
        raise Refusal(400, f"expires_at must be like 2026-03-01T12:00:00Z, got {given!r:.60}", "give a date") from error
    if at <= datetime.now(UTC):
        raise Refusal(400, f"expires_at must be in the future, got {text}", "give a later date, or none")
    return f"{text}T00:00:00Z" if len(text) == len("2026-03-01") else text


CHANGES: Mapping[str, tuple[Answer, tuple[str, ...]]] = {
    "/api/session": (session, ("reviewer",)),
    "/api/decide": (decide, ("ids", "verdict", "reasons", "adjudicates", "head")),
    "/api/bulk": (bulk, ("filter", "verdict", "reasons", "expect", "head")),
    "/api/comment": (comment, ("id", "text")),
    "/api/tasks": (task, ("kind", "size", "seed", "filter", "of_task", "title")),
    "/api/tasks/{seq}/result": (task_result, ("id", "verdict", "reasons")),
    "/api/integrity": (integrity, ("cancel",)),
    "/api/signoff": (signoff, ("name", "checklist", "conditions", "expires_at")),
    "/api/withdraw": (withdraw, ("reasons",)),
}
