"""Rate against divergence: compression of the whole cache against next-token KL, fusion among its rivals.

Reads a quality record (schema ``ratedist/quality/1``) and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

__all__ = ["plot_rate_kl", "quality_figure", "save_quality_figure"]

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
_LOWEST = 1e-4
"""KL below this is drawn at the lower edge: its logarithm says nothing any more."""


def plot_rate_kl(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """One workload: mean next-token KL against compression of the whole cache, both logarithmic.

    A line per scheme through its settings, from the least to the most compressed; exact sharing, which costs
    nothing, is the vertical line; 4 bits are ringed. Bars are one standard error over requests.

    Args:
        rows: of one workload.
        ax: where to draw; a new figure where None.

    Raises InputError where there is nothing to draw.
    """
    figure, ax = axes_for(ax)
    if not rows:
        raise InputError("rows", [], "must hold at least one row of a quality record")
    fusion = [row for row in rows if row["method"] == "fusion"]
    for variant, criterion in dict.fromkeys((row["variant"], row["criterion"]) for row in fusion):
        chosen = [row for row in fusion if (row["variant"], row["criterion"]) == (variant, criterion)]
        name, colour, marker = _CRITERIA.get(criterion, (criterion, *_OTHER))
        # Other variants stand beside the leader in the criterion's colour, hollow.
        face = colour if variant == "leader" else "white"
        line = _VARIANTS.get(variant, "--")
        _line(ax, chosen, f"fusion by {name}, {variant}", colour, marker, line, face=face)
    fused = [row for row in rows if row["method"].startswith("fusion+")]
    for name in distinct(fused, "method"):
        chosen = [row for row in fused if row["method"] == name]
        label = f"fusion × {name.partition('+')[2].replace('kivi', '')} bits".replace("int8 bits", "int8")
        _line(ax, chosen, label, "#000000", "x", "none", bars=False)
    for label, belongs, colour, marker, line in _RIVALS:
        _line(ax, [row for row in rows if belongs(row)], label, colour, marker, line)
    for row in rows:
        if row["method"] == "exact":
            ax.axvline(
                row["compression"],
                color="#000000",
                linewidth=1.2,
                linestyle="--",
                label="exact sharing (KL 0)",
            )
        if row["method"] == "kivi4":
            ax.plot(
                [row["compression"]],
                [max(row["kl_mean"], _LOWEST)],
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
    ax.set_ylim(bottom=_LOWEST)
    ax.set_xlabel("compression of the whole cache")
    ax.set_ylabel("mean next-token KL (nats)")
    factor_axis(ax, "x")
    ax.set_title(rows[0]["workload"])
    return figure, ax


def quality_figure(record: Record) -> Figure:
    """A panel per workload, on common axes, with one legend."""
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
            plot_rate_kl([row for row in record.rows if row["workload"] == workload], ax)
            found, labels = ax.get_legend_handles_labels()
            handles |= dict(zip(labels, found, strict=True))
            ax.label_outer()
        for ax in grid.flat[len(workloads) :]:
            ax.set_axis_off()
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


def _line(
    ax: Axes,
    rows: Sequence[Row],
    label: str,
    colour: str,
    marker: str,
    line: str,
    *,
    face: str | None = None,
    bars: bool = True,
) -> None:
    chosen = sorted((row for row in rows if row["kl_mean"] > 0), key=lambda row: row["compression"])
    if not chosen:
        return
    x, y = [row["compression"] for row in chosen], [max(row["kl_mean"], _LOWEST) for row in chosen]
    if bars:
        error = [min(row["kl_mean_se"] or 0.0, 0.9 * kl) for row, kl in zip(chosen, y, strict=True)]
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
