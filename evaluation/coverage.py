"""How often each class occurs in the evaluated videos, beside the training data."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.charts import bar_legend, bars
from evaluation.fairness import Fairness
from evaluation.measures import NONE, counted, finite
from evaluation.page import Html, absent, chip, section, tag, words
from evaluation.taxonomy import UNKNOWN

Coverage = Mapping[str, Mapping[str, float]]


def coverage_section(audit: Fairness | None, trained: Coverage | None, reasons: tuple[str, str]) -> Html:
    """How often each class occurs in the evaluated videos and in the training data.

    Args:
        audit: of the evaluated videos, or None.
        trained: category -> class -> share of the training data, or None.
        reasons: why the one and the other are absent.
    """
    seen = _evaluated(audit)
    wanted = list(dict.fromkeys([*seen, *(trained or {})]))
    why = [absent(text) for part, text in ((seen, reasons[0]), (trained, reasons[1])) if not part]
    panels = [_coverage_panel(name, seen.get(name), None if trained is None else trained.get(name)) for name in wanted]
    title = "Coverage: evaluated videos beside training data"
    key = bar_legend(["share of the evaluated videos", "share of the training data"]) if wanted else None
    return section("coverage", title, *why, key, tag("div", *panels, class_="panels"))


def _evaluated(audit: Fairness | None) -> dict[str, dict[str, int]]:
    """Number of videos by category and class, from the metric that most videos have."""
    if audit is None:
        return {}
    overall = [row for row in audit.rows if row.family == "overall"]
    metric = max(overall, key=lambda row: row.videos).metric if overall else ""
    out: dict[str, dict[str, int]] = {}
    for row in audit.rows:
        if row.metric == metric and row.family == "classes":
            out.setdefault(row.category, {})[row.group] = row.videos
    return out


def _coverage_panel(name: str, seen: Mapping[str, int] | None, trained: Mapping[str, float] | None) -> Html:
    classes = list(dict.fromkeys([*(seen or {}), *(trained or {})]))
    total = sum((seen or {}).values())
    shares = {
        c: (
            None if not seen else seen.get(c, 0) / max(1, total),
            None if trained is None else finite(trained.get(c, 0)),
        )
        for c in classes
    }
    top = max([share for pair in shares.values() for share in pair if share] or [1.0])
    body = [_coverage_row(c, (seen or {}).get(c, 0), shares[c], top) for c in classes]
    head = tag("tr", *(tag("th", text, scope="col") for text in ("Class", "Share", "Evaluated / trained")))
    inner = tag("table", tag("caption", words(name)), tag("thead", head), tag("tbody", *body))
    return tag("section", inner, class_="forest", aria_label=f"Coverage of {name}")


def _coverage_row(group: str, videos: int, shares: tuple[float | None, float | None], top: float) -> Html:
    evaluated, trained = shares
    texts = [NONE if share is None else f"{100 * share:.1f}" for share in shares]
    unseen = bool(trained) and evaluated == 0 and group != UNKNOWN
    untrained = bool(evaluated) and trained == 0 and group != UNKNOWN
    mark = chip("never evaluated", "bad") if unseen else chip("not in training", "bad") if untrained else None
    head = tag("th", words(group), tag("span", counted(videos, "video"), class_="meta"), scope="row")
    return tag("tr", head, tag("td", bars(shares, top)), tag("td", " / ".join(texts), " %", mark))
