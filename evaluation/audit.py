"""The part of the report on groups: worst groups, heat map, intersections, every class of every category."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evaluation.charts import Axis
from evaluation.fairness import Fairness, Row
from evaluation.forest import FLAGS, Level, differs, forest_axis, forest_panel, level_of, verdict
from evaluation.groups import CROSSING
from evaluation.measures import NONE, Measure, counted, measure_of, p_text
from evaluation.page import Html, absent, chip, details, items, join, note, section, table, tag, words
from evaluation.versus import Change
from evaluation.worst import WorstGap

_FINDINGS = 8


def findings(audit: Fairness) -> list[Html]:
    """What the tests found, in sentences; first the classes that differ most."""
    level = level_of(audit.settings)
    tested = [row for row in audit.rows if row.p_adjusted is not None]
    found = sorted((row for row in tested if differs(row, level)), key=_standardised)
    classes = len({(row.category, row.group) for row in tested})
    metrics = len({row.metric for row in audit.rows})
    if not tested:
        need = audit.settings.sufficient_subjects
        return [join(f"No class has {need} subjects inside and outside of it, so no difference was tested.")]
    out = [
        join(
            f"{counted(classes, 'class').replace('classs', 'classes')} in {counted(metrics, 'metric')} tested; "
            f"{len(found)} of {counted(len(tested), 'test')} found a difference at the family-wise level of "
            f"{100 * level.alpha:.0f} % in each metric."
        )
    ]
    out += [_finding(row, level) for row in found[:_FINDINGS]]
    if len(found) > _FINDINGS:
        out.append(join(f"… and {len(found) - _FINDINGS} more, marked in the tables below."))
    return [*out, _blind_spot(tested)] if any(not differs(row, level) for row in tested) else out


def _standardised(row: Row) -> float:
    return -abs((row.gap or 0.0) / row.gap_error) if row.gap_error else 0.0


def _finding(row: Row, level: Level) -> Html:
    measure = measure_of(row.metric)
    text = (
        f": {measure.label} {measure.gap(row.gap)} {measure.unit} from the others, "
        f"{level.confidence} interval {measure.gap_interval(row.gap_interval)}, adjusted p {p_text(row.p_adjusted)} "
    )
    return join(tag("strong", words(row.category), " = ", words(row.group)), text, verdict(row, level))


def _blind_spot(tested: Sequence[Row]) -> Html:
    first = tested[0].metric
    seen = sorted(row.detectable for row in tested if row.detectable is not None and row.metric == first)
    if not seen:
        return join("How large a gap could have been found is not known.")
    measure = measure_of(first)
    low, high = measure.gap(seen[0], signed=False), measure.gap(seen[-1], signed=False)
    return join(
        f"No finding is no proof of fairness: in {measure.label} the smallest gap that could have been found is "
        f"{low} to {high} {measure.unit}, depending on the class."
    )


def group_sections(audit: Fairness) -> list[Html]:
    """All sections of the audit."""
    ids = {name: f"category-{at}" for at, name in enumerate(_categories(audit.rows))}
    if not ids:
        why = absent("the videos have no attribute: nothing to compare.")
        return [section(key, title, why) for key, title in SECTIONS]
    return [
        _worst_section(audit, ids),
        _heat_section(audit, ids),
        _grid_section(audit),
        _forest_section(audit, ids),
    ]


SECTIONS = (
    ("worst", "Worst groups"),
    ("heat", "Gaps by category and metric"),
    ("intersections", "Intersections"),
    ("forest", "Every class of every category"),
)
"""Key and title of each section of the audit."""


def _categories(rows: Iterable[Row | Change]) -> list[str]:
    return list(dict.fromkeys(row.category for row in rows if row.family != "overall"))


def _metrics(rows: Iterable[Row | Change]) -> list[str]:
    return list(dict.fromkeys(row.metric for row in rows))


def _worst_section(audit: Fairness, ids: Mapping[str, str]) -> Html:
    least = audit.settings.sufficient_subjects
    tables = [
        details(
            tag("h3", measure_of(metric).label),
            _worst_table(audit, metric, ids),
            unfolded=at == 0,
        )
        for at, metric in enumerate(_metrics(audit.rows))
    ]
    return section(
        *SECTIONS[0],
        note(
            "Best less worst class is above 0 even where all classes are alike, the more so the smaller they are: read "
            "it against what chance alone exceeds in 5 % of permutations of people, and its p. The right half is about "
            "the worst class against all other videos of its category: p is adjusted for all classes tested (Romano–"
            "Wolf); detectable is the smallest gap that would have been found; “similar” is an equivalence test. "
            f"° marks a category in which fewer than two classes have {least} subjects, so that every class takes "
            "part. The largest gap in units of chance comes first."
        ),
        *tables,
    )


def _worst_table(audit: Fairness, metric: str, ids: Mapping[str, str]) -> Html:
    measure, level = measure_of(metric), level_of(audit.settings)
    rows = {(row.category, row.group): row for row in audit.rows if row.metric == metric}
    gaps = sorted(chosen_gaps(audit, metric), key=lambda gap: -(_excess(gap) or 0.0))
    head = [
        "Category", "Worst class", "Gap between them", f"Chance, {level.confidence}", "p", "Worst − others",
        "p, adjusted", "Detectable", "Verdict on the worst",
    ]  # fmt: skip
    body = [_worst_row(gap, rows.get((gap.category, ends(gap)[0])), measure, level, audit, ids) for gap in gaps]
    return table(head, body, caption=f"{measure.label}: gaps in {measure.unit}", text=(0, 1, -1))


def _worst_row(
    gap: WorstGap, row: Row | None, measure: Measure, level: Level, audit: Fairness, ids: Mapping[str, str]
) -> list[Html | str]:
    small = "" if gap.at_least >= audit.settings.sufficient_subjects else " °"
    name = join(tag("a", words(gap.category), href=f"#{ids[gap.category]}"), small)
    if gap.gap is None or row is None:
        return [name, tag("span", gap.reason, class_="why"), *[NONE] * 7]
    interval = measure.gap_interval(gap.interval, signed=False) if gap.interval else gap.reason
    worst, best = ends(gap)
    return [
        name,
        join(
            tag("strong", words(worst)), tag("span", f"{counted(row.subjects, 'subject')}; best: {best}", class_="meta")
        ),
        join(_bold(measure.gap(gap.gap, signed=False), beyond(gap)), tag("span", interval, class_="meta")),
        measure.gap(gap.null_95, signed=False),
        p_text(gap.p),
        join(measure.gap(row.gap), tag("span", measure.gap_interval(row.gap_interval), class_="meta")),
        p_text(row.p_adjusted),
        measure.gap(row.detectable, signed=False),
        verdict(row, level),
    ]


def _bold(text: str, bad: bool) -> Html:
    return tag("strong", text, class_="bad") if bad else join(text)


def ends(gap: WorstGap) -> tuple[str, str]:
    """The worst and the best class: of the least and the greatest mean, or the other way where less is better."""
    low, high = gap.worst or "", gap.best or ""
    return (high, low) if measure_of(gap.metric).better in ("lower", "zero") else (low, high)


def beyond(gap: WorstGap) -> bool:
    """Whether a gap is more than what chance alone exceeds in 5 %."""
    return gap.gap is not None and gap.null_95 is not None and gap.gap > gap.null_95


def chosen_gaps(audit: Fairness, metric: str) -> list[WorstGap]:
    """Per category the gap of the classes large enough for a test; of every class where there are no two."""
    out: dict[str, WorstGap] = {}
    for gap in audit.worst:
        if gap.metric == metric and (gap.category not in out or gap.gap is not None):
            before = out.get(gap.category)
            if before is None or before.gap is None or gap.at_least > before.at_least:
                out[gap.category] = gap
    return list(out.values())


def _excess(gap: WorstGap) -> float | None:
    """The gap in units of what chance alone exceeds in 5 %; None where it is not known."""
    return None if gap.gap is None or not gap.null_95 else gap.gap / gap.null_95


def _heat_section(audit: Fairness, ids: Mapping[str, str]) -> Html:
    metrics = _metrics(audit.rows)
    cells = {(gap.category, gap.metric): gap for metric in metrics for gap in chosen_gaps(audit, metric)}
    least = audit.settings.sufficient_subjects
    rows = [
        [tag("a", words(category), href=f"#{anchor}"), *(_heat(cells.get((category, m)), least) for m in metrics)]
        for category, anchor in ids.items()
    ]
    keys = [
        tag("span", text, class_=f"key {kind}".strip())
        for text, kind in (("< 0.75", ""), ("0.75–1", "h1"), ("1–1.25", "h2"), ("1.25–1.75", "h3"), ("≥ 1.75", "h4"))
    ]
    return section(
        *SECTIONS[1],
        note(
            "Numbers are the gaps (points; units of the metric for dtSSD). The colour is the gap in units of what "
            "chance alone exceeds in 5 % of permutations: from 1 on (bold) it is more than chance. ° as above."
        ),
        tag("p", *keys),
        tag("div", _heat_table(metrics, rows), class_="heat"),
    )


def _heat_table(metrics: Sequence[str], rows: Sequence[Sequence[Html]]) -> Html:
    head = tag("tr", *(tag("th", text, scope="col") for text in ("Category", *(measure_of(m).label for m in metrics))))
    body = (tag("tr", tag("th", row[0], scope="row"), *row[1:]) for row in rows)
    caption = "Gap between best and worst class"
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _heat(gap: WorstGap | None, least: int) -> Html:
    ratio = None if gap is None else _excess(gap)
    if gap is None or gap.gap is None or ratio is None:
        return tag("td", NONE, title="" if gap is None else gap.reason)
    step = sum(ratio >= limit for limit in (0.75, 1.0, 1.25, 1.75))
    text = measure_of(gap.metric).gap(gap.gap, signed=False) + ("" if gap.at_least >= least else "°")
    return tag("td", tag("strong", text) if ratio >= 1 else text, **({"class_": f"h{step}"} if step else {}))


def _grid_section(audit: Fairness) -> Html:
    pairs = [name for name in _categories(audit.rows) if _is_crossing(audit, name)]
    missing = [name for name in audit.not_given if CROSSING in name]
    why = absent(f"{', '.join(missing)}: the videos lack one or both attributes.") if missing else None
    if not pairs and not missing:
        why = absent("no intersection was asked for.")
    metrics = _metrics(audit.rows)
    parts = [
        tag(
            "div",
            tag("h3", words(name)),
            tag("div", *(_grid(audit, name, metric) for metric in metrics[:2]), class_="panels wide"),
            details(
                "The other metrics", tag("div", *(_grid(audit, name, m) for m in metrics[2:]), class_="panels wide")
            )
            if metrics[2:]
            else None,
        )
        for name in pairs
    ]
    return section(
        *SECTIONS[2],
        note(
            "Mean, gap to the other videos, and size of each cell. Blue is better than the others, orange worse; bare "
            "where there are too few subjects. Bold with its verdict where the test of this family finds a difference."
        ),
        *parts,
        why,
    )


def _is_crossing(audit: Fairness, category: str) -> bool:
    return any(row.category == category and row.family == "intersections" for row in audit.rows)


def _grid(audit: Fairness, name: str, metric: str) -> Html:
    rows = {row.group: row for row in audit.rows if row.metric == metric and row.category == name}
    pair = next((a, b) for a, b in audit.settings.intersections if a + CROSSING + b == name)
    down, across = (
        [r.group for r in audit.rows if (r.metric, r.category, r.family) == (metric, category, "classes")]
        for category in pair
    )
    across = [b for b in across if any(a + CROSSING + b in rows for a in down)]
    down = [a for a in down if any(a + CROSSING + b in rows for b in across)]
    head = tag("tr", tag("th", words(pair[0]), scope="col"), *(tag("th", words(b), scope="col") for b in across))
    body = (
        tag(
            "tr",
            tag("th", words(a), scope="row"),
            *(_cell(rows.get(a + CROSSING + b), level_of(audit.settings)) for b in across),
        )
        for a in down
    )
    caption = f"{measure_of(metric).label}: {pair[0]} (rows) by {pair[1]} (columns)"
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_="scroll grid", tabindex="0", role="region", aria_label=caption)


def _cell(row: Row | None, level: Level) -> Html:
    if row is None or row.mean is None:
        return tag("td", tag("span", "no video", class_="why"))
    measure, found = measure_of(row.metric), differs(row, level)
    size = f"{counted(row.subjects, 'subject')} · {FLAGS[row.flag]}"
    shade = "" if row.flag == "insufficient" else _shade(row, measure)
    gap = "" if row.gap is None else f" ({measure.gap(row.gap)})"
    return tag(
        "td",
        tag("strong", measure.score(row.mean), gap) if found else join(measure.score(row.mean), gap),
        tag("span", size, class_="meta"),
        verdict(row, level) if found else None,
        **({"class_": shade} if shade else {}),
    )


def _shade(row: Row, measure: Measure) -> str:
    if row.gap is None or measure.better == "neither":
        return ""
    size = abs(row.gap) * (100 if measure.in_points else 10)
    step = sum(size >= limit for limit in (1.0, 2.0, 4.0, 8.0))
    return f"{'u' if (row.gap > 0) == (measure.better == 'higher') else 'h'}{step}" if step else ""


def _forest_section(audit: Fairness, ids: Mapping[str, str]) -> Html:
    links = tag("nav", items(tag("a", words(name), href=f"#{key}") for name, key in ids.items()), class_="index")
    axes = {metric: forest_axis([row for row in audit.rows if row.metric == metric]) for metric in _metrics(audit.rows)}
    overall = {row.metric: row.mean for row in audit.rows if row.family == "overall"}
    parts = [_category(audit, name, key, axes, overall) for name, key in ids.items() if not _is_crossing(audit, name)]
    parts += [_category(audit, name, key, axes, overall) for name, key in ids.items() if _is_crossing(audit, name)]
    return section(
        *SECTIONS[3],
        note(
            "Mean over videos and its interval (bootstrap-t over people); the dashed line is the mean of all "
            f"videos. Full dot: tested ({audit.settings.sufficient_subjects} subjects or more). Ring: indicative "
            f"({audit.settings.indicative_subjects} or more), interval but no test. Cross: insufficient, a point only. "
            "Orange: the family-wise test finds a difference to the other videos of the category. Sensitive categories "
            "and those with a finding are unfolded."
        ),
        links,
        *parts,
    )


def _category(
    audit: Fairness, name: str, key: str, axes: Mapping[str, Axis], overall: Mapping[str, float | None]
) -> Html:
    rows = [row for row in audit.rows if row.category == name and row.family != "overall"]
    level = level_of(audit.settings)
    marks = [chip("sensitive") if rows[0].sensitive else None, chip(f"of the {rows[0].level}")]
    worse = len({row.group for row in rows if differs(row, level)})
    found = chip(f"{worse} of {len({row.group for row in rows})} classes differ", "bad") if worse else None
    panels = [
        forest_panel(
            [row for row in rows if row.metric == metric],
            axes[metric],
            overall.get(metric),
            level,
            measure_of(metric).label,
        )
        for metric in axes
    ]
    title = join(tag("h3", words(name)), " ", *marks, found)
    full = details("All numbers", _numbers(rows, name, level))
    return tag(
        "div",
        details(title, tag("div", *panels, class_="panels"), full, unfolded=rows[0].sensitive or worse > 0),
        id=key,
    )


def _numbers(rows: Sequence[Row], name: str, level: Level) -> Html:
    head = [
        "Class", "Metric", "Videos", "Subjects", "Mean", "SD", f"{level.confidence} interval", "Gap",
        f"{level.confidence} interval of the gap", "p, adjusted", "Detectable", "Verdict",
    ]  # fmt: skip
    body = [_number_row(row, level) for row in rows]
    return table(
        head, body, caption=f"{name}: all numbers; gaps in points (units of the metric for dtSSD)", text=(0, 1, -1)
    )


def _number_row(row: Row, level: Level) -> list[Html | str]:
    measure = measure_of(row.metric)
    return [
        words(row.group),
        measure.label,
        str(row.videos),
        str(row.subjects),
        measure.score(row.mean),
        measure.score(row.deviation).lstrip("+"),
        measure.score_interval(row.interval),
        measure.gap(row.gap),
        measure.gap_interval(row.gap_interval),
        p_text(row.p_adjusted),
        measure.gap(row.detectable, signed=False),
        verdict(row, level),
    ]
