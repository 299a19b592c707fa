"""The judge's page: what its verdicts rest on, what they did to each class and cluster, and the labels themselves.

One static page that opens offline. Equal inputs give equal bytes; every name is escaped where it enters the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evaluation.measures import NONE, counted
from evaluation.page import Child, Html, absent, chip, document, items, join, note, section, shortened, table, tag
from pipeline import judge_groups_page, storage
from pipeline.coverage_page import percent
from pipeline.judge_cases import cases_section, choose_cases, read_cases
from pipeline.judge_summary import FORMAT
from pipeline.stage import Done

PAGE = "judge.html"
NUMBERS = "judge.json"
"""The file with every number of the page."""

_LISTED = 12  # clusters or samples named in a line
_TITLES = {
    "rests": "What this judgement rests on",
    "verdicts": "Verdicts",
    "classes": judge_groups_page.CLASSES,
    "clusters": judge_groups_page.CLUSTERS,
    "cases": "Labels side by side",
    "reading": "How to read this page",
}
_MEANING = {
    "keep": ("the teacher's label as it is", "var(--s0)"),
    "audited": ("kept, with the mask that a person drew", "var(--s2)"),
    "weight": ("the teacher's label, with less weight in training", "color-mix(in srgb,var(--s0) 45%,var(--bg))"),
    "correct": ("the label mended by the student where it is sure", "var(--s3)"),
    "hold": ("left out until a person has looked", "var(--muted)"),
    "drop": ("left out", "var(--mark)"),
    "not judged": ("kept: no student without its cluster exists", "var(--line)"),
    "no label": ("left out: the teacher made none", "var(--ink)"),
}
_TOLD = (
    "The labelled images: the teacher was given, so this run did not teach it with them. Whether it met them before, "
    "the run cannot know."
)
_SHARED = (
    "The students learn from the masks that taught the teacher too: a mistake learnt from these shows in no "
    "disagreement."
)
_GOLD = {
    "given": (True, "They never taught the teacher, and the students that judge it learn from them."),
    "labelled": (True, _TOLD),
    "none": (False, _SHARED),
}
_METHODS = {
    "audit": "fitted to audited labels",
    "mixture": "two groups of labels told apart by their disagreement; no person checked where the border lies",
    "absolute": "fixed limits of disagreement, since the labels do not fall into two groups",
    "mixed": "not the same in each fold (see the table of folds)",
    "none": "nothing was judged",
}


def write_judge_report(
    folder: Path,
    *,
    summary: Mapping[str, Any],
    verdicts: pa.Table,
    labels: Done,
    scores: Done,
    folds: pa.Table,
    title: str,
    cases: int = 24,
) -> list[str]:
    """Writes ``judge.html`` into a folder and returns its name.

    Args:
        folder: exists.
        summary: ``judge.json`` (see ``summary_of``).
        verdicts: N rows (schema ``VERDICTS``).
        labels: the label stage, N rows in the same order; pictures are read of the rows shown alone.
        scores: the score stage, N rows in the same order.
        folds: N rows in the same order, with cluster and fold.
        title: of the page.
        cases: labels shown with pictures at most, beside 8 kept ones; 0 shows none.

    Raises:
        ValueError: the summary is of another format, the tables differ in length, or ``cases`` is negative.
        StageError: the stages are not of the same run, or a part is damaged.
    """
    if summary.get("format") != FORMAT:
        raise ValueError(f"judge.json must have format {FORMAT}, got {summary.get('format')}; judge again")
    if folds.num_rows != verdicts.num_rows:
        raise ValueError(f"folds and verdicts must have one length, got {folds.num_rows} and {verdicts.num_rows}")
    rows = choose_cases(verdicts, folds.column("cluster").to_numpy(), cases)
    shown = read_cases(verdicts, folds, labels, scores, rows)
    why = "no pictures were asked for." if cases == 0 else _why_none(summary)
    navigation = items(tag("a", text, href=f"#{key}") for key, text in _TITLES.items())
    header = tag("header", tag("h1", title), tag("nav", navigation, aria_label="Parts of the page"))
    body = tag(
        "main",
        _rests(summary),
        _verdicts(verdicts),
        judge_groups_page.classes_section(summary["groups"]),
        judge_groups_page.clusters_section(summary["clusters"]),
        cases_section("cases", _TITLES["cases"], shown, why),
        _reading(),
    )
    storage.write_bytes(str(folder / PAGE), document(title, header, body).encode())
    return [PAGE]


def _why_none(summary: Mapping[str, Any]) -> str:
    return f"no label was judged: {summary['reason']}" if not summary["judged"] else "no judged label is to be shown."


# What it rests on -----------------------------------------------------------------------------------------------------


def _rests(summary: Mapping[str, Any]) -> Html:
    gates = [found["gate"] for found in summary["clusters"].values()]
    audit = summary["audit"]
    closed, unsure = gates.count("failed"), gates.count("uncertain")
    tiles = (
        _tile("Labels", f"{summary['labels']:,}"),
        _tile("Judged", f"{summary['judged']:,}", _of(summary["judged"], summary["labels"])),
        _tile("Calibrated", *_calibrated(summary)),
        _tile("Audited labels", f"{audit['used']:,}", *([f"{audit['bad']:,} of them bad"] if audit["used"] else [])),
        _tile("Gates closed", f"{closed:,}", f"of {counted(len(gates), 'cluster')}", f"{unsure:,} uncertain"),
    )
    notes = [str(line) for line in summary["notes"]]
    return section(
        "rests",
        _TITLES["rests"],
        tag("dl", *tiles, class_="tiles"),
        None if summary["judged"] else absent(f"no label was judged: {summary['reason']}"),
        _stand("Gold", *_gold(summary)),
        _stand("Audit", *_audit(summary)),
        tag("h3", "Notes of this run") if notes else None,
        items(notes) if notes else None,
        _facts(summary),
        _folds(summary["folds"]),
    )


def _calibrated(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Whether q is calibrated, and in how many folds."""
    folds = summary["folds"]
    yes = sum(bool(fold["calibrated"]) for fold in folds)
    return "yes" if yes and yes == len(folds) else "in part" if yes else "no", f"{yes} of {counted(len(folds), 'fold')}"


def _of(part: int, whole: int) -> str:
    return percent(part / whole) if whole else NONE


def _tile(name: str, value: str, *below: str) -> Html:
    return tag("div", tag("dt", name), tag("dd", value, *(tag("small", line) for line in below)))


def _stand(name: str, good: bool, head: str, text: str) -> Html:
    """One of the two things a judgement stands on, or that it lacks it."""
    mark = chip("given", "good") if good else chip("missing", "bad")
    border = "" if good else ";border-left-color:var(--mark)"
    return tag(
        "p", tag("strong", f"{name}: {head}."), mark, " ", text, class_="absent", style=f"max-width:110ch{border}"
    )


def _gold(summary: Mapping[str, Any]) -> tuple[bool, str, str]:
    gold = summary["gold"]
    good, text = _GOLD[gold["role"]]
    return good, counted(gold["images"], "human mask") if good else "none", text


def _audit(summary: Mapping[str, Any]) -> tuple[bool, str, str]:
    audit = summary["audit"]
    told = f"{counted(audit['used'], 'audited label')}, {audit['bad']:,} bad"
    if not audit["masks"]:
        return False, "none", (
            "No person checked a label of this run: q orders the labels, but it is no share of bad ones, and whether "
            "it is right in a cluster was not tested."
        )  # fmt: skip
    if audit["chosen"] and not audit["used"]:
        return False, "no random sample", (
            "People drew frames that were chosen from a list. Their masks are labels, but tell no share of bad ones: q "
            "is estimated as if nobody had looked."
        )  # fmt: skip
    if not audit["trusted"]:
        return False, "not trusted", "q is estimated without it, as if nobody had looked."
    if not summary["calibrated"]:
        return False, told, "They could not calibrate q: it is estimated from the disagreement alone."
    return True, told, (
        f"People drew these masks without seeing the teacher's. q is fitted to them in {_calibrated(summary)[1]}, and "
        "the gate of each cluster says whether it finds their bad labels."
    )  # fmt: skip


def _facts(summary: Mapping[str, Any]) -> Html:
    audit = summary["audit"]
    contradictions = [shortened(str(name), 40) for name in audit["contradictions"]]
    rows: list[list[Child]] = [
        ["q comes from", _METHODS.get(summary["method"], str(summary["method"]))],
        ["Policy", str(summary["policy"])],
        ["Labelled images", f"{summary['labelled']:,}"],
        ["Gold images", f"{summary['gold']['images']:,}"],
        ["Audit folders", f"{audit['folders']:,}"],
    ]
    drawn: list[list[Child]] = [
        ["Audit masks", f"{audit['masks']:,} drawn, {audit['unfinished']:,} not yet"],
        ["… of frames not in this run", f"{audit['not_in_run']:,}"],
        ["… of frames without a label", f"{audit['unlabelled']:,}"],
        ["… of frames masked twice", f"{audit['twice']:,}"],
        ["… that contradict each other", _listed(contradictions) or "0"],
        ["… used", f"{audit['used']:,}; the teacher's label is bad in {audit['bad']:,}"],
        ["… used of frames chosen from a list", _chosen(audit)],
        ["… trusted", "yes" if audit["trusted"] else f"no: {audit['reason']}"],
    ]
    told = rows + drawn if audit["folders"] else rows
    return table(["What", "Value"], told, caption="The judgement in facts", text=(0, 1))


def _chosen(audit: Mapping[str, Any]) -> str:
    if not audit["chosen"]:
        return f"0: {audit['chosen_reason']}" if audit["chosen_reason"] else "0"
    return f"{audit['chosen']:,}; the teacher's label was bad in {audit['chosen_bad']:,}, which counts in no rate"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _folds(folds: Sequence[Mapping[str, Any]]) -> Html | None:
    if not folds:
        return None
    rows: list[list[Child]] = [
        [
            str(fold["fold"]),
            f"{fold['labels']:,}",
            f"{fold['audited']:,}",
            chip("yes", "good") if fold["calibrated"] else chip("no", "bad"),
            str(fold["method"]),
            tag("span", _listed([str(cluster) for cluster in fold["clusters"]]), class_="why"),
            tag("span", shortened(str(fold["student_sha256"]), 13), class_="why"),
        ]
        for fold in folds
    ]
    return table(
        ["Fold", "Labels", "Audited", "Calibrated", "q by", "Clusters its student never saw", "Student (sha256)"],
        rows,
        caption="Folds, each calibrated by itself",
        text=(0, 3, 4, 5, 6),
    )


# Verdicts -------------------------------------------------------------------------------------------------------------


def _verdicts(verdicts: pa.Table) -> Html:
    counts = _counts(verdicts)
    if not verdicts.num_rows:
        return section("verdicts", _TITLES["verdicts"], absent("there is no label."))
    rows: list[list[Child]] = [
        [join(_swatch(kind), kind), f"{count:,}", percent(count / verdicts.num_rows), _MEANING[kind][0]]
        for kind, count in counts.items()
    ]
    return section(
        "verdicts",
        _TITLES["verdicts"],
        _bar(counts),
        table(["Verdict", "Labels", "Share", "What becomes of it"], rows, caption="Each label once", text=(0, 3)),
        tag("p", _reasons_text(verdicts)),
    )


def _counts(verdicts: pa.Table) -> dict[str, int]:
    """How many labels each line of the table has; every label is in one."""
    verdict, unjudged = verdicts.column("verdict"), pc.is_null(verdicts.column("q"))
    human = verdicts.column("audited")
    plain = pc.and_(unjudged, pc.invert(human))
    kept, dropped = (pc.and_(plain, pc.equal(verdict, kind)) for kind in ("keep", "drop"))
    special = pc.or_(human, pc.or_(kept, dropped))
    masks = {"keep": None, "audited": human, "weight": None, "correct": None, "hold": None, "drop": None,
             "not judged": kept, "no label": dropped}  # fmt: skip
    return {
        kind: pc.sum(pc.and_(pc.invert(special), pc.equal(verdict, kind)) if mask is None else mask).as_py() or 0
        for kind, mask in masks.items()
    }


def _swatch(kind: str) -> Html:
    return tag("span", class_="swatch", style=f"background:{_MEANING[kind][1]};margin-right:6px;vertical-align:-2px")


def _bar(counts: Mapping[str, int]) -> Html:
    """All labels as one bar; what has none has no piece."""
    parts = (
        tag("span", title=f"{kind}: {count:,}", style=f"flex:{count} 0 3px;background:{_MEANING[kind][1]}")
        for kind, count in counts.items()
        if count
    )
    told = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    style = "display:flex;gap:2px;height:26px;margin:12px 0;border-radius:4px;overflow:hidden"
    return tag("div", *parts, style=style, role="img", aria_label=f"Verdicts: {told}.")


def _reasons_text(verdicts: pa.Table) -> str:
    """The commonest reasons, in words."""
    flat = pc.list_flatten(verdicts.column("reasons").combine_chunks())
    found = {one["values"]: one["counts"] for one in pc.value_counts(flat).to_pylist()}
    top = sorted(found, key=lambda reason: (-found[reason], reason))[:_LISTED]
    if not top:
        return "No verdict needed a reason."
    return "Reasons: " + ", ".join(f"{shortened(reason, 80)} ({found[reason]:,})" for reason in top) + "."


# How to read ----------------------------------------------------------------------------------------------------------

_DEFINITIONS = {
    "q": (
        "probability that a label is bad: that a person's mask would differ from it by more than the limits of the "
        "audit. Where it is not calibrated it orders labels, and its value means little."
    ),
    "miss, extra": (
        "area that only the student takes for a person, and that only the label does, both where the student is sure "
        "(above .7, below .3) and outside a narrow band around the outline; as a share of the area that either takes "
        "for a person. The pictures show all of the difference."
    ),
    "stability": "how far the checkpoints of the student differ; a student that wavers is not believed.",
    "IoU": "intersection over union of student and label over the whole picture.",
    "Gate": (
        "whether q may be acted upon in a cluster. Passed: q finds bad labels there. Failed: the student itself may be "
        "wrong; nothing is dropped, the largest differences are held for a person. Uncertain: too few labels to tell; "
        "weight is all that a label can lose."
    ),
    "AUROC": (
        "probability that a bad audited label has a higher q than a good one, each judged by a fit without it; .5 is "
        "chance. Only with an audit."
    ),
    "Noise": (
        "estimated share of bad labels; audited labels where there are enough, else the mean of q. Each cluster acts "
        "on about so many labels."
    ),
    "Floor": (
        "the share of each cluster and each class that is neither dropped nor held, however high q is: bias must not "
        "be cured by losing whom it hurts. Spared: labels that it kept."
    ),
    "Calibrated": "q was fitted to labels that people checked. Each fold is calibrated by itself.",
    "One threshold": (
        "the keep rate if one limit of q for all clusters had refused as many labels in all. Where it is far below the "
        "keep rate, a global limit would have emptied that class."
    ),
    "What it cannot see": (
        "errors that teacher and students share: of masks that taught both, or of habits of the labellers; and errors "
        "that fill all clusters alike, since then no student has seen it done rightly. A low q is no proof of a good "
        "label. Only an audit finds those."
    ),
}


def _reading() -> Html:
    lines = (join(tag("strong", name), ": ", text) for name, text in _DEFINITIONS.items())
    return section("reading", _TITLES["reading"], items(lines), note(f"Every number is in {NUMBERS}."))
