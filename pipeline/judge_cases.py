"""Single labels on the judge's page: teacher, student and their difference side by side, the most suspect first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from evaluation.charts import colours
from evaluation.measures import NONE
from evaluation.page import Child, Html, absent, chip, join, note, section, shortened, tag
from evaluation.picture import EXTRA, FOUND, MISSED, overlay, shrink
from manifests.mask import decode_soft
from pipeline.coverage_page import percent
from pipeline.embed import decode_jpeg, encode_jpeg
from pipeline.errors import StageError
from pipeline.publish import MAX_PIXELS
from pipeline.stage import Done, Span, read_span

KINDS = ("drop", "correct", "hold", "weight")
"""Verdicts that change a label, in the order of the page."""
COLOURS = (
    ("both see a person", FOUND),
    ("miss: only the student sees a person", MISSED),
    ("extra: only the teacher sees a person", EXTRA),
)
"""What the colours of the third picture mean."""
UNFLAGGED = 8
"""Kept labels shown beside the others."""
REASONS = {
    "part-missing": "the label seems to lack a part",
    "part-surplus": "the label seems to have a part too much",
    "not-local": "too much differs for a correction",
    "part-in-doubt": "a part differs where the student is unsure itself",
    "unstable": "the student's checkpoints differ",
    "gate-failed": "the gate is closed: the largest differences are held for a person",
    "gate-uncertain": "the gate is uncertain: the label only loses weight",
    "floor": "the floor of its cluster or of a class forbids to lose it",
    "doubt": "q is raised, but not so that it is acted upon",
    "nobody": "teacher and student see nobody",
    "nobody-labelled-but-seen": "the label shows nobody, the student sees a person",
    "whole-image-labelled": "the label is the whole picture",
    "mostly-wrong": "people found most of the cluster wrong: all of it that nobody checked is held",
    "drawn": "a person drew the mask, of a frame chosen from a list",
}
"""What the reasons of a verdict say; one that is not here stands as it is."""

_SIDE = 256  # pixels of the long side of a picture
_BYTES = 15_000  # of one picture at most
_ALL_BYTES = 1_700_000  # of all pictures: the page stays below 3 MB
_QUALITIES = (85, 70, 55, 40, 25, 10, 5)
_FEATURES = ("miss", "extra", "stability", "student_iou")
_ROW = "display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:6px;max-width:780px;margin:4px 0"
_PICTURE = "width:100%;height:auto;max-height:260px;object-fit:contain;object-position:left;display:block"
_CARD = "margin:0 0 16px;min-width:0"
_NAMES = ("Teacher", "Student", "Difference")
_TITLES = {
    "drop": "Dropped",
    "correct": "Corrected",
    "hold": "Held for a person",
    "weight": "Weighed down",
    "keep": "Kept, with the highest q",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One label with its pictures.

    Attributes:
        sample_id: of the frame.
        verdict: on it.
        reasons: of the verdict.
        q: probability that the label is bad.
        weight: in training.
        gate: outcome of the cluster's gate.
        cluster: coarse cluster.
        fold: whose student judged it.
        features: miss, extra, stability and student_iou, where known.
        jpegs: the frame with the teacher's mask, with the student's, and grey with their difference.
    """

    sample_id: str
    verdict: str
    reasons: tuple[str, ...]
    q: float
    weight: float
    gate: str
    cluster: int
    fold: int
    features: dict[str, float | None]
    jpegs: tuple[bytes, bytes, bytes]


def choose_cases(verdicts: pa.Table, clusters: NDArray[np.integer], cases: int) -> list[int]:
    """Rows of the cases: the verdicts that change a label in turn, and ``UNFLAGGED`` kept labels behind them.

    Of a verdict the row with the highest q of each cluster comes first, by q; then the second of each, and so on. What
    one verdict lacks the others get. Labels that nobody judged, or that a person drew, are no cases. Ties go by
    sample_id, so the order of the rows changes nothing.

    Args:
        verdicts: N rows (schema ``VERDICTS``).
        clusters: (N,).
        cases: at most so many beside the kept ones; with 0 there are no cases at all.

    Raises:
        ValueError: ``cases`` is negative.
    """
    if cases < 0:
        raise ValueError(f"cases must be >= 0, got {cases}")
    judged = pc.is_valid(verdicts.column("q")).to_numpy() & ~verdicts.column("audited").to_numpy()
    ranked = {kind: _ranked(verdicts, clusters, judged, kind) for kind in (*KINDS, "keep")}
    taken = dict.fromkeys(KINDS, 0)
    left = min(cases, sum(len(ranked[kind]) for kind in KINDS))
    while left:
        for kind in KINDS:
            if left and taken[kind] < len(ranked[kind]):
                taken[kind] += 1
                left -= 1
    flagged = [row for kind in KINDS for row in ranked[kind][: taken[kind]]]
    return flagged + ranked["keep"][: UNFLAGGED if cases else 0]


def _ranked(verdicts: pa.Table, clusters: NDArray[np.integer], judged: NDArray[np.bool_], kind: str) -> list[int]:
    """The judged rows of a verdict: the worst of each cluster first, then the second of each."""
    rows = np.flatnonzero(judged & pc.equal(verdicts.column("verdict"), kind).to_numpy())
    part = verdicts.select(["q", "sample_id"]).take(pa.array(rows))
    order = pc.sort_indices(part, sort_keys=[("q", "descending"), ("sample_id", "ascending")]).to_numpy()
    rows = rows[order]
    mine = clusters[rows]
    by_cluster = np.argsort(mine, kind="stable")
    starts = np.flatnonzero(np.diff(mine[by_cluster], prepend=mine[by_cluster][:1] - 1))
    sizes = np.diff(starts, append=len(rows))
    turn = np.empty(len(rows), np.int64)
    turn[by_cluster] = np.arange(len(rows)) - np.repeat(starts, sizes)
    return [int(row) for row in rows[np.argsort(turn, kind="stable")]]


def read_cases(verdicts: pa.Table, folds: pa.Table, labels: Done, scores: Done, rows: Sequence[int]) -> list[Case]:
    """The cases of some rows with their pictures; one row group of each stage is in memory at a time.

    Args:
        verdicts: N rows.
        folds: N rows with cluster and fold.
        labels: the label stage, N rows with sample_id, picture and soft.
        scores: the score stage, N rows with sample_id, student and what it measured.
        rows: of these tables.

    Raises:
        StageError: the stages and the tables are not of one run, or a part is damaged.
    """
    for done in (labels, scores):
        if done.rows != verdicts.num_rows:
            raise StageError(
                f"stage {done.stage} has {done.rows} rows, the verdicts {verdicts.num_rows}; they are not of one run"
            )
    most = min(_BYTES, _ALL_BYTES // max(1, 3 * len(rows)))
    return [_case(verdicts, folds, labels, scores, row, most) for row in rows]


def _case(verdicts: pa.Table, folds: pa.Table, labels: Done, scores: Done, row: int, most: int) -> Case:
    told, fold = _row(verdicts, row), _row(folds, row)
    label = _read(labels, row, told["sample_id"], ("picture", "soft"))
    score = _read(scores, row, told["sample_id"], ("student", *_FEATURES))
    if label["picture"] is None or score["student"] is None:
        raise StageError(f"{told['sample_id']} has a q, but no label or no student; the stages are not of one run")
    teacher, student = (decode_soft(data, MAX_PIXELS) >= 0.5 for data in (label["soft"], score["student"]))
    pictures = panels(decode_jpeg(label["picture"]), teacher, student)
    return Case(
        sample_id=told["sample_id"],
        verdict=told["verdict"],
        reasons=tuple(told["reasons"]),
        q=told["q"],
        weight=told["weight"],
        gate=told["gate"] or NONE,
        cluster=fold["cluster"],
        fold=fold["fold"],
        features={name: score[name] for name in _FEATURES},
        jpegs=(_packed(pictures[0], most), _packed(pictures[1], most), _packed(pictures[2], most)),
    )


def panels(
    picture: NDArray[np.uint8], teacher: NDArray[np.bool_], student: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A frame with the teacher's mask, with the student's, and in grey with their difference (see ``COLOURS``).

    Args:
        picture: (H, W, 3) uint8 RGB.
        teacher: (H, W) bool.
        student: (H, W) bool.

    Returns:
        Three (h, w, 3) uint8 RGB, at most 256 pixels a side.

    Raises:
        ValueError: the shapes differ.
    """
    small, (label, person) = shrink(picture, [teacher, student], _SIDE)
    return overlay(small, label), overlay(small, person), overlay(small, label, truth=person)


def _row(table: pa.Table, row: int) -> dict[str, Any]:
    return dict(table.slice(row, 1).to_pylist()[0])


def _read(done: Done, row: int, sample_id: str, columns: Sequence[str]) -> dict[str, Any]:
    """One row of a stage, found by the number of rows of its parts."""
    start = 0
    for part in done.parts:
        if part.name.startswith("part-") and start <= row < start + part.rows:
            span = Span(uri=done.uri(part.name), start=row - start, stop=row - start + 1)
            found = _row(read_span(span, ["sample_id", *columns]), 0)
            if found["sample_id"] == sample_id:
                return found
            break
        start += part.rows
    raise StageError(f"row {row} of stage {done.stage} is not {sample_id}; stage and verdicts are not of one run")


def _packed(pixels: NDArray[np.uint8], most: int) -> bytes:
    """The picture at the best quality that needs at most so many bytes."""
    made = (encode_jpeg(pixels, quality) for quality in _QUALITIES)
    return next((data for data in made if len(data) <= most), encode_jpeg(pixels, _QUALITIES[-1]))


def cases_section(key: str, title: str, cases: Sequence[Case], why_none: str) -> Html:
    """The cases verdict by verdict.

    Args:
        key: of the section.
        title: of the section.
        cases: in the order of ``choose_cases``.
        why_none: what to say where there is none.
    """
    if not cases:
        return section(key, title, absent(why_none))
    parts: list[Child] = []
    for verdict, mine in groupby(cases, key=lambda case: case.verdict):
        shown = list(mine)
        parts.append(tag("h3", _TITLES.get(verdict, verdict), " ", tag("span", f"{len(shown)} shown", class_="note")))
        parts.append(tag("div", *map(_card, shown), class_="panels wide"))
    if not any(case.verdict in KINDS for case in cases):
        parts.insert(0, tag("p", "No judged label was dropped, corrected, held or weighed down."))
    return section(
        key,
        title,
        note(
            "Of each verdict the highest q of every cluster first, so that no cluster fills the page; at the end kept "
            "labels with the highest q, to compare. Miss and extra count only where the student is sure; the third "
            "picture, grey with the teacher's outline, shows all that differs:"
        ),
        colours(COLOURS),
        *parts,
    )


def _card(case: Case) -> Html:
    head = join(f"q {_decimals(case.q, 2)} · cluster {case.cluster} · fold {case.fold}", _gate(case.gate))
    shots = (_shot(name, jpeg, case) for name, jpeg in zip(_NAMES, case.jpegs, strict=True))
    reasons = "; ".join(REASONS.get(reason, shortened(reason, 120)) for reason in case.reasons)
    return tag(
        "div",
        tag("h4", head),
        tag("div", *shots, style=_ROW),
        tag("p", _measured(case), class_="note"),
        tag("p", reasons) if reasons else None,
        tag("span", shortened(case.sample_id, 64), class_="meta"),
        style=_CARD,
    )


def _gate(outcome: str) -> Html:
    return chip(f"gate {outcome}", {"failed": "bad", "passed": "good"}.get(outcome, ""))


def _measured(case: Case) -> str:
    found = case.features
    parts = [f"{name} {NONE if found[name] is None else percent(found[name] or 0.0)}" for name in ("miss", "extra")]
    parts.append(f"stability {_decimals(found['stability'], 3)}")
    parts.append(f"IoU {_decimals(found['student_iou'], 2)}")
    return " · ".join([*parts, f"weight {_decimals(case.weight, 2)}"])


def _decimals(value: float | None, places: int) -> str:
    return NONE if value is None else f"{value:.{places}f}"


def _shot(name: str, jpeg: bytes, case: Case) -> Html:
    data = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
    text = f"{name}: a label of cluster {case.cluster}, q {_decimals(case.q, 2)}, {case.verdict}"
    return tag("figure", tag("img", src=data, alt=text, loading="lazy", style=_PICTURE), tag("figcaption", name))
