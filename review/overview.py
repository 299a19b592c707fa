"""The first screen: the counts of a release, and what must be looked at before somebody signs it."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from manifests.release import Json, Release
from review import structure
from review.coding import shown
from review.coverage import unknown_share, unmet

if TYPE_CHECKING:
    from review.catalog import Catalog

MOSTLY_UNKNOWN = 0.5
"""Share of unknown values of an attribute from which it says little."""
LOG, INTEGRITY, SIGNOFF = "Review log", "Integrity", "Sign-off"
"""Names of the checks that are not about the rows."""
WAITING = "the columns are still being read"


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """What the review log and the integrity check say of a release.

    Attributes:
        counts: samples of each state.
        events: in the log.
        head: sha256 of the last event; None without events.
        signoff: {"state": "none" | "signed" | "expired" | "withdrawn" | "broken", …}.
        integrity: "not run", "running", "good" or "problems".
        problems: that the integrity check found.
        log: "not run", "good" or "problems": of the review log, read from its first byte.
        log_told: the first problem.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    events: int = 0
    head: str | None = None
    signoff: Mapping[str, Json] = field(default_factory=lambda: {"state": "none"})
    integrity: str = "not run"
    problems: int = 0
    log: str = "not run"
    log_told: str = ""


def overview(catalog: "Catalog", today: date, review: Review) -> dict[str, Json]:
    """Counts, models, parents and checks; only columns that have been read already are asked."""
    release, stats = catalog.release, catalog.stats
    cause = release.inputs.get("successor")
    body: dict[str, Json] = {
        "name": release.name,
        "fingerprint": catalog.fingerprint,
        "rows": catalog.rows,
        "counts": dataclasses.asdict(release.counts),
        "adds_up": adds_up(release, stats) is None,
        "splits": dict(release.splits),
        "decisions": dict(stats["decisions"]),
        "verdicts": dict(stats["verdicts"]),
        "sources": stats.get("sources"),
        "models": [{**dataclasses.asdict(model)} for model in release.models],
        "schemas": dict(release.schemas),
        "parents": list(release.parents),
        "review": {"counts": dict(review.counts), "events": review.events, "head": review.head},
        "signoff": dict(review.signoff),
        "checks": [*checks(catalog, today, review)],
        "loading": not catalog.known("columns"),
    }
    return body if cause is None else {**body, "successor_of": cause}


def adds_up(release: Release, stats: Mapping[str, Any]) -> str | None:
    """Why release.json and stats.json contradict each other; None where they agree."""
    counts = release.counts
    for name, stated in (("keep", counts.kept), ("hold", counts.held), ("drop", counts.dropped)):
        if stats["decisions"].get(name, 0) != stated:
            return f"stats.json counts {stats['decisions'].get(name, 0):,} rows to {name}, release.json {stated:,}"
    rows = counts.kept + counts.held + counts.dropped
    for key in ("splits", "verdicts"):
        if (found := sum(stats[key].values())) != rows:
            return f"the {key} of stats.json add up to {found:,}, the rows are {rows:,}"
    for name, values in stats["attributes"].items():
        if (found := sum(sum(of.values()) for of in values.values())) != rows:
            return f"the values of {shown(name)} add up to {found:,}, the rows are {rows:,}"
    return None


def checks(catalog: "Catalog", today: date, review: Review) -> Iterator[Json]:
    """Each check with its state (pass, warn, fail, not run) and one sentence."""
    yield _counts(catalog)
    yield _integrity(review)
    yield _log(review)
    yield from _splits(catalog)
    yield _retention(catalog, today)
    yield _quotas(catalog.release)
    yield _unknown(catalog.stats)
    yield _words(catalog, "licence", "Licences", ("unknown", ""), "have no known licence")
    yield _words(catalog, "consent_status", "Consent", ("unknown", ""), "have no known consent")
    yield _judge(catalog.stats)
    yield _labels(catalog)
    yield _signoff(review)


def _check(name: str, state: str, told: str) -> dict[str, Json]:
    return {"name": name, "state": state, "told": told}


def _counts(catalog: "Catalog") -> Json:
    why = adds_up(catalog.release, catalog.stats)
    read = catalog.release.counts.read
    return _check("Counts", "fail" if why else "pass", why or f"All {read:,} inputs are accounted for.")


def _integrity(review: Review) -> Json:
    state = {"good": "pass", "problems": "fail"}.get(review.integrity, "not run")
    told = {
        "good": "Every file has the bytes that release.json lists.",
        "problems": f"{review.problems:,} problems were found: see run and integrity.",
        "running": "The files are being compared with release.json.",
    }.get(review.integrity, "Nobody has compared the files with release.json yet: start it under run and integrity.")
    return _check(INTEGRITY, state, told)


def _log(review: Review) -> Json:
    state = {"good": "pass", "problems": "fail"}.get(review.log, "not run")
    told = {
        "good": "Every event, frozen list and signature was in its place.",
        "problems": f"The review log is broken: {review.log_told}",
    }.get(review.log, "The log was not checked from its first byte: start it under run and integrity.")
    return _check(LOG, state, told)


def _splits(catalog: "Catalog") -> Iterator[Json]:
    if not catalog.known("leakage"):
        yield _check("Split leakage", "not run", WAITING)
        yield _check("Near duplicates", "not run", WAITING)
        return
    found: Mapping[str, Any] = catalog.leakage()
    leaks = found["across_n"]
    told = (
        f"{leaks:,} groups lie in several splits." if leaks else f"Each of {found['groups']:,} groups is in one split."
    )
    yield _check("Split leakage", "fail" if leaks else "pass", told)
    yield _check("Near duplicates", "warn" if found["near_n"] else "pass", f"{found['told'].capitalize()}.")


def _retention(catalog: "Catalog", today: date) -> Json:
    if not catalog.known("columns"):
        return _check("Retention", "not run", WAITING)
    rows, upcoming = structure.due(catalog.columns, today)
    if len(rows):
        return _check("Retention", "fail", f"{len(rows):,} samples are kept longer than their retention allows.")
    return _check("Retention", "pass", f"Nothing is due; next {upcoming or 'never'}.")


def _quotas(release: Release) -> Json:
    short, cells = unmet(release)
    if not cells:
        return _check("Quotas", "not run", "The release states no quota.")
    return _check(
        "Quotas", "warn" if short else "pass", f"{short:,} of {cells:,} cells hold fewer rows than asked for."
    )


def _unknown(stats: Mapping[str, Any]) -> Json:
    found = unknown_share(stats)
    if found is None:
        return _check("Unknown values", "not run", "The release has no attribute.")
    name, share = found
    state = "warn" if share >= MOSTLY_UNKNOWN else "pass"
    return _check("Unknown values", state, f"Least known is {shown(name)}: unknown for {share:.0%} of the rows.")


def _words(catalog: "Catalog", column: str, name: str, unknown: tuple[str, ...], told: str) -> Json:
    if not catalog.known("columns"):
        return _check(name, "not run", WAITING)
    counts = _counted(catalog, column, "keep", "hold")
    bad = sum(counts.get(value, 0) for value in (*unknown, None))
    return _check(name, "warn" if bad else "pass", f"{bad:,} kept or held samples {told}.")


def _counted(catalog: "Catalog", column: str, *decisions: str) -> Mapping[str | None, int]:
    """Rows of each word of a column, among those with one of some decisions."""
    columns = catalog.columns
    chosen = columns.words("decision").chosen
    return columns.once.get(f"counted {column}", lambda: columns.words(column).counts(chosen(decisions)))


def _judge(stats: Mapping[str, Any]) -> Json:
    judge = stats.get("judge")
    if not isinstance(judge, Mapping) or not judge.get("judged"):
        return _check("Judge", "warn", "No judge has looked at the labels.")
    if not judge.get("calibrated"):
        return _check(
            "Judge", "warn", "The judge is not calibrated: its numbers rank labels, they are no shares of bad ones."
        )
    return _check("Judge", "pass", f"The judge is calibrated; it looked at {judge['judged']:,} labels.")


def _labels(catalog: "Catalog") -> Json:
    if not catalog.known("columns"):
        return _check("Labels", "not run", WAITING)
    counts = _counted(catalog, "label_source", "keep")
    people = counts.get("human", 0) + counts.get("human_corrected", 0)
    none, kept = counts.get("none", 0), sum(counts.values())
    told = f"{people:,} of {kept:,} kept labels were drawn or corrected by people; {none:,} samples have none."
    return _check("Labels", "warn" if none or not people else "pass", told)


def _signoff(review: Review) -> Json:
    state = str(review.signoff.get("state", "none"))
    return _check(
        SIGNOFF,
        {"signed": "pass", "broken": "fail"}.get(state, "warn"),
        {
            "signed": "A person has signed this release.",
            "broken": f"No sign-off counts: {review.signoff.get('why') or 'the log or the bytes are broken'}.",
            "expired": "The sign-off has expired.",
            "withdrawn": "The sign-off was withdrawn.",
        }.get(state, "Nobody has signed this release."),
    )
