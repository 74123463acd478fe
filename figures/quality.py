"""What compression of the whole cache costs, fusion among its rivals: in divergence or in distortion.

Reads a quality record (schema ``ratedist/quality/1``) and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.errors import InputError
from ratedist.figures.compression import factor_axis
from ratedist.figures.rows import Row, distinct
from ratedist.figures.style import axes_for, style
from ratedist.figures.validation import _save
from ratedist.records import Record

__all__ = ["COSTS", "plot_rate_cost", "quality_figure", "save_quality_figure"]

PICTURE = "quality.png"

_Belongs = Callable[[Row], bool]

_CRITERIA = {
    "keys": ("keys", "#D55E00", "o"),
    "both": ("keys and values", "#009E73", "s"),
    "mean": ("their mean", "#CC79A7", "p"),
    "distance": ("distance", "#E69F00", "h"),
}
_OTHER = ("#8C510A", "*")
_VARIANTS = {"leader": "-", "tree": ":", "centroid": "-.", "components": "--"}
_RIVALS: tuple[tuple[str, _Belongs, str, str, str], ...] = (
    ("2, 3, 4 bits (KIVI's layout)", lambda r: r["method"].startswith("kivi"), "#0072B2", "D", "-"),
    ("int8 per token", lambda r: r["method"] == "int8", "#0072B2", "P", "none"),
    ("exact sharing × bits", lambda r: r["method"].startswith("exact+"), "#56B4E9", "v", "--"),
    ("eviction (H2O)", lambda r: r["method"].startswith("evict"), "#777777", "^", "-"),
)


@dataclass(frozen=True)
class _Cost:
    """A field of the rows, its standard error, what the axis calls it, and where the axis begins.

    Below ``lowest`` a logarithm says nothing any more: such points are drawn at the lower edge.
    """

    field: str
    error: str | None
    label: str
    lowest: float


COSTS = {
    "kl": _Cost("kl_mean", "kl_mean_se", "mean next-token KL (nats)", 1e-4),
    "attention": _Cost("attention_error", None, "relative error of the attention output", 1e-3),
}
"""What can be drawn against compression."""


def plot_rate_cost(
    rows: Sequence[Row], ax: Axes | None = None, cost: str = "kl"
) -> tuple[Figure | SubFigure, Axes]:
    """One workload: a cost against compression of the whole cache, both logarithmic.

    A line per scheme through its settings, from the least to the most compressed; exact sharing, which costs
    nothing, is the vertical line; 4 bits are ringed. Bars are one standard error over requests.

    Args:
        rows: of one workload.
        ax: where to draw; a new figure where None.
        cost: a key of ``COSTS``.

    Raises InputError where there is nothing to draw, or for another cost.
    """
    if cost not in COSTS:
        raise InputError("cost", cost, f"unknown; choose one of {', '.join(COSTS)}")
    figure, ax = axes_for(ax)
    if not rows:
        raise InputError("rows", [], "must hold at least one row of a quality record")
    shown = COSTS[cost]
    fusion = [row for row in rows if row["method"] == "fusion"]
    for variant, criterion in dict.fromkeys((row["variant"], row["criterion"]) for row in fusion):
        chosen = [row for row in fusion if (row["variant"], row["criterion"]) == (variant, criterion)]
        name, colour, marker = _CRITERIA.get(criterion, (criterion, *_OTHER))
        # Other variants stand beside the leader in the criterion's colour, hollow.
        face = colour if variant == "leader" else "white"
        line = _VARIANTS.get(variant, "--")
        _line(ax, chosen, shown, f"fusion by {name}, {variant}", colour, marker, line, face=face)
    fused = [row for row in rows if row["method"].startswith("fusion+")]
    for name in distinct(fused, "method"):
        chosen = [row for row in fused if row["method"] == name]
        label = f"fusion × {name.partition('+')[2].replace('kivi', '')} bits".replace("int8 bits", "int8")
        _line(ax, chosen, shown, label, "#000000", "x", "none", bars=False)
    for label, belongs, colour, marker, line in _RIVALS:
        _line(ax, [row for row in rows if belongs(row)], shown, label, colour, marker, line)
    for row in rows:
        if row["method"] == "exact":
            ax.axvline(
                row["compression"],
                color="#000000",
                linewidth=1.2,
                linestyle="--",
                label="exact sharing (costs nothing)",
            )
        if row["method"] == "kivi4":
            ax.plot(
                [row["compression"]],
                [max(row[shown.field], shown.lowest)],
                marker="o",
                markersize=13,
                color="#000000",
                markerfacecolor="none",
                linestyle="none",
                label="4 bits",
                zorder=4,
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(shown.lowest, _top(rows, shown))
    ax.set_xlabel("compression of the whole cache")
    ax.set_ylabel(shown.label)
    factor_axis(ax, "x")
    ax.set_title(rows[0]["workload"])
    return figure, ax


def quality_figure(record: Record, cost: str = "kl") -> Figure:
    """A panel per workload, on common axes, with one legend; ``cost`` as in ``plot_rate_cost``."""
    workloads = distinct(record.rows, "workload")
    if not workloads:
        raise InputError("record", "no rows", "must hold at least one row")
    columns = min(3, len(workloads)) if len(workloads) != 4 else 2
    lines = math.ceil(len(workloads) / columns)
    with style():
        figure, grid = plt.subplots(
            lines,
            columns,
            figsize=(max(4.3 * columns + 0.4, 8.0), 3.5 * lines + 1.2),
            squeeze=False,
            sharex=True,
            sharey=True,
        )
        handles: dict[str, Any] = {}
        for ax, workload in zip(grid.flat, workloads, strict=False):
            plot_rate_cost([row for row in record.rows if row["workload"] == workload], ax, cost)
            found, labels = ax.get_legend_handles_labels()
            handles |= dict(zip(labels, found, strict=True))
            ax.label_outer()
        for ax in grid.flat[max(0, len(workloads) - columns) : len(workloads)]:  # nothing stands below them
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("compression of the whole cache")
        for ax in grid.flat[len(workloads) :]:
            ax.set_axis_off()
        # The axes are shared: a panel's own limits would cut off what the others hold.
        grid[0, 0].set_ylim(COSTS[cost].lowest, _top(record.rows, COSTS[cost]))
        first = record.rows[0]
        figure.suptitle(
            f"{record.provenance.get('model', 'a model')}: {first['requests']} requests, "
            f"continuations of {first['continuation']} tokens over the compressed cache"
        )
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return figure


def save_quality_figure(record: Record, folder: Path) -> Path:
    """Write ``quality.png`` to a folder, and return its path.

    Raises RatedistError where it cannot be written.
    """
    figure = quality_figure(record)
    try:
        return _save(figure, folder / PICTURE)
    finally:
        plt.close(figure)


def _top(rows: Sequence[Row], cost: _Cost) -> float:
    """Upper end of an axis that holds all costs and their bars."""
    highest = max((row[cost.field] or 0.0 for row in rows), default=0.0)
    return max(2.0 * highest, 10.0 * cost.lowest)


def _line(
    ax: Axes,
    rows: Sequence[Row],
    cost: _Cost,
    label: str,
    colour: str,
    marker: str,
    line: str,
    *,
    face: str | None = None,
    bars: bool = True,
) -> None:
    known = (row for row in rows if row[cost.field] is not None and row[cost.field] > 0)
    chosen = sorted(known, key=lambda row: row["compression"])
    if not chosen:
        return
    x, y = [row["compression"] for row in chosen], [max(row[cost.field], cost.lowest) for row in chosen]
    if bars and cost.error is not None:
        error = [min(row[cost.error] or 0.0, 0.9 * high) for row, high in zip(chosen, y, strict=True)]
        ax.errorbar(x, y, yerr=error, color=colour, linestyle="none", linewidth=0.9)
    ax.plot(
        x,
        y,
        label=label,
        color=colour,
        marker=marker,
        markersize=5,
        markerfacecolor=face or colour,
        linestyle=line,
    )
