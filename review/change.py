"""What the review server records: one function for each change, that appends an event and says what it came to.

CHANGES is their table: address, function, fields of the body.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.signoff import MAX_EVENTS, parse_instant
from review.api import integrity_of, signoff_of, unmet
from review.ask import Ask, number_in, sample_id
from review.desk import Desk, reviewer_of
from review.event import MAX_IDS, VERDICTS
from review.guard import Refusal
from review.ids import Ids
from review.query import parse_query
from review.tasks import draw, task_json

Answer = Callable[[Ask], Any]
MAX_TASK = 100_000
"""Samples that one task may draw."""


def session(ask: Ask) -> dict[str, Any]:
    """The name of a browser as it will be kept; nothing is recorded."""
    who = reviewer_of(ask.body.get("reviewer"))
    return {"reviewer": who.name, "how_known": who.how_known}


def decide(ask: Ask) -> dict[str, Any]:
    """A verdict on some samples."""
    desk, ids = ask.desk, _samples(ask)
    adjudicates = ask.given("adjudicates", bool, False)
    before = desk.decisions()
    if adjudicates and (calm := [one for one in ids if before.state(one) != "disputed"]):
        raise Refusal(409, f"sample {calm[0]} is not disputed, there is nothing to settle", "decide without it")
    event = desk.log.append(
        "sample_decision",
        reviewer=ask.reviewer(),
        target={"ids": ids},
        verdict=_verdict(ask),
        reasons=ask.reasons(),
        adjudicates=adjudicates,
    )
    after = desk.decisions()
    return {"seq": event.seq, "states": {one: after.state(one) for one in ids}}


def bulk(ask: Ask) -> dict[str, Any]:
    """A verdict on all samples that a filter finds, where it finds as many as the reviewer saw."""
    desk, query = ask.desk, parse_query(ask.given("filter", dict, {}))
    expected, who, verdict = ask.given("expect", int), ask.reviewer(), _verdict(ask)
    rows = desk.catalog.select(query, desk.states())
    if len(rows) != expected:
        raise Refusal(
            409,
            f"the filter finds {len(rows):,} samples now, {expected:,} were to be decided",
            "look at them again: somebody has decided, or the filter is another",
        )
    if not len(rows):
        raise Refusal(400, "the filter finds no sample", "choose a filter that finds some")
    digest = desk.log.freeze(desk.catalog.ids[rows])
    target = {"query": query.to_json(), "ids_sha256": digest, "count": len(rows)}
    event = desk.log.append("bulk_decision", reviewer=who, target=target, verdict=verdict, reasons=ask.reasons())
    return {"seq": event.seq, "count": len(rows)}


def comment(ask: Ask) -> dict[str, Any]:
    """A comment on one sample."""
    one = sample_id(ask.body.get("id"))
    ask.desk.catalog.row_of(one)
    text = ask.given("text", str).strip()
    event = ask.desk.log.append("comment", reviewer=ask.reviewer(), target={"ids": [one]}, text=text)
    return {"seq": event.seq, "comments": [found.to_json() for found in ask.desk.decisions().comments(one)]}


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
    target = {"query": query, "ids_sha256": desk.log.freeze(drawn), "count": len(drawn)}
    event = desk.log.append(
        "task",
        reviewer=who,
        target=target,
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
    target = {"ids": [sample_id(ask.body.get("id"))]}
    desk.log.append(
        "task_result", reviewer=who, target=target, task=seq, verdict=ask.given("verdict", str), reasons=ask.reasons()
    )
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
    state = desk.signoff()
    if state["state"] == "broken":
        raise Refusal(409, f"a release that is broken cannot be signed off: {state['why']}", "repair it first")
    disputes = desk.decisions().counts.get("disputed", 0)
    against = unmet(desk, checklist, disputes, desk.undecided_held())
    if against and not conditions:
        raise Refusal(
            400,
            f"{len(against)} points stand against a sign-off without conditions, the first: {against[0]}",
            "settle them, or say under which conditions the release may be used all the same",
        )
    event = desk.log.append(
        "signoff",
        reviewer=who,
        verdict="approved",
        checklist=checklist,
        conditions=conditions,
        expires_at=_expiry(ask),
    )
    return {"seq": event.seq, **signoff_of(desk)}


def withdraw(ask: Ask) -> dict[str, Any]:
    """Take the sign-off back."""
    desk = ask.desk
    state = desk.log.signoff()
    if state.signoff is None:
        raise Refusal(409, f"there is no sign-off to withdraw: {state.why}", "look at the state of the sign-off")
    event = desk.log.append("withdraw_signoff", reviewer=ask.reviewer(), reasons=ask.reasons())
    return {"seq": event.seq, **signoff_of(desk)}


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
    "/api/decide": (decide, ("ids", "verdict", "reasons", "adjudicates")),
    "/api/bulk": (bulk, ("filter", "verdict", "reasons", "expect")),
    "/api/comment": (comment, ("id", "text")),
    "/api/tasks": (task, ("kind", "size", "seed", "filter", "of_task", "title")),
    "/api/tasks/{seq}/result": (task_result, ("id", "verdict", "reasons")),
    "/api/integrity": (integrity, ("cancel",)),
    "/api/signoff": (signoff, ("name", "checklist", "conditions", "expires_at")),
    "/api/withdraw": (withdraw, ("reasons",)),
}
