"""The part of the report on two models: what changed, paired by video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.charts import Point, axis_of, scatter
from evaluation.forest import Level, differs, forest_axis, forest_panel, level_of, verdict
from evaluation.measures import counted, finite, measure_of, p_text
from evaluation.page import Html, absent, details, items, note, section, table, tag, words
from evaluation.versus import Change, Comparison

TITLE = "Against the other model"
_NAMED = 4  # videos named on each side

Record = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Against:
    """A second model on the same videos.

    Attributes:
        model: what identifies it, such as `id` and `sha256`.
        videos: its rows per video, as those of the first model.
        changes: first model less second.
    """

    model: Mapping[str, object] = field(default_factory=dict)
    videos: Sequence[Record]
    changes: Comparison


def paired_section(first: str, videos: Sequence[Record], against: Against) -> Html:
    """Changes of every metric and class, and both models video by video.

    Args:
        first: name of the first model.
        videos: its rows per video.
        against: the second model.
    """
    second = str(against.model.get("id", "the second model"))
    changes, level = against.changes, level_of(against.changes.settings)
    metrics = list(dict.fromkeys(row.metric for row in changes.rows))
    left_out = [f"{measure_of(m).label}: {name}" for m, name in changes.excluded]
    return section(
        "compare",
        TITLE,
        note(
            tag("strong", first),
            " less ",
            tag("strong", second),
            ", each video with itself: above 0 the first has more of the metric. Means and intervals are over videos, "
            "resampled by person; p is adjusted within each metric, for all classes and for all intersections apart.",
        ),
        *(note(text) for text in changes.notes),
        _overall(changes, level),
        *_video_parts(first, second, videos, against, metrics),
        tag("h3", "Changes by class"),
        _class_parts(changes, level, metrics),
        details(f"Left out: {len(left_out)} scores that one of the two lacks", items(left_out)) if left_out else None,
    )


def _overall(changes: Comparison, level: Level) -> Html:
    rows = [row for row in changes.rows if row.family == "overall"]
    head = [
        "Metric", "First", "Second", "Change", f"{level.confidence} interval", "p", "Detectable", "Verdict", "Videos",
        "Subjects",
    ]  # fmt: skip
    return table(
        head,
        (_overall_row(row, level) for row in rows),
        caption="All videos; changes in points, of dtSSD in its own units",
        text=(0, 7),
    )


def _overall_row(row: Change, level: Level) -> list[Html | str]:
    measure = measure_of(row.metric)
    interval: Html | str = measure.gap_interval(row.interval)
    if row.interval is None:
        interval = tag("span", row.reason, class_="why")
    return [
        measure.label,
        measure.score(row.first),
        measure.score(row.second),
        tag("strong", measure.gap(row.change)),
        interval,
        p_text(row.p_adjusted),
        measure.gap(row.detectable, signed=False),
        verdict(row, level),
        str(row.videos),
        str(row.subjects),
    ]


def _video_parts(
    first: str, second: str, videos: Sequence[Record], against: Against, metrics: Sequence[str]
) -> list[Html]:
    metric = next((m for m in ("boundary_iou", "iou", *metrics) if m in metrics), None)
    others = {str(row["video"]): row for row in against.videos}
    pairs = [
        (str(row["video"]), a, b)
        for row in videos
        if metric is not None
        and (a := finite(row.get(metric))) is not None
        and (b := finite(others.get(str(row["video"]), {}).get(metric))) is not None
    ]
    if metric is None or not pairs:
        return [absent("no video has a score of both models.")]
    pairs.sort(key=lambda pair: pair[1] - pair[2])
    far = {name for name, a, b in (*pairs[:_NAMED], *pairs[-_NAMED:]) if a != b}
    axis = axis_of((value for _, a, b in pairs for value in (a, b)), measure_of(metric).span)
    points = [Point(name=name, x=b, y=a, marked=name in far) for name, a, b in pairs]
    label = measure_of(metric).label
    return [
        tag("h3", f"{label}, video by video"),
        note("Above the dashed line the first model is better; the largest changes either way are named."),
        scatter(points, (f"{label} of {second}", axis), (f"{label} of {first}", axis), diagonal=True),
        details("Every video", _video_table(pairs, metric)),
    ]


def _video_table(pairs: Sequence[tuple[str, float, float]], metric: str) -> Html:
    measure = measure_of(metric)
    rows = ([words(name), measure.score(a), measure.score(b), measure.gap(a - b)] for name, a, b in pairs)
    return table(["Video", "First", "Second", "Change"], rows, caption=f"{measure.label}; largest losses first")


def _class_parts(changes: Comparison, level: Level, metrics: Sequence[str]) -> Html:
    classes = [row for row in changes.rows if row.family != "overall"]
    if not classes:
        return absent("the videos have no attribute.")
    found = sum(differs(row, level) for row in classes)
    parts = [_metric_part([row for row in classes if row.metric == metric], level) for metric in metrics]
    return tag("div", note(f"The family-wise tests find {counted(found, 'change')} of a class (orange)."), *parts)


def _metric_part(rows: Sequence[Change], level: Level) -> Html:
    axis = forest_axis(rows)
    categories = list(dict.fromkeys(row.category for row in rows))
    panels = (forest_panel([r for r in rows if r.category == name], axis, 0.0, level, name) for name in categories)
    return details(
        tag("h4", measure_of(rows[0].metric).label),
        tag("div", *panels, class_="panels"),
        details("All numbers", _numbers(rows, level)),
    )


def _numbers(rows: Sequence[Change], level: Level) -> Html:
    head = [
        "Class", "Category", "Subjects", "First", "Second", "Change", f"{level.confidence} interval", "p, adjusted",
        "Detectable", "Change of the gap", f"{level.confidence} interval of it", "Verdict",
    ]  # fmt: skip
    caption = f"{measure_of(rows[0].metric).label}; changes in {measure_of(rows[0].metric).unit}"
    return table(head, (_number_row(row, level) for row in rows), caption=caption, text=(0, 1, -1))


def _number_row(row: Change, level: Level) -> list[Html | str]:
    measure = measure_of(row.metric)
    return [
        words(row.group),
        words(row.category),
        str(row.subjects),
        measure.score(row.first),
        measure.score(row.second),
        measure.gap(row.change),
        measure.gap_interval(row.interval),
        p_text(row.p_adjusted),
        measure.gap(row.detectable, signed=False),
        measure.gap(row.gap_change),
        measure.gap_interval(row.gap_change_interval),
        verdict(row, level),
    ]
