"""The report of a release: one static page that opens offline, for those who do not review.

It says what the review page says, with a fixed choice of samples. It has no script; its policy admits its one style
sheet by hash, and pictures that it holds itself. Equal inputs, on the same day, give equal bytes.

A report with pictures shows people. It names its release and its samples, and is listed in `reports/index.json` of the
root before it is written, so that an erasure finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evaluation.measures import counted
from evaluation.page import Html, document, items, tag
from manifests.diff import compare
from manifests.paper import PlaceError, file_place, write_paper
from manifests.release import fingerprint, read_release_bytes
from manifests.report_index import ReportError, entry_of, record, reports_folder
from manifests.signoff import render_instant
from review import report_marks, report_samples
from review.catalog import Catalog
from review.decisions import Decisions, fold
from review.ids import hex_ids
from review.log import ReviewLog
from review.overview import Review
from review.pixels import Pixels
from review.query import Query
from review.report_change import comparison_section
from review.report_choice import Choice, choose
from review.report_overview import checks_section, decisions_section, overview_section, rights_section
from review.report_pool import QUALITY, bias_section, clusters_section, coverage_section, quality_section
from review.report_samples import Pictures, budget, pictures, samples_section
from review.shelf import Shelf
from review.tasks import task_json

RELEASE_META = "curate-release"
"""Name of the ``meta`` element that holds the fingerprint of the release."""
PERSONAL_META = "curate-personal-data"
"""Name of the ``meta`` element that says what of people the page holds."""
MAX_SAMPLES = 5000

_TITLES = {
    "overview": "Overview",
    "checks": "Checks",
    "coverage": "Coverage",
    "bias": "Filter bias",
    "quality": "Label quality",
    "clusters": "Clusters and leakage",
    "rights": "Rights and retention",
    "comparison": "What changed since the parent",
    "decisions": "Decisions and sign-off",
    "samples": "Samples",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A report that was written.

    Attributes:
        path: of the page.
        fingerprint: of the release.
        samples: how many it shows or lists.
        pictures: how many of them with pictures.
        bytes: size of the page.
    """

    path: Path
    fingerprint: str
    samples: int
    pictures: int
    bytes: int


def write_report(
    folder: Path,
    output: Path | None = None,
    *,
    samples: int = 300,
    images: bool = True,
    seed: int = 0,
    at: datetime | None = None,
) -> Report:
    """Write the report of a release; one that is there is replaced.

    Args:
        folder: of the release.
        output: the page; None for ``<root>/reports/<name of the folder>.html``.
        samples: to show at most, in [0, MAX_SAMPLES].
        images: whether to show their pictures.
        seed: of the samples drawn at random, >= 0.
        at: an instant with a time zone, against whose day retention and expiry are held; None for the clock.

    Raises:
        ReportError: an argument is out of range, or the page cannot be listed.
        PlaceError: it would lie among the releases, or is a folder.
        PaperError: it cannot be written.
        ReleaseError: no release, one that breaks a rule, or one that was exchanged meanwhile.
        CatalogError: its tables cannot be read.
        ShardError: its pictures cannot be read; names the shard.
        ReviewLogError: its review log is broken.
    """
    if not 0 <= samples <= MAX_SAMPLES or seed < 0:
        raise ReportError(f"samples must be in [0, {MAX_SAMPLES}] and seed >= 0, got {samples} and {seed}")
    home = folder.resolve()
    root = home.parent.parent
    path = _place(output or reports_folder(root) / f"{home.name}.html", home.parent)
    now = at or datetime.now(UTC)
    catalog = Catalog.open(home)
    log = ReviewLog.open(home)
    decisions = fold(log.events(), log.frozen_ids)
    choice = choose(catalog, samples, seed, decisions.states(catalog.ids) if decisions.head.sha256 else None)
    shown = _pictures(catalog, choice) if images else None
    body = _body(catalog, log, decisions, choice, shown, now)
    about = {
        RELEASE_META: catalog.fingerprint,
        PERSONAL_META: "pictures and ids" if shown else "ids",
        "robots": "noindex",
        "referrer": "no-referrer",
    }
    style = report_marks.STYLE + report_samples.STYLE
    data = document(f"Release {catalog.release.name}: report", *body, style=style, about=about).encode()
    if {log.fingerprint, fingerprint(read_release_bytes(home))} != {catalog.fingerprint}:
        raise ReportError(f"{home}: the release was exchanged while it was read; start again")
    record(root, entry_of(root, path, catalog.fingerprint, choice.ids, images=bool(shown)))
    write_paper(path, data)
    return Report(
        path=path,
        fingerprint=catalog.fingerprint,
        samples=len(choice.ids),
        pictures=len(shown or ()),
        bytes=len(data),
    )


def _place(output: Path, releases: Path) -> Path:
    """The absolute path of the page, which must not lie among the releases: they are immutable."""
    path = file_place(output)
    if path.is_relative_to(releases):
        raise PlaceError(f"{path} lies among the releases, which nothing may change; name a place outside {releases}")
    return path


def _pictures(catalog: Catalog, choice: Choice) -> dict[str, Pictures]:
    """The pictures of the samples whose pixels are kept; neighbours in a shard are read one after the other."""
    places = [place for one in choice.ids if (place := catalog.place(one)) is not None]
    pixels, most = Pixels(catalog), budget(len(places))
    places.sort(key=lambda place: (place.entry.path, place.row))
    return {place.sample_id: pictures(pixels, place, most) for place in places}


def _body(
    catalog: Catalog,
    log: ReviewLog,
    decisions: Decisions,
    choice: Choice,
    shown: Mapping[str, Pictures] | None,
    now: datetime,
) -> tuple[Html, Html]:
    """Header and main part of the page."""
    day, held_against = now.date(), now.date().isoformat()
    signoff = _signoff(log, now)
    catalog.warm()
    overview: dict[str, Any] = catalog.overview(today=day, review=_review(decisions, signoff))
    states = decisions.states(catalog.ids) if decisions.head.sha256 else None
    histograms = [catalog.histogram(column, Query(), "decision", states=states) for column in QUALITY]
    tasks = [task_json(decisions, task.seq) for task in decisions.tasks]
    disputed = hex_ids(decisions.ids_in("disputed"))
    difference, why_none = _difference(catalog)
    title = _TITLES
    main = tag(
        "main",
        overview_section(title["overview"], overview),
        checks_section(title["checks"], overview["checks"], held_against),
        coverage_section(title["coverage"], catalog.coverage()),
        bias_section(title["bias"], catalog.bias()),
        quality_section(title["quality"], histograms),
        clusters_section(title["clusters"], catalog.clusters(), catalog.leakage()),
        rights_section(title["rights"], catalog.rights(day), held_against),
        comparison_section(title["comparison"], difference, why_none),
        decisions_section(title["decisions"], overview["review"], signoff, tasks, disputed),
        samples_section(title["samples"], choice, shown),
    )
    return _header(catalog, choice, shown), main


def _header(catalog: Catalog, choice: Choice, shown: Mapping[str, Pictures] | None) -> Html:
    release = catalog.release
    name = tag("p", f"Release {release.name}, fingerprint ", tag("span", catalog.fingerprint, class_="id"))
    navigation = items(tag("a", text, href=f"#{key}") for key, text in _TITLES.items())
    return tag(
        "header",
        tag("h1", f"{release.name}: what the release holds, and how it stands"),
        name,
        _warning(choice, shown),
        tag("nav", navigation, aria_label="Parts of the page"),
    )


def _warning(choice: Choice, shown: Mapping[str, Pictures] | None) -> Html:
    ids = counted(len(choice.ids), "sample")
    if shown:
        what = f"This page is personal data: it shows {counted(len(shown), 'picture')} of people and names {ids}."
    else:
        what = f"This page holds no picture. It names {ids}, which are pseudonyms of personal data."
    return tag(
        "div",
        tag("p", tag("strong", what)),
        tag(
            "p",
            "Keep it only where, and as long as, the release itself may be kept. An erasure finds it by its entry in "
            "reports/index.json, but no copy that was sent elsewhere.",
        ),
        class_="wall",
    )


def _review(decisions: Decisions, signoff: Mapping[str, Any]) -> Review:
    head = decisions.head
    return Review(counts=decisions.counts, events=head.seq + 1, head=head.sha256, signoff=signoff)


def _signoff(log: ReviewLog, now: datetime) -> dict[str, Any]:
    """The sign-off at an instant, with the reason where there is none."""
    found = log.signoff(now)
    signed = found.signoff
    if signed is None:
        return {"state": found.state, "signoff": None, "why": found.why}
    fields = log.events()[signed.seq].fields
    told = {
        "reviewer": signed.reviewer,
        "how_known": signed.how_known,
        "at": render_instant(signed.at),
        "expires_at": None if signed.expires_at is None else render_instant(signed.expires_at),
        "conditions": fields.get("conditions", ""),
        "checklist": fields.get("checklist", {}),
    }
    return {"state": found.state, "signoff": told, "why": ""}


def _difference(catalog: Catalog) -> tuple[Mapping[str, Any] | None, str]:
    """What changed since the first parent; or None, and why."""
    parents = catalog.release.parents
    if not parents:
        return None, "this release was not made from another one."
    volume = Shelf(catalog.folder).find(parents[0])
    if volume is None:
        return None, f"the release that this one was made from, {parents[0]}, is not beside it."
    return compare(volume.folder, catalog.folder).to_json(), ""
