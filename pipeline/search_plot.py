"""A picture of a search: latency and score of all that was measured."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.search_ledger import Row, SearchResult

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"


def plot(result: SearchResult, budget: float) -> bytes:
    """A PNG: every candidate with a score, the front as a line, the budget as a vertical, presets by name."""
    figure = Figure(figsize=(9, 5.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    shown = [row for row in result.rows if row.score is not None]
    best = max((row.steps for row in result.front), default=0)
    within = [row for row in shown if row.latency_ms <= budget and row.steps == best]
    early = [row for row in shown if row.latency_ms <= budget and row.steps < best]
    beyond = [row for row in shown if row.latency_ms > budget]
    _dots(axes, beyond, "over the budget", _GREY, "x")
    _dots(axes, early, "given up earlier, fewer steps", _GREY, "o")
    _dots(axes, within, "within the budget", _BLUE, "o")
    line = [(row.latency_ms, row.score) for row in result.front]
    axes.plot(*zip(*line, strict=True), color=_ORANGE, marker="o", markersize=7, label="front", zorder=3)
    axes.axvline(budget, color="black", linestyle="--", linewidth=1, label=f"budget, {budget:g} ms")
    _name(axes, shown, {row.candidate for row in result.front})
    axes.set_xlabel("CPU milliseconds per image, one thread")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda ms, _: f"{ms:g}" if f"{ms:g}"[0] in "25" else ""))
    if result.scored_by == "compute × pixels":
        axes.set_yscale("log")
        axes.set_ylabel("MMAC × million pixels (no labels: a stand-in for quality)")
    else:
        axes.set_ylabel("mean IoU on held-out images, short trainings")
    axes.set_title(f"{len(result.rows)} students measured, {len(result.front)} on the front")
    axes.grid(color="#e4e8ec")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", framealpha=0.9)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _dots(axes: Axes, rows: list[Row], label: str, colour: str, marker: str) -> None:
    if rows:
        x, y = [row.latency_ms for row in rows], [row.score or 0.0 for row in rows]
        axes.scatter(x, y, c=colour, marker=marker, s=28, label=label, zorder=2)


def _name(axes: Axes, rows: list[Row], best: set[object]) -> None:
    """Presets by name, other members of the front by their side."""
    for row in rows:
        preset = " " in row.name
        if preset or row.candidate in best:
            text = row.name if preset else f"{row.candidate.side} px"
            place, weight = ((6, -12), "bold") if preset else ((-6, 7), "normal")
            axes.annotate(
                text, (row.latency_ms, row.score or 0.0), xytext=place, textcoords="offset points", fontsize=8,
                fontweight=weight, ha="left" if preset else "right",
            )  # fmt: skip
