"""What the review server tells: one function for each address, that asks the desk and gives what becomes JSON.

The functions know nothing of HTTP. READS and IMAGES are their tables: address, function, parameters of the query.
"""

import contextlib
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

from starlette.responses import Response

from manifests.datacard import QUESTIONS, open_questions
from manifests.diff import KINDS as DIFFERENCES
from manifests.release import sha256_hex
from manifests.signoff import MAX_EVENTS
from manifests.verify import parse_document
from review.ask import MAX_OFFSET, MAX_PAGE, Ask, digest, number_in
from review.catalog import Place
from review.desk import Desk
from review.guard import Refusal
from review.overview import INTEGRITY, SIGNOFF, WAITING
from review.pixels import KINDS, SIDES, Pixels
from review.tasks import task_json

Answer = Callable[[Ask], Any]
MAX_EVENTS_TOLD = 100
"""Decisions, and comments, on one sample that are told: the newest."""
NOBODY = ""
"""Who has not given a name: they may still judge samples, so a task hides from them what others found."""
MAX_DOCUMENT = 16 << 20
"""Limit of config.json and lineage.json as they are shown, in bytes."""


def today() -> date:
    """The date that retention is held against, in UTC."""
    return datetime.now(UTC).date()


def session(ask: Ask) -> dict[str, Any]:
    """Which release is open, who asks, and whether it is still the newest and the same."""
    desk = ask.desk
    return {
        "release": desk.catalog.release.name,
        "name": desk.folder.resolve().name,
        "fingerprint": desk.fingerprint,
        "root_name": desk.folder.resolve().parent.parent.name,
        "reviewer": None if desk.reviewer is None else desk.reviewer.name,
        "how_known": "not verified",
        "read_only": desk.read_only,
        "newer": [{"name": volume.name, "fingerprint": volume.fingerprint} for volume in desk.newer()],
        "stale": desk.stale() or None,
        "changed": list(desk.changed()[:20]),
        "limits": {"page": MAX_PAGE},
    }


def releases(ask: Ask) -> list[dict[str, Any]]:
    """The releases of this root."""
    desk = ask.desk
    return [
        {
            "name": volume.name,
            "fingerprint": volume.fingerprint,
            "rows": volume.rows,
            "current": volume.fingerprint == desk.fingerprint,
            "parent_of_current": volume.fingerprint in desk.catalog.release.parents,
        }
        for volume in desk.shelf.volumes()
    ]


def overview(ask: Ask) -> Any:
    """Counts, models, checks, and what was decided."""
    return ask.desk.catalog.overview(today=today(), review=ask.desk.review())


def coverage(ask: Ask) -> Any:
    """Target and actual rows of each cell, values of each attribute."""
    return ask.desk.catalog.coverage()


def bias(ask: Ask) -> Any:
    """What the filters removed, by the classes of an attribute."""
    return ask.desk.catalog.bias(ask.query.get("attribute"))


def reasons(ask: Ask) -> Any:
    """Each reason of a decision with its rows."""
    return ask.desk.catalog.reasons()


def histogram(ask: Ask) -> Any:
    """How a number is spread."""
    query = ask.filter()
    bins = ask.number("bins", 40, 2, 200)
    states = ask.desk.states()
    return ask.desk.catalog.histogram(ask.text("column"), query, by=ask.query.get("by"), bins=bins, states=states)


def page(ask: Ask) -> Any:
    """Some of the samples that a filter finds."""
    query, limit = ask.filter(), ask.number("limit", 60, 1, MAX_PAGE)
    offset, decisions = ask.number("offset", 0, 0, MAX_OFFSET), ask.desk.decisions()
    found = ask.desk.catalog.page(query, offset=offset, limit=limit, states=ask.desk.states(decisions))
    return {**found, "head": decisions.head.seq}


def sample(ask: Ask) -> Any:
    """All that is known of one sample."""
    one, decisions = ask.sample(), ask.desk.decisions()
    body = ask.desk.catalog.sample(one, decisions.state(one))
    told = {"history": decisions.history(one), "comments": decisions.comments(one)}
    newest = {name: [event.to_json() for event in events[-MAX_EVENTS_TOLD:]] for name, events in told.items()}
    counts = {f"{name}_n": len(events) for name, events in told.items()}
    return {**body, **newest, **counts, "head": decisions.head.seq}


def clusters(ask: Ask) -> Any:
    """The clusters below a path like 0,23."""
    given = ask.query.get("path", "")
    path = [number_in(part, "path", -1, 1 << 31) for part in given.split(",")] if given else []
    return ask.desk.catalog.clusters(path)


def leakage(ask: Ask) -> Any:
    """Groups and near duplicates across splits."""
    return ask.desk.catalog.leakage()


def rights(ask: Ask) -> Any:
    """Licences, consent, retention, erasures."""
    return ask.desk.catalog.rights(today())


def compared(ask: Ask) -> Any:
    """What differs between this release and another of its root."""
    return ask.desk.difference(digest(ask.text("with"))).to_json()


def compared_page(ask: Ask) -> Any:
    """Some of the samples that differ in one way."""
    difference, kind = ask.desk.difference(digest(ask.text("with"))), ask.text("kind")
    if kind not in DIFFERENCES:
        raise Refusal(400, f"kind must be one of {', '.join(DIFFERENCES)}", "ask for one of these")
    return difference.rows(kind, ask.number("offset", 0, 0, MAX_OFFSET), ask.number("limit", 60, 1, MAX_PAGE))


def tasks(ask: Ask) -> Any:
    """All review tasks, without their samples."""
    decisions, who = ask.desk.decisions(), _name(ask)
    return [task_json(decisions, task.seq, who or NOBODY, limit=None) for task in decisions.tasks]


def task(ask: Ask) -> Any:
    """A review task, and which samples come next for this reviewer."""
    seq = number_in(ask.path["seq"], "seq", 0, MAX_EVENTS)
    try:
        who = _name(ask)
        found = task_json(ask.desk.decisions(), seq, who or NOBODY)
        return found if who else {**found, "next": []}
    except KeyError as error:
        raise Refusal(404, str(error.args[0]), "choose one of /api/tasks") from error


def _name(ask: Ask) -> str | None:
    """Who asks, as far as is known: to look at tasks needs no name."""
    named = ask.name is not None or ask.desk.reviewer is not None
    return ask.reviewer().name if named else None


def integrity(ask: Ask) -> dict[str, Any]:
    """What the last integrity check found, and from which run the release is."""
    return integrity_of(ask.desk)


def integrity_of(desk: Desk) -> dict[str, Any]:
    """See `integrity`."""
    release = desk.catalog.release
    return {
        **desk.integrity.checked().to_json(),
        "changed": list(desk.changed()[:20]),
        "files": len(release.files),
        "bytes": sum(entry.bytes for entry in release.files),
        "run": {
            "run_id": release.run_id,
            "seed": release.seed,
            "packages": dict(release.packages),
            "tool": dict(release.tool),
            "config": _document(desk, "config.json"),
            "lineage": _document(desk, "lineage.json"),
        },
    }


def _document(desk: Desk, name: str) -> Any:
    """A JSON file of the release; None where it lists none, or its bytes are not those that it lists."""
    entry = next((entry for entry in desk.catalog.release.files if entry.path == name), None)
    if entry is None or entry.bytes > MAX_DOCUMENT:
        return None
    try:
        with (desk.folder / name).open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
        return parse_document(data) if sha256_hex(data) == entry.sha256 else None
    except (OSError, ValueError):
        return None


def signoff(ask: Ask) -> dict[str, Any]:
    """The sign-off, and what it asks of who signs."""
    return signoff_of(ask.desk)


def signoff_of(desk: Desk) -> dict[str, Any]:
    """See `signoff`. A broken log has no disputes that could be counted."""
    disputes: int | None = None
    undecided: int | None = None
    with contextlib.suppress(Refusal):
        decisions = desk.decisions()
        disputes, undecided = decisions.counts.get("disputed", 0), desk.undecided_held(decisions)
    return {
        **desk.signoff(),
        "requirements": [{"key": one.key, "question": one.question, "kind": one.kind} for one in QUESTIONS],
        "unmet": [*unmet(desk, {}), *unsettled(disputes, undecided)],
        "disputes": disputes,
        "undecided_held": undecided,
    }


def unmet(desk: Desk, checklist: Mapping[str, Any]) -> list[str]:
    """What stands against a sign-off without conditions, in words, beside what no reviewer has settled.

    Raises:
        DataCardError: `checklist` answers a question that there is not, or not as it is asked.
    """
    found = [f"open: {question.question}" for question in open_questions(checklist)]
    if desk.integrity.checked().state != "good":
        found.append(f"integrity: {_INTEGRITY[desk.integrity.checked().state]}")
    told: dict[str, Any] = desk.catalog.overview(today=today(), review=desk.review())
    against = [one for one in told["checks"] if one["state"] == "fail" or one["told"] == WAITING]
    return [*found, *(f"{one['name']}: {one['told']}" for one in against if one["name"] not in _TOLD_APART)]


def unsettled(disputes: int | None, undecided: int | None) -> list[str]:
    """What no reviewer has settled, in words."""
    found = []
    if disputes:
        found.append(f"{disputes:,} samples are disputed")
    if undecided:
        found.append(f"{undecided:,} held samples are undecided")
    return found


_TOLD_APART = (INTEGRITY, SIGNOFF)


_INTEGRITY = {
    "not run": "the bytes were not checked since the server was started",
    "running": "the check of the bytes is not done",
    "failed": "the check of the bytes did not come to an end",
    "problems": "the check found problems",
}


def thumb(ask: Ask) -> Response:
    """The image of a sample, small."""
    pixels, place = _place(ask)
    return Response(pixels.thumb(place, _side(ask)), media_type="image/jpeg")


def mask(ask: Ask) -> Response:
    """A mask of a sample, small."""
    kind = next((kind for kind in KINDS if kind == ask.text("kind", "mask")), None)
    if kind is None:
        raise Refusal(400, f"kind must be one of {', '.join(KINDS)}", "ask for one of these")
    pixels, place = _place(ask)
    return Response(pixels.mask(place, kind, _side(ask)), media_type="image/png")


def _side(ask: Ask) -> int:
    return ask.number("side", 256, *SIDES)


def _place(ask: Ask) -> tuple[Pixels, Place]:
    opened = ask.desk.sibling(digest(ask.path["fingerprint"])) if "fingerprint" in ask.path else ask.desk
    place = opened.catalog.place(ask.sample())
    if place is None:
        raise Refusal(404, f"no pixels of sample {ask.sample()} are kept", "ask for a sample that has pixels")
    return opened.pixels, place


READS: Mapping[str, tuple[Answer, tuple[str, ...]]] = {
    "/api/session": (session, ()),
    "/api/releases": (releases, ()),
    "/api/overview": (overview, ()),
    "/api/coverage": (coverage, ()),
    "/api/bias": (bias, ("attribute",)),
    "/api/reasons": (reasons, ()),
    "/api/histogram": (histogram, ("column", "by", "bins", "filter")),
    "/api/page": (page, ("filter", "offset", "limit")),
    "/api/sample/{id}": (sample, ()),
    "/api/clusters": (clusters, ("path",)),
    "/api/leakage": (leakage, ()),
    "/api/rights": (rights, ()),
    "/api/compare": (compared, ("with",)),
    "/api/compare/page": (compared_page, ("with", "kind", "offset", "limit")),
    "/api/tasks": (tasks, ()),
    "/api/tasks/{seq}": (task, ()),
    "/api/integrity": (integrity, ()),
    "/api/signoff": (signoff, ()),
}
IMAGES: Mapping[str, tuple[Answer, tuple[str, ...]]] = {
    "/thumb/{id}": (thumb, ("side",)),
    "/thumb/{fingerprint}/{id}": (thumb, ("side",)),
    "/mask/{id}": (mask, ("side", "kind")),
    "/mask/{fingerprint}/{id}": (mask, ("side", "kind")),
}
