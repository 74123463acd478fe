"""One layer looked at closely: matches per block beside laws, and similarity by distance of positions.

Reads records of ``ratedist inspect`` (schema ``ratedist/inspect/1``) and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.errors import InputError
from ratedist.figures.style import axes_for
from ratedist.records import Record

__all__ = ["counts_figure", "differences_figure", "plot_counts", "plot_differences"]

_LAWS = {
    "gaussian": ("Poisson, rate of a Gaussian (the paper's)", "#D55E00", "^", "--"),
    "poisson": ("Poisson, measured rate", "#E69F00", "s", ":"),
    "position-marked": ("Poisson, rate by position", "#0072B2", "o", "-"),
    "heterogeneous": ("the same, rates varying within positions", "#009E73", "D", "--"),
}
_TEXTS = {
    None: ("all pairs", "#0072B2"),
    False: ("other text", "#0072B2"),
    True: ("same text", "#D55E00"),
}


def plot_counts(record: Record, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Blocks by the number of their matches: measured as bars, what four laws expect as lines.

    Raises InputError where the record holds no counts.
    """
    figure, ax = axes_for(ax)
    rows = _rows(record, "counts")
    places = np.arange(len(rows))
    ax.bar(places, [row["blocks"] for row in rows], width=0.86, color="#CFCFCF", label="measured")
    for law, (label, colour, marker, line) in _LAWS.items():
        ax.plot(
            places,
            [row[law] for row in rows],
            color=colour,
            marker=marker,
            markersize=5.5,
            markerfacecolor="none" if law == "heterogeneous" else colour,
            linestyle=line,
            linewidth=1.3,
            label=label,
        )
    names = [f"{r['low']}" if r["low"] == r["high"] else f"{r['low']}–{r['high']}" for r in rows]
    ax.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("matches of a block")
    ax.set_ylabel("blocks")
    ax.set_ylim(bottom=0)
    ax.set_title(_title(record))
    return figure, ax


def plot_differences(record: Record, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Similarity of keys by how many blocks apart two blocks stand: median, and 5 to 95 % of the pairs.

    Pairs of the same and of other text are told apart where the record does so. Raises InputError where it
    holds no similarities.
    """
    figure, ax = axes_for(ax)
    rows = _rows(record, "difference")
    for kind, (label, colour) in _TEXTS.items():
        here = sorted((row for row in rows if row["same_text"] is kind), key=lambda row: row["difference"])
        if not here:
            continue
        apart = np.array([row["difference"] for row in here])
        low, middle, high = (np.array([row[f"k_q{q}"] for row in here]) for q in ("05", "50", "95"))
        # A line through differences without a pair of this kind would show what is not there.
        marks: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3.2}
        for part in np.split(np.arange(len(here)), np.nonzero(np.diff(apart) > 1)[0] + 1):
            ax.plot(apart[part], middle[part], **marks, label=label if part[0] == 0 else None)
        ax.vlines(apart, low, high, color=colour, linewidth=2.4, alpha=0.35)
    settings = record.provenance
    ax.axhline(settings["threshold"], color="#555555", linewidth=0.9, linestyle="--", label="threshold τ")
    ax.set_xlabel("blocks apart, |i − j|")
    ax.set_ylabel("similarity of keys")
    lowest = min(settings["threshold"], *(row["k_q05"] for row in rows))
    ax.set_ylim(lowest - 0.05, 1.03)
    ax.set_title(settings["workload"])
    return figure, ax


def counts_figure(records: Sequence[Record]) -> Figure:
    """A panel of ``plot_counts`` for each record; draw inside ``style()``."""
    return _panels(records, plot_counts, share_y=False)


def differences_figure(records: Sequence[Record]) -> Figure:
    """A panel of ``plot_differences`` for each record; draw inside ``style()``."""
    return _panels(records, plot_differences, share_y=True)


def _panels(
    records: Sequence[Record],
    plot: Callable[[Record, Axes], tuple[Figure | SubFigure, Axes]],
    *,
    share_y: bool,
) -> Figure:
    columns = 2 if len(records) in (2, 4) else min(3, len(records))
    lines = -(-len(records) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.2 * columns + 0.4, 3.1 * lines + 0.9), squeeze=False, sharey=share_y
    )
    handles: dict[str, Any] = {}
    lowest = 1.0
    for ax, record in zip(grid.flat, records, strict=False):
        plot(record, ax)
        if share_y:
            lowest = min(lowest, ax.get_ylim()[0])
            ax.set_ylim(bottom=lowest)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in grid.flat[len(records) :]:
        ax.set_axis_off()
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(3, len(handles))
    )
    settings = records[0].provenance
    figure.suptitle(
        f"{settings['model']}, layer {settings['layer']}, threshold {settings['threshold']:g} "
        f"on {settings['criterion']}, {settings['requests']} requests"
    )
    return figure


def _rows(record: Record, kind: str) -> list[dict[str, Any]]:
    rows = [row for row in record.rows if row["kind"] == kind]
    if not rows:
        raise InputError("record", f"no rows of kind {kind}", "make one with ratedist inspect")
    return rows


def _title(record: Record) -> str:
    there = next(entry for entry in record.summary if entry["kind"] == "exceedances")
    return f"{record.provenance['workload']}: {there['per_block']:.3g} per block"
