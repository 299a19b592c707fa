"""The report of an evaluation: one static page that opens offline, with every table and chart in it.

What could not be measured is stated with its reason. Equal tables give equal bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.audit import SECTIONS, findings, group_sections
from evaluation.charts import Floats, Point, axis_of, curves, legend, scatter
from evaluation.coverage import Coverage, coverage_section
from evaluation.estimates import Settings
from evaluation.fairness import Fairness, Row, analyse
from evaluation.forest import level_of
from evaluation.groups import Videos
from evaluation.measures import CONTEXT, NONE, REGION, STEADY, Measure, counted, finite, measure_of
from evaluation.page import Html, absent, document, items, join, note, section, table, tag, words
from evaluation.paired import TITLE, Against, paired_section
from evaluation.strips import strips_section
from evaluation.taxonomy import Taxonomy
from evaluation.temporal import curve

Record = Mapping[str, object]

FILE = "report.html"
_FIRST = 10  # frames of the curves
_NAMED = 5  # worst videos named in a scatter plot
_CURVES = ("iou", "boundary_iou", "boundary_f", "warped_masked")
_UNLABELLED_CURVES = ("adjacent", "warped_masked", "warped")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportTables:
    """What a report is made of. Any number may be None or NaN, and any column but those named "required" absent.

    Attributes:
        frames: rows of frames: `video`, `index` (required), `seconds`, `labelled`, `follows` (the frame before is its
            pair), `band_width`, `area_truth`, `area_found`, and the metrics of `measures`.
        videos: rows of videos: `video` (required, distinct), `subject_id`, `frames`, `pairs`, `labelled` (frames with
            truth), `fps`, `seconds_per_frame`, means of the metrics, `adjacent_excess`, `warped_excess`, `vc8`, `vc16`,
            `pairs_excluded` (a number, or number by reason), `worst_frames` (indices, worst first), and `lag_loss` (a
            number, or one for each lag of 1, 2, … frames) or `lag_iou` (1 less it).
        fairness: the audit, or None.
        fairness_reason: why there is none.
        comparison: how means get their intervals where there is no audit, which else says it.
        pictures: (video, index) -> JPEG of a frame with its masks.
        picture_legend: what the colours of the pictures mean, 8-bit RGB.
        coverage: category -> class -> share of the training data in [0, 1], or None.
        settings: everything the numbers depend on: nested mappings, sequences and plain values.
        model: what identifies the model, such as `id` and `sha256`.
        compare: a second model on the same videos, or None.
    """

    frames: Sequence[Record]
    videos: Sequence[Record]
    fairness: Fairness | None = None
    fairness_reason: str = "no attributes of the videos were given"
    comparison: Settings = field(default_factory=Settings)
    pictures: Mapping[tuple[str, int], bytes] = field(default_factory=dict)
    picture_legend: Sequence[tuple[str, tuple[int, int, int]]] = ()
    coverage: Coverage | None = None
    settings: Mapping[str, object]
    model: Mapping[str, object]
    compare: Against | None = None

    def __post_init__(self) -> None:
        names = Counter(str(row["video"]) for row in self.videos)
        if not names:
            raise ValueError("a report needs at least one video, got none; evaluate a folder that has some")
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise ValueError(f"videos must be distinct, got {twice[0]!r} more than once; rename one")
        strange = sorted({str(row["video"]) for row in self.frames} - set(names))
        if strange:
            raise ValueError(f"frames name video {strange[0]!r}, which has no row in videos; add it")
        for (video, index), picture in self.pictures.items():
            if picture[:3] != b"\xff\xd8\xff":
                raise ValueError(f"picture of {video!r}, frame {index}, must be JPEG bytes, got {picture[:8]!r}")

    @property
    def settled(self) -> Settings:
        """How intervals and tests were made."""
        return self.fairness.settings if self.fairness else self.comparison

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.model.get("id") or "the model")


def write_report(output: Path, tables: ReportTables) -> Path:
    """Writes `report.html` into a folder, under a temporary name first, and returns its path.

    Raises:
        OSError: the folder cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        temporary.write_text(report(tables), encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def report(tables: ReportTables) -> Html:
    """The page."""
    overall = overall_rows(tables)
    title = f"Evaluation of {tables.name}"
    lacks = missing_parts(tables)
    sections = [
        section("missing", "Not measured", items(lacks)) if lacks else None,
        _headline(tables, overall),
        paired_section(tables.name, tables.videos, tables.compare) if tables.compare else None,
        _scatters(tables),
        _first_frames(tables),
        *_group_sections(tables),
        strips_section(tables.frames, tables.videos, tables.pictures, tables.picture_legend),
        coverage_section(tables.fairness, tables.coverage, (_sentence(tables.fairness_reason), _NO_COVERAGE)),
    ]
    body = tag("main", _summary(tables, overall), *sections)
    return document(
        title, tag("header", tag("h1", title), _identity(tables), _navigation(tables)), body, _footer(tables)
    )


_NO_COVERAGE = "the classes of the training data were not given."


def overall_rows(tables: ReportTables) -> dict[str, Row]:
    """Mean and interval of every metric over all videos; those that the audit lacks are computed here, its way."""
    out = {row.metric: row for row in tables.fairness.rows if row.family == "overall"} if tables.fairness else {}
    settings = tables.settled
    scores = {
        measure.key: values
        for measure in (*REGION, *STEADY, *CONTEXT, *_truths())
        if measure.key not in out and not np.isnan(values := _column(tables, measure.key)).all()
    }
    if not scores:
        return out
    subjects = [None if row.get("subject_id") in (None, "") else str(row["subject_id"]) for row in tables.videos]
    videos = Videos(
        names=[str(row["video"]) for row in tables.videos],
        scores=scores,
        attributes={},
        subjects=None if not any(subjects) else subjects,
        ranges={metric: measure_of(metric).span for metric in scores},
    )
    alone = dataclasses.replace(settings, missing="exclude", intersections=())
    return out | {row.metric: row for row in analyse(videos, Taxonomy(categories=()), alone).rows}


def missing_parts(tables: ReportTables) -> list[Html]:
    """What is not in the report, each with its reason."""
    out = (*_missing_scores(tables), *_missing_inputs(tables))
    return [join(tag("strong", part), ": ", _sentence(why)) for part, why in out]


def _missing_scores(tables: ReportTables) -> Iterator[tuple[str, str]]:
    unlabelled = sum(not finite(row.get("labelled")) for row in tables.videos)
    if unlabelled == len(tables.videos):
        why = "no video has labels, which IoU, boundary metrics, excess over the truth, dtSSD and VC need"
        yield "Accuracy", f"{why}; consistency alone says little: a frozen mask scores 1"
    elif unlabelled:
        yield "Accuracy", f"{unlabelled} of {len(tables.videos)} videos have no labels: consistency only"
    if _empty(tables, "adjacent"):
        yield "Consistency", "no frame follows another without a cut or a gap between"
    elif _empty(tables, "warped") and _empty(tables, "warped_masked"):
        yield "Flow-warped consistency", "no optical flow was computed"
    if len(tables.videos) == 1:
        yield "Intervals", "one video only: nothing to tell chance from; every number is that of this video"


def _missing_inputs(tables: ReportTables) -> Iterator[tuple[str, str]]:
    if tables.fairness is None:
        yield "Groups", tables.fairness_reason
    elif tables.fairness.not_given:
        names = ", ".join(tables.fairness.not_given)
        yield "Groups", f"the videos lack {counted(len(tables.fairness.not_given), 'attribute')}: {names}"
    if tables.coverage is None:
        yield "Coverage of the training data", _NO_COVERAGE
    if not tables.pictures:
        yield "Pictures of the worst frames", "none were given"
    if tables.compare is None:
        yield "Comparison", "no second model was given"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _empty(tables: ReportTables, key: str) -> bool:
    return bool(np.isnan(_column(tables, key)).all())


def _truths() -> list[Measure]:
    return [measure_of(measure.truth) for measure in STEADY if measure.truth]


def _column(tables: ReportTables, key: str) -> Floats:
    values = [_lag(row) if key == "lag_loss" else finite(row.get(key)) for row in tables.videos]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _lag(row: Record) -> float | None:
    """What one frame of lateness costs."""
    losses = _losses(row)
    return losses[0] if losses else None


def _losses(row: Record) -> list[float | None]:
    """What 1, 2, … frames of lateness cost."""
    value = row.get("lag_loss")
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(loss) for loss in value]
    if finite(value) is not None:
        return [finite(value)]
    late = row.get("lag_iou")
    if not isinstance(late, (list, tuple, np.ndarray)):
        return []
    return [None if (iou := finite(v)) is None else 1 - iou for v in late]


def _identity(tables: ReportTables) -> Html:
    sha = str(tables.model.get("sha256") or "")
    subjects = {str(row["subject_id"]) for row in tables.videos if row.get("subject_id") not in (None, "")}
    frames, labelled = (int(_total(tables, key)) for key in ("frames", "labelled"))
    people = counted(len(subjects), "subject") if subjects else "subjects unknown"
    sizes = f"{counted(len(tables.videos), 'video')} · {people} · {counted(frames, 'frame')}, {labelled:,} labelled"
    return tag("p", sizes, f" · SHA-256 {sha[:16]}…" if sha else None, class_="note")


def _total(tables: ReportTables, key: str) -> float:
    return sum(finite(row.get(key)) or 0.0 for row in tables.videos)


def _navigation(tables: ReportTables) -> Html:
    parts = [("headline", "Headline"), ("scatter", "Region and boundary"), ("first", "First frames")]
    parts += [("compare", TITLE)] if tables.compare else []
    parts += list(SECTIONS) if tables.fairness else [("groups", "Groups")]
    parts += [("videos", "Video by video"), ("coverage", "Coverage"), ("settings", "Settings")]
    return tag("nav", items(tag("a", title, href=f"#{key}") for key, title in parts), aria_label="Parts of the page")


def _summary(tables: ReportTables, overall: Mapping[str, Row]) -> Html:
    keys = ("iou", "boundary_iou", "boundary_f", "adjacent", "warped_masked", "adjacent_excess", "dtssd")
    tiles = [_tile(overall[key]) for key in keys if key in overall]
    speed = np.array([finite(row.get("seconds_per_frame")) or np.nan for row in tables.videos], np.float64)
    if not np.isnan(speed).all():
        tiles.append(_speed(speed))
    lines = findings(tables.fairness) if tables.fairness else []
    return tag("div", tag("dl", *tiles, class_="tiles"), items(lines) if lines else None)


def _tile(row: Row) -> Html:
    measure = measure_of(row.metric)
    interval = measure.score_interval(row.interval) if row.interval else "no interval"
    return tag("div", tag("dt", measure.label), tag("dd", measure.score(row.mean), tag("small", interval)))


def _speed(seconds: Floats) -> Html:
    median, worst = 1000 * float(np.nanmedian(seconds)), 1000 * float(np.nanmax(seconds))
    value = tag("dd", f"{median:.1f} ms", tag("small", f"slowest {worst:.1f} ms"))
    return tag("div", tag("dt", "Time per frame"), value)


def _headline(tables: ReportTables, overall: Mapping[str, Row]) -> Html:
    level = level_of(tables.settled)
    head = [
        "Metric",
        "Mean",
        f"{level.confidence} interval",
        "Lowest to highest video",
        "Of the truth",
        "Videos",
        "What it is",
    ]
    rows = [_headline_row(tables, measure, overall) for measure in (*REGION, *STEADY, *CONTEXT)]
    remarks = [*(tables.fairness.notes if tables.fairness else _subject_notes(tables)), *_remarks(tables)]
    return section(
        "headline",
        "Headline",
        note(
            "Consistency stands beside IoU because a frozen mask scores 1: steadiness is worth something only where "
            "the region is right, and 0 excess, not 1, is the aim. Numbers are means over videos of means over "
            "their frames or pairs; intervals are bootstrap-t over people."
        ),
        table(head, rows, caption="All videos", text=(0, -1)),
        _lateness(tables),
        items(remarks),
    )


def _headline_row(tables: ReportTables, measure: Measure, overall: Mapping[str, Row]) -> list[Html | str]:
    row = overall.get(measure.key)
    about = tag("span", measure.note, class_="why")
    if row is None:
        return [measure.label, NONE, NONE, NONE, NONE, "0", tag("span", "not measured: ", measure.note, class_="why")]
    values = _column(tables, measure.key)
    interval: Html | str = measure.score_interval(row.interval)
    if row.interval is None:
        interval = tag("span", row.reason, class_="why")
    truth = overall.get(measure.truth)
    return [
        measure.label + (" (1 frame late)" if measure.key == "lag_loss" else ""),
        tag("strong", measure.score(row.mean)),
        interval,
        f"{measure.score(np.nanmin(values))} … {measure.score(np.nanmax(values))}",
        NONE if truth is None else measure.score(truth.mean),
        str(row.videos),
        about,
    ]


def _lateness(tables: ReportTables) -> Html | None:
    table_ = [_losses(row) for row in tables.videos]
    longest = max(map(len, table_))
    if longest < 2 or all(loss is None for row in table_ for loss in row):
        return None
    means = []
    for lag in range(longest):
        losses = [row[lag] for row in table_ if len(row) > lag]
        known = [loss for loss in losses if loss is not None]
        means.append(f"{100 * float(np.mean(known)):.1f}" if known else NONE)
    text = ", ".join(f"{counted(lag, 'frame')} {mean}" for lag, mean in enumerate(means, start=1))
    return note(f"The truth itself, held back, would lose in points of IoU: {text}.")


def _subject_notes(tables: ReportTables) -> list[str]:
    lone = sum(row.get("subject_id") in (None, "") for row in tables.videos)
    if not lone:
        return []
    return [f"{lone} of {counted(len(tables.videos), 'video')} without a subject: each counts as its own subject"]


def _remarks(tables: ReportTables) -> Iterator[str]:
    widths = sorted({int(w) for row in tables.frames if (w := finite(row.get("band_width"))) is not None})
    if widths:
        pixels = f"{widths[0]} to {widths[-1]}" if widths[1:] else str(widths[0])
        yield f"Band of Boundary IoU: {pixels} pixels wide, by image size; its border rule is in the settings"
    reasons: Counter[str] = Counter()
    for row in tables.videos:
        given = row.get("pairs_excluded")
        parts = given.items() if isinstance(given, Mapping) else [("pairs without a number", given)]
        reasons.update({str(why): int(finite(count) or 0) for why, count in parts})
    left_out = ", ".join(f"{why.replace('_', ' ')} {count:,}" for why, count in sorted(reasons.items()) if count)
    yield f"Pairs of neighbouring frames: {int(_total(tables, 'pairs')):,}; without a number: {left_out or 'none'}"
    empty = sum(finite(r.get("area_truth")) == 0 and finite(r.get("area_found")) == 0 for r in tables.frames)
    if empty:
        yield f"{counted(empty, 'frame')} with nobody in truth and prediction: each counts as IoU 1"
    for metric, names in itertools.groupby(tables.fairness.excluded if tables.fairness else (), key=lambda e: e[0]):
        names_ = [name for _, name in names]
        yield (
            f"{measure_of(metric).label}: {counted(len(names_), 'video')} without a score: {', '.join(names_[:5])}"
            + (" …" if len(names_) > 5 else "")
        )


def _scatters(tables: ReportTables) -> Html:
    steady = next((m for m in ("warped_masked", "adjacent") if not _empty(tables, m)), "adjacent")
    charts = [_scatter(tables, "iou", "boundary_iou"), _scatter(tables, "iou", steady)]
    return section(
        "scatter",
        "Region against boundary, region against steadiness",
        note("One dot for each video; the lowest are named. High up on the left, right chart: steady and wrong."),
        tag("div", *charts, class_="panels wide"),
    )


def _scatter(tables: ReportTables, across: str, up: str) -> Html:
    x, y = measure_of(across), measure_of(up)
    rows = zip(tables.videos, _column(tables, across).tolist(), _column(tables, up).tolist(), strict=True)
    found = [(str(row["video"]), a, b) for row, a, b in rows if not (np.isnan(a) or np.isnan(b))]
    title = tag("h3", f"{y.label} against {x.label}")
    if not found:
        return tag("div", title, absent(f"no video has both {x.label} and {y.label}."))
    worst = {name for name, _, _ in sorted(found, key=lambda point: (point[2], point[0]))[:_NAMED]}
    points = [Point(name=name, x=a, y=b, marked=name in worst) for name, a, b in found]
    axes = (axis_of((p.x for p in points), x.span), axis_of((p.y for p in points), y.span))
    return tag("div", title, scatter(points, (x.label, axes[0]), (y.label, axes[1])))


def _first_frames(tables: ReportTables) -> Html:
    by_video = [list(rows) for _, rows in itertools.groupby(_sorted(tables.frames), key=lambda row: str(row["video"]))]
    found = {key: curve([_values(rows, key) for rows in by_video], _FIRST) for key in _CURVES + _UNLABELLED_CURVES}
    keys = [k for k in (_UNLABELLED_CURVES if _empty(tables, "iou") else _CURVES) if found[k].counts.any()]
    title = "The first ten frames"
    if not keys:
        return section("first", title, absent("no frame has a score."))
    means, labels = [found[key].means for key in keys], [measure_of(key).label for key in keys]
    axis = axis_of((value for values in means for value in values.tolist()), (0.0, 1.0))
    text = f"{', '.join(labels)} at each of the first {_FIRST} frames; the numbers are in the table below."
    rows = [
        [label, *(measure_of(key).score(value) for value in found[key].means), *_counts(found[key].counts)]
        for key, label in zip(keys, labels, strict=True)
    ]
    return section(
        "first",
        title,
        note(
            "Mean over videos at each frame as it arrives: at 0 the model has no previous mask, and there is no pair."
        ),
        legend(labels),
        curves(means, ("mean over videos", axis), text, "frame"),
        table(
            ["Frame", *map(str, range(_FIRST)), "Videos"], rows, caption="Mean over videos at each of the first frames"
        ),
    )


def _counts(counts: np.ndarray) -> list[str]:
    known = counts[counts > 0]
    return [str(known.max()) if known.min() == known.max() else f"{known.min()}–{known.max()}"]


def _sorted(frames: Sequence[Record]) -> list[Record]:
    return sorted(frames, key=lambda row: (str(row["video"]), finite(row["index"]) or 0.0))


def _values(rows: Sequence[Record], key: str) -> Floats:
    return np.array([np.nan if (v := finite(row.get(key))) is None else v for row in rows], np.float64)


def _group_sections(tables: ReportTables) -> list[Html]:
    if tables.fairness is not None:
        return group_sections(tables.fairness)
    parts = ", ".join(title.lower() for _, title in SECTIONS)
    return [section("groups", "Groups", absent(_sentence(f"{parts}: {tables.fairness_reason}")))]


def _footer(tables: ReportTables) -> Html:
    parts: dict[str, object] = {"model": tables.model}
    if tables.compare is not None:
        parts["second model"] = tables.compare.model
    parts |= tables.settings
    if tables.fairness is not None:
        parts["fairness"] = dataclasses.asdict(tables.fairness.settings)
    rows = [[words(key), value] for key, value in _flat(parts)]
    inner = table(["Setting", "Value"], rows, caption="Everything the numbers depend on", text=(0, 1))
    return tag("footer", tag("h2", "Settings", id="settings"), inner)


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Paths and values of nested mappings; sequences of plain values stay together."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, (Mapping, list, tuple)) for inner in value):
        for at, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}[{at}]")
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(map(str, value)) or NONE
    else:
        yield prefix, NONE if value in (None, "", {}) else str(value)
