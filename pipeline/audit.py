"""What follows from measured videos: classes compared, tables and report written, two evaluations compared.

An evaluation is a folder; `evaluation.json` is written last, and without it the folder is none.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evaluation import versus
from evaluation.audit import ends
from evaluation.estimates import Settings
from evaluation.fairness import Fairness, Row, analyse, to_rows
from evaluation.groups import Videos
from evaluation.measures import measure_of
from evaluation.paired import Against
from evaluation.report import ReportTables, write_report
from evaluation.resample import Interval
from evaluation.taxonomy import default_taxonomy
from evaluation.temporal import curve
from evaluation.versus import Change, Comparison
from evaluation.video import FIRST
from evaluation.worst import WorstGap
from manifests.shard import encode_parquet
from pipeline import storage
from pipeline.clips import VideosTable
from pipeline.errors import InputError
from pipeline.evaluate_config import EvaluateConfig
from pipeline.measure import LEGEND
from pipeline.stage import Span, read_span
from pipeline.step import digest_of, write_json

METRICS = (
    "iou", "boundary_iou", "boundary_iou_interior", "boundary_f",
    "adjacent", "warped_masked", "adjacent_excess", "warped_excess", "dtssd",
)  # fmt: skip
"""The columns of videos that are compared between classes, where any video has them."""

RECORD = "evaluation.json"
_FORMAT = 1
_PICTURED = 100
_NO_MEASURE = {"flow_bytes", "resamples", "seed", "confidence", "margin", "picture_side"}
"""Settings that change no measured number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """What was measured.

    Attributes:
        frames: one row per frame, of schema `pipeline.measure.FRAMES`.
        videos: one row per video, of schema `pipeline.measure.VIDEOS`.
        pictures: the worst frames, of schema `pipeline.measure.PICTURES`.
        given: people and attributes, in the order of the videos.
    """

    frames: pa.Table
    videos: pa.Table
    pictures: pa.Table
    given: VideosTable

    @property
    def names(self) -> list[str]:
        """Those of the videos."""
        names: list[str] = self.videos.column("video").to_pylist()
        return names

    def people(self) -> pa.Table:
        """People and attributes as a table."""
        columns = {"subject_id": self.given.subjects or [None] * len(self.names), **self.given.attributes}
        return pa.table(
            {"video": self.videos.column("video"), **{n: pa.array(v, pa.string()) for n, v in columns.items()}}
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluated:
    """A finished evaluation, or a comparison of two.

    Attributes:
        folder: where it is.
        report: the page.
        record: what its JSON says.
        overall: rows of all videos: of `evaluation.fairness`, or of `evaluation.versus` where two are compared.
    """

    folder: Path
    report: Path
    record: Mapping[str, Any]
    overall: tuple[Row, ...] | tuple[Change, ...]


def scored(tables: Tables) -> Videos:
    """The videos with the metrics that any of them has.

    Raises:
        InputError: there is no such metric.
    """
    scores = {name: tables.videos.column(name).to_numpy() for name in METRICS}
    scores = {name: values for name, values in scores.items() if not np.isnan(values).all()}
    if not scores:
        raise InputError("the videos have neither a truth nor two frames in a row, so there is nothing to measure")
    return Videos(
        names=tables.names,
        scores=scores,
        attributes=tables.given.attributes,
        subjects=tables.given.subjects,
        ranges={name: measure_of(name).span for name in scores},
    )


def audit(tables: Tables, settings: Settings) -> Fairness:
    """The classes compared.

    Raises:
        InputError: there is nothing to compare.
    """
    return analyse(scored(tables), default_taxonomy(), settings)


def _ordered(gap: WorstGap) -> WorstGap:
    """The gap with its ends by what is better: where less of a metric is, the worst class has the largest mean."""
    worst, best = ends(gap)
    return gap if gap.gap is None else replace(gap, worst=worst, best=best)


def finish(
    output: Path,
    record: dict[str, Any],
    tables: Tables,
    settings: Settings,
    coverage: Mapping[str, Mapping[str, float]] | None = None,
) -> Evaluated:
    """Compares the classes and writes tables, report and, last, the record into a folder of its own below `output`.

    Args:
        output: holds evaluations.
        record: model, videos, settings, digests.
        tables: what was measured.
        settings: of the comparison.
        coverage: category -> class -> share of the training data, or None.
    """
    found, people = audit(tables, settings), tables.people()
    named = [record[key] for key in ("measured", "settings", "versions")]
    unique = digest_of([named, people.to_pylist(), coverage])[:8]
    model = re.sub(r"[^\w.-]", "-", record["model"]["id"])
    folder = output / f"{model}-{unique}"
    record = {
        "format": _FORMAT,
        **record,
        "subjects": tables.given.subjects is not None,
        "excluded": [list(pair) for pair in found.excluded],
        "not_given": list(found.not_given),
        "notes": list(found.notes),
        "first_frames": {name: _curve(tables.videos, f"first_{name}") for name in ("iou", "boundary_iou")},
    }
    for name, table in (("frames", tables.frames), ("videos", tables.videos), ("attributes", people)):
        _write_table(folder, name, table)
    _write_table(folder, "pictures", tables.pictures, plain=["jpeg"])
    _write_table(folder, "classes", _rows_table(found.rows, Row))
    _write_table(folder, "worst", _rows_table([_ordered(gap) for gap in found.worst], WorstGap))
    path = write_report(folder, _report_tables(record, tables, found, coverage))
    write_json(folder, RECORD, record)
    return Evaluated(folder=folder, report=path, record=record, overall=_overall(found.rows))


def _overall(rows: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(row for row in rows if row.family == "overall")


def _curve(videos: pa.Table, column: str) -> dict[str, list[Any]]:
    """Mean over videos at each of the first frames, and of how many."""
    found = curve([np.array(values, np.float64) for values in videos.column(column).to_pylist()], FIRST)
    return {"mean": [None if math.isnan(m) else m for m in found.means.tolist()], "videos": found.counts.tolist()}


def _report_tables(
    record: Mapping[str, Any],
    tables: Tables,
    found: Fairness,
    coverage: Mapping[str, Mapping[str, float]] | None,
    compare: Against | None = None,
) -> ReportTables:
    shown = ("flow", "settings", "run", "counts", "pairs_excluded", "versions", "measured")
    return ReportTables(
        frames=tables.frames.to_pylist(),
        videos=tables.videos.to_pylist(),
        fairness=found if tables.given.attributes else None,
        comparison=found.settings,
        pictures=_pictures(tables),
        picture_legend=LEGEND,
        coverage=coverage,
        settings={"videos": record["videos"]["path"], **{name: record[name] for name in shown}},
        model=record["model"],
        compare=compare,
    )


def _pictures(tables: Tables) -> dict[tuple[str, int], bytes]:
    """Those of the worst videos, so that the page can be opened however many videos there are."""
    key = next((n for n in ("boundary_iou", "warped_masked") if n in scored(tables).scores), "adjacent")
    order = np.argsort(tables.videos.column(key).to_numpy(), kind="stable")[:_PICTURED]  # NaN last
    chosen = {tables.names[at] for at in order.tolist()}
    rows = tables.pictures.to_pylist()
    return {(row["video"], row["index"]): row["jpeg"] for row in rows if row["video"] in chosen}


def _write_table(folder: Path, name: str, table: pa.Table, plain: Sequence[str] = ()) -> None:
    storage.write_bytes(str(folder / f"{name}.parquet"), encode_parquet(table, row_group_rows=65536, plain=plain))


def _rows_table(rows: Sequence[Any], kind: type) -> pa.Table:
    """The rows of an analysis; an interval becomes two columns."""
    fields: list[pa.Field] = []
    for name, hint in typing.get_type_hints(kind).items():
        options = [part for part in _parts(hint) if part is not types.NoneType]
        columns = (f"{name}_low", f"{name}_high") if name.endswith("interval") else (name,)
        fields += [pa.field(end, _KINDS.get(options[0], pa.string())) for end in columns]
    return pa.Table.from_pylist(to_rows(rows), schema=pa.schema(fields))


_KINDS = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), Interval: pa.float64()}


def _parts(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


# Finished evaluations -------------------------------------------------------------------------------------------------


def find_evaluation(path: Path) -> Path:
    """The folder of an evaluation: itself, or the only one below the ``--output`` it was written to.

    Raises:
        InputError: there is none, or more than one.
    """
    if (path / RECORD).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"*/{RECORD}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{path} holds no finished evaluation ({RECORD}); run curate evaluate with this --output")
    raise InputError(f"{path} holds {len(found)} evaluations; name one of {', '.join(map(str, found[:5]))}")


def read_evaluation(path: Path) -> tuple[dict[str, Any], Tables]:
    """Record and tables of a finished evaluation; see `find_evaluation`.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    folder = find_evaluation(path)
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if record["format"] != _FORMAT:
            raise InputError(f"{folder} is of format {record['format']}, this program reads {_FORMAT}; evaluate again")
        tables = {n: read_span(Span(uri=str(folder / f"{n}.parquet"))) for n in ("frames", "videos", "pictures")}
        people = read_span(Span(uri=str(folder / "attributes.parquet")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no whole evaluation: {storage.reason(error)}; evaluate again") from error
    columns = {name: tuple(people.column(name).to_pylist()) for name in people.column_names}
    attributes = {name: values for name, values in columns.items() if name not in ("video", "subject_id")}
    subjects = columns["subject_id"] if record["subjects"] else None
    return record, Tables(**tables, given=VideosTable(subjects=subjects, attributes=attributes))


def compare(first: Path, second: Path, output: Path, config: EvaluateConfig | None = None) -> Evaluated:
    """Compares two finished evaluations of the same videos, each video with itself: the first less the second.

    Writes ``compare.parquet``, ``report.html`` (the first model's, with a part on both) and, last, ``compare.json``.

    Args:
        first: folder of an evaluation, or an output that holds one.
        second: likewise.
        output: a folder.
        config: settings of the comparison.

    Raises:
        InputError: no evaluation, other videos, other truths, other attributes, or measured otherwise.
        StorageError: the output cannot be written.
    """
    settings = (config or EvaluateConfig()).settings
    (mine, tables), (theirs, others) = read_evaluation(first), read_evaluation(second)
    _check_alike(mine, theirs)
    try:
        changes = versus.compare(scored(tables), scored(others), default_taxonomy(), settings)
    except ValueError as error:
        raise InputError(f"{first} and {second}: {error}; give both the same --attributes") from error
    if (output / RECORD).exists():
        raise InputError(f"--output {output} is an evaluation, whose report would be lost; choose another folder")
    storage.check_writable(str(output))
    record = {
        "format": _FORMAT,
        "first": {"model": mine["model"], "measured": mine["measured"]},
        "second": {"model": theirs["model"], "measured": theirs["measured"]},
        "videos": mine["videos"],
        "comparison": dataclasses.asdict(settings),
        "excluded": [list(pair) for pair in changes.excluded],
        "notes": list(changes.notes),
    }
    _write_table(output, "compare", _rows_table(changes.rows, Change))
    path = write_report(output, _comparison_report(mine, tables, theirs, others, changes))
    write_json(output, "compare.json", record)
    return Evaluated(folder=output, report=path, record=record, overall=_overall(changes.rows))


def _comparison_report(
    mine: Mapping[str, Any], tables: Tables, theirs: Mapping[str, Any], others: Tables, changes: Comparison
) -> ReportTables:
    against = Against(model=theirs["model"], videos=others.videos.to_pylist(), changes=changes)
    return _report_tables(mine, tables, audit(tables, changes.settings), None, against)


def _check_alike(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Numbers are only comparable where videos, truths and every setting of the measurement are the same."""
    one, other = (record["videos"]["digests"] for record in (mine, theirs))
    lone = sorted(one.keys() ^ other.keys())
    if lone:
        raise InputError(f"both models must be evaluated on the same videos; only one was on {_listed(lone)}")
    unlike = sorted(name for name in one if one[name] != other[name])
    if unlike:
        raise InputError(f"frames or truths of {_listed(unlike)} have changed in between; evaluate both models again")
    if mine["flow"] != theirs["flow"]:
        raise InputError("both models must be measured alike; one was measured without flow; evaluate it again")
    settings = [record["settings"] for record in (mine, theirs)]
    for name in sorted(set(settings[0]) - _NO_MEASURE):
        if settings[0][name] != settings[1].get(name):
            found = f"{settings[0][name]} and {settings[1].get(name)}"
            raise InputError(f"both models must be measured alike; evaluate.{name} is {found}; evaluate one again")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
