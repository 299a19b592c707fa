"""The course of a training, as a table and as a picture."""

import csv
import io
import math
from collections.abc import Sequence

from matplotlib.figure import Figure

#: A row: step from 1 on, the losses, learning rate, and the held-out IoU or NaN.
Row = Sequence[float]

_COLOURS = ("#0072B2", "#D55E00", "#CC79A7")
_SMOOTH = 0.02  # share of all steps over which the losses are averaged


def columns(losses: Sequence[str]) -> tuple[str, ...]:
    """The names of a row's values."""
    return ("step", *(f"loss_{name}" for name in losses), "lr", "held_out_iou")


def curve_csv(losses: Sequence[str], rows: Sequence[Row]) -> bytes:
    """The rows as CSV with a header; an IoU that was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(losses))
    for step, *values, score in rows:
        shown = "" if math.isnan(score) else f"{score:.6f}"
        writer.writerow([int(step), *(f"{value:.6g}" for value in values), shown])
    return text.getvalue().encode()


def curve_png(losses: Sequence[str], rows: Sequence[Row], best_step: int) -> bytes:
    """A PNG of the losses, running means over 2 % of the steps, above the held-out IoU; equal rows, equal bytes."""
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = [row[0] for row in rows]
    for column, (name, colour) in enumerate(zip(losses, _COLOURS, strict=False), start=1):
        top.plot(steps, _running(rows, column), color=colour, linewidth=1.5, label=name)
    top.set_yscale("log")
    for axis in (top.yaxis.set_major_formatter, top.yaxis.set_minor_formatter):
        axis("{x:.3g}")  # not powers of ten
    top.set_ylabel("loss")
    top.legend(title="training loss (running mean)", loc="lower left")
    top.grid(alpha=0.3, which="both")
    measured = [(row[0], row[-1]) for row in rows if not math.isnan(row[-1])]
    if measured:
        bottom.plot(*zip(*measured, strict=True), color="#009E73", marker="o", markersize=4)
    best = dict(measured).get(best_step)
    if best is not None:
        bottom.plot([best_step], [best], color="black", marker="*", markersize=12, linestyle="none",
                    label=f"kept: step {best_step}, IoU {best:.4f}")  # fmt: skip
        bottom.legend(loc="lower right")
    bottom.set_ylabel("IoU, held-out images\n(moving average)")
    bottom.set_xlabel("step")
    bottom.set_ylim(0, 1)
    bottom.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _running(rows: Sequence[Row], column: int) -> list[float]:
    """Means of the last rows up to each."""
    window = max(1, round(len(rows) * _SMOOTH))
    sums = [0.0]
    for row in rows:
        sums.append(sums[-1] + row[column])
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]
