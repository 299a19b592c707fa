"""The parts of the report that tell what a release is and how it stands: counts, checks, rights, changes, decisions.

A body is what the review page gets from its server by the same name; every text in it is hostile until it is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.measures import NONE, counted
from evaluation.page import Child, Html, chip, join, note, section, shortened, table, tag
from manifests.datacard import QUESTIONS
from review.report_marks import interval, key_of, listed, name_of, part_of, share_bar, state_chip, tile

Body = Mapping[str, Any]

_ROWS = 20
_FUNNEL = ("kept", "held", "dropped", "not_sampled", "duplicate", "undecodable")
_TOLD = {
    "kept": "kept: published with a label",
    "held": "held: waits for a person",
    "dropped": "dropped: left out for a reason",
    "gone": "not sampled, duplicate or undecodable",
}
_STATES = ("approve", "reject", "hold", "redraw", "disputed")


def overview_section(title: str, body: Body) -> Html:
    """What was read, what became of it, and what made the release.

    Args:
        title: of the section.
        body: of the overview.
    """
    counts = body["counts"]
    read = counts["read"]
    tiles = [tile("Inputs read", f"{read:,}", "each counted once" if body["adds_up"] else "the sum is wrong")]
    tiles += [
        tile(key.replace("_", " ").capitalize(), f"{counts[key]:,}", part_of(counts[key], read)) for key in _FUNNEL
    ]
    gone = sum(counts[key] for key in _FUNNEL[3:])
    bar = {"kept": counts["kept"], "held": counts["held"], "dropped": counts["dropped"], "gone": gone}
    adds = chip("adds up", "good") if body["adds_up"] else chip("does not add up", "bad")
    return section(
        "overview",
        title,
        tag("dl", *tiles, class_="tiles"),
        share_bar(bar, told="Of the inputs read: " + ", ".join(f"{n:,} {kind}" for kind, n in bar.items()) + "."),
        key_of(_TOLD),
        tag("p", f"{read:,} read = ", " + ".join(f"{counts[key]:,} {key.replace('_', ' ')}" for key in _FUNNEL), adds),
        _facts(body),
        _models(body["models"]),
    )


def _facts(body: Body) -> Html:
    rows: list[list[Child]] = [
        ["Fingerprint", tag("span", str(body["fingerprint"]), class_="id")],
        ["Splits", ", ".join(f"{name} {rows:,}" for name, rows in body["splits"].items()) or NONE],
        ["Decisions", _counted(body["decisions"])],
        ["Verdicts of the judge", _counted(body["verdicts"])],
        ["Schemas", ", ".join(f"{name} {version}" for name, version in sorted(body["schemas"].items()))],
        ["Made from", _ids(body["parents"]) if body["parents"] else "no other release"],
    ]
    if body.get("successor_of"):
        rows.append(["Why it was made", shortened(str(body["successor_of"]), 400)])
    facts = table(["What", "Value"], rows, caption="The release", text=(0, 1))
    return tag("div", facts, class_="facts")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{shortened(str(kind), 40)} {count:,}" for kind, count in sorted(counts.items())) or NONE


def _ids(names: Sequence[str]) -> Html:
    return listed([tag("span", name, class_="id") for name in names], _ROWS)


def _models(models: Sequence[Body]) -> Html | None:
    if not models:
        return None
    rows: list[list[Child]] = [
        [
            name_of(model["role"]),
            name_of(model["id"]),
            name_of(model["source"]),
            name_of(model["licence"]),
            tag("span", str(model["sha256"])[:16], class_="id nowrap"),
        ]
        for model in models[:_ROWS]
    ]
    more = len(models) - _ROWS
    told = "Models that had a part" + (f"; {more:,} more are in release.json" if more > 0 else "")
    return table(["Role", "Model", "Source", "Licence", "sha256"], rows, caption=told, text=(0, 1, 2, 3, 4))


def checks_section(title: str, checks: Sequence[Body], held_against: str) -> Html:
    """What was checked of the release, what failed first.

    Args:
        title: of the section.
        checks: of the overview.
        held_against: the day of the checks that a date decides.
    """
    order = {"fail": 0, "warn": 1, "not run": 2, "pass": 3}
    shown = sorted(checks, key=lambda check: order.get(check["state"], 0))
    rows: list[list[Child]] = [
        [name_of(check["name"]), state_chip(check["state"]), shortened(str(check["told"]), 400)] for check in shown
    ]
    return section(
        "checks",
        title,
        note(f"Dates are held against {held_against}. What was not run needs the files: see curate verify."),
        table(["Check", "State", "What was found"], rows, caption="Checks of this release", text=(0, 1, 2)),
    )


# Rights ---------------------------------------------------------------------------------------------------------------


def rights_section(title: str, body: Body, held_against: str) -> Html:
    """Licences, consent, retention and erasures.

    Args:
        title: of the section.
        body: of the rights.
        held_against: the day.
    """
    due = body["retention"]
    erasures: list[list[Child]] = [
        [
            tag("span", shortened(str(one["id"]), 40), class_="id"),
            str(one.get("at") or NONE),
            shortened(str(one.get("reason") or NONE), 200),
            str(one.get("count") if one.get("count") is not None else NONE),
        ]
        for one in body["erasures"][:_ROWS]
    ]
    tiles = (
        tile("Due for removal", f"{due['due_n']:,}", f"on {held_against}"),
        tile("Next date", str(due["next"] or NONE), f"{due['unstated']:,} without one"),
        tile("People named", f"{body['subjects']:,}", "as subject ids"),
        tile("Erasures applied", f"{len(body['erasures']):,}"),
    )
    dated: list[list[Child]] = [[tag("span", one["id"], class_="id"), str(one["until"])] for one in due["due"][:_ROWS]]
    more = due["due_n"] - len(dated)
    return section(
        "rights",
        title,
        tag("dl", *tiles, class_="tiles"),
        tag(
            "div",
            _shares("Licences", "Licence", [(one["licence"], one["n"]) for one in body["licences"]]),
            _shares("Consent", "Status", [(one["status"], one["n"]) for one in body["consent"]]),
            class_="panels wide",
        ),
        _some("Samples whose time is over", ["Sample", "Until"], dated, more),
        _some("Erasures", ["Id", "When", "Why", "Samples"], erasures, len(body["erasures"]) - len(erasures)),
    )


def _shares(caption: str, head: str, counts: Sequence[tuple[Any, int]]) -> Html:
    whole = sum(count for _, count in counts)
    rows: list[list[Child]] = [
        [name_of(name), f"{count:,}", part_of(count, whole)]
        for name, count in sorted(counts, key=lambda one: (-one[1], str(one[0])))[:_ROWS]
    ]
    more = len(counts) - len(rows)
    return table([head, "Samples", "Share"], rows, caption=caption + (f"; {more:,} more" if more > 0 else ""))


def _some(caption: str, head: list[Child], rows: list[list[Child]], more: int) -> Html | None:
    if not rows:
        return None
    return table(head, rows, caption=caption + (f"; {more:,} more" if more > 0 else ""), text=range(len(head)))


# Decisions ------------------------------------------------------------------------------------------------------------


def decisions_section(title: str, review: Body, signoff: Body, tasks: Sequence[Body], disputed: Sequence[str]) -> Html:
    """What people decided, how their samples came out, and whether somebody signed.

    Args:
        title: of the section.
        review: of the overview.
        signoff: of the overview.
        tasks: with their results.
        disputed: ids of samples on which reviewers differ.
    """
    counts, events = review["counts"], int(review["events"])
    known = [tile(state.capitalize(), f"{counts.get(state, 0):,}") for state in _STATES]
    last = join("; the last one has the sha256 ", tag("span", str(review["head"]), class_="id")) if events else None
    return section(
        "decisions",
        title,
        note(
            "Decisions change nothing in this release: curate apply-reviews makes the next one from them. A name is as "
            "sure as the way it was checked."
        ),
        tag("dl", *known, class_="tiles") if events else None,
        tag("p", counted(events, "event") if events else "No event", " in the log", last, "."),
        tag("p", "Disputed: ", _ids(disputed)) if disputed else None,
        _tasks(tasks),
        tag("h3", "Sign-off ", state_chip(str(signoff["state"]))),
        _signoff(signoff),
    )


def _tasks(tasks: Sequence[Body]) -> Html | None:
    if not tasks:
        return note("No blind sample was drawn: nobody measured how many labels are bad.")
    rows: list[list[Child]] = [
        [
            str(one["seq"]),
            name_of(one["title"]),
            str(one["kind"]),
            f"{one['done']:,} of {one['size']:,}",
            f"{one['defects']:,}",
            NONE if one.get("rate") is None else interval(one["rate"], one["interval"]),
            shortened(str(one.get("told") or ""), 300),
        ]
        for one in tasks[:_ROWS]
    ]
    head: list[Child] = ["Event", "Task", "Kind", "Done", "Defects", "Rate (95 %)", "What it says"]
    return table(head, rows, caption="Blind samples", text=(0, 1, 2, 6))


_SIGNED = {
    "reviewer": "Signed by",
    "how_known": "How the name is known",
    "at": "At",
    "expires_at": "Expires",
    "conditions": "Conditions",
}
_ANSWERS = {True: "yes", False: "no", None: "never", "": "none"}


def _signoff(body: Body) -> Html:
    """Who signed, under which conditions, and what they answered."""
    signed = body["signoff"]
    if not signed:
        why = "" if body["state"] == "none" else f": {body['why']}"
        return tag("p", shortened(f"Nobody has signed this release off{why}.", 400))
    asked = {question.key: question.question for question in QUESTIONS}
    answers = [(asked.get(key, key), value) for key, value in signed["checklist"].items()]
    rows: list[list[Child]] = [
        [shortened(str(name), 300), shortened(_ANSWERS.get(value, str(value)), 4000)]
        for name, value in (*((name, signed[key]) for key, name in _SIGNED.items()), *answers)
    ]
    return tag("div", table(["What", "Value"], rows, caption="The sign-off", text=(0, 1)), class_="facts")
