"""The second of two rounds: from a larger, labelled choice exactly N frames, by what their masks tell as well.

::

    chosen, label (N times ``select.oversample``) ─ rechosen (driver) ─ relabel (Beam): the labels of what stays
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.assign import balanced_attributes, plan_cells, write_plan
from pipeline.attributes import Given
from pipeline.job import Job
from pipeline.known import in_balance, mask_columns, with_masks
from pipeline.quota import OF_SOURCE, SelectConfig
from pipeline.select import cell_name, trim, turns
from pipeline.stage import Done, Output, Span, Task, identity, iter_tables, read_span
from pipeline.step import write_tables


def choose_again(job: Job, chosen: Done, label: Done, given: Given | None) -> dict[str, Done]:
    """The final choice, its plan, and its labels."""
    rows = job.config.label.rows
    again = job.step(
        "rechosen",
        [identity(job.config.select), job.target, rows],
        [chosen, label],
        ["scipy"],
        lambda folder: _write(folder, chosen, label, job.target, job.config.select, given, rows),
    )
    first = read_span(Span(uri=again.uris()[0]), ["first_row"]).column("first_row").to_pylist()
    spans = relabel_spans(again.uris()[0], first, label.uris(), rows)
    return {"chosen": again, "plan": again, "first_label": label, "label": job.stage(Relabel(), spans, again, label)}


def _write(
    folder: Path, chosen: Done, label: Done, target: int, config: SelectConfig, given: Given | None, rows: int
) -> list[str]:
    labels = pa.concat_tables(iter_tables(label.uris(), mask_columns()))
    table, plan = choose_from(read_span(Span(uri=chosen.uris()[0])), labels, target, config, given)
    return [*write_tables(folder, [table], rows), *write_plan(folder, plan)]


def choose_from(
    chosen: pa.Table, labels: pa.Table, target: int, config: SelectConfig, given: Given | None
) -> tuple[pa.Table, dict[str, Any]]:
    """Exactly ``target`` of the rows, in their order, and the plan.

    Args:
        chosen: rows of the first choice.
        labels: the mask columns of their labels, row for row.
        target: how many stay.
        config: weights and targets.
        given: what the user gave.

    Returns:
        The rows that stay, with the cell of the second round, the product of both inclusion probabilities, and
        ``first_row``, their row in the first choice; and the plan as JSON.
    """
    balanced = balanced_attributes(config, given, masks=True)
    seen = with_masks(chosen.drop_columns([n for n in (OF_SOURCE,) if n in chosen.column_names]), labels)
    keys = chosen.column("key").to_numpy()
    seen = seen.append_column(OF_SOURCE, pa.array(turns(chosen.column("source_uri").to_pylist(), keys), pa.string()))
    columns = [in_balance(seen, name).to_pylist() for name in balanced]
    classes = zip(*columns, strict=True) if columns else ((),) * chosen.num_rows
    paths = chosen.column("cluster_path").to_pylist()
    cells = [cell_name(path, values) for path, values in zip(paths, classes, strict=True)]
    plan = plan_cells(Counter(cells), target, config, balanced, given)
    rows = trim(cells, keys, chosen.column("sample_id").to_pylist(), plan["quotas"])
    stay = chosen.take(pa.array(rows))
    share = pa.array([plan["quotas"][cells[row]] / plan["counts"][cells[row]] for row in rows], pa.float64())
    changed = {
        "cell": pa.array([cells[row] for row in rows], pa.string()),
        "inclusion_prob": pc.multiply(stay.column("inclusion_prob"), share),
    }
    for name, column in changed.items():
        stay = stay.set_column(stay.column_names.index(name), name, column)
    return stay.append_column("first_row", pa.array(rows, pa.int64())), plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabel:
    """The work of the relabel stage; a task is a span of the final choice, and the label parts it needs."""

    name: ClassVar[str] = "relabel"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow",)

    def open(self) -> Callable[[Task], Output]:
        """The function that collects the labels of a task's rows."""
        return functools.partial(_relabel)


def _relabel(task: Task) -> Output:
    span, *parts = task.spans
    wanted = pa.array(read_span(span, ["first_row"]).column("first_row").to_pylist(), pa.int64())
    kept = []
    for part in parts:
        labels = read_span(part)
        kept.append(labels.filter(pc.is_in(labels.column("row"), value_set=wanted)))
    table = pa.concat_tables(kept)
    rows = pa.array(np.arange(span.start, span.start + table.num_rows), pa.int64())
    table = table.set_column(table.column_names.index("row"), table.schema.field("row"), rows)
    return Output(table=table, row_group_rows=64, plain=["picture", "soft", "mask"])


def relabel_spans(uri: str, first: Sequence[int], labels: Sequence[str], rows: int) -> list[tuple[Span, ...]]:
    """The spans of the final choice, each with the label parts that hold its rows.

    Args:
        uri: the table of the final choice.
        first: row in the first choice of each of its rows, ascending.
        labels: the label parts, ``rows`` rows each.
        rows: per task.
    """
    spans = []
    for start in range(0, len(first), rows):
        stop = min(start + rows, len(first))
        needed = sorted({row // rows for row in first[start:stop]})
        spans.append((Span(uri=uri, start=start, stop=stop), *(Span(uri=labels[part]) for part in needed)))
    return spans


def first_target(config: SelectConfig, target: int, pool: int) -> int:
    """How many frames the first round takes."""
    if config.rounds == 1:
        return target
    return min(pool, max(target, round(target * config.oversample)))
