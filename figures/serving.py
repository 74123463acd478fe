"""Serving: tokens per second against the size of the pool, with and without fusion, beside the prediction.

Reads a record of schema ``ratedist/serve/1`` and computes nothing but means over repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.figures.rows import distinct
from ratedist.figures.style import axes_for, style
from ratedist.records import Record

__all__ = ["plot_serving", "save_serving_figure", "serving_figure"]

_MODES = (
    ("prefix sharing", "#0072B2", "o"),
    ("prefix sharing and fusion", "#D55E00", "s"),
    ("transformers", "#777777", "^"),
)


def plot_serving(record: Record, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Measured runs as points, predictions as lines, over the pool's share of what the trace takes.

    A dotted line is the mean of the runs without a limit on the pool: no saved block buys more.
    """
    figure, ax = axes_for(ax)
    rows = [row for row in record.rows if row["pool_share"] is not None]
    shares = sorted(distinct(rows, "pool_share"))
    # Modes stand beside each other: their runs hardly differ, and would hide each other.
    aside = 0.06 * (min(np.diff(shares)) if len(shares) > 1 else shares[0])
    for (mode, colour, marker), side in zip(_MODES, (-aside, aside, 2 * aside), strict=True):
        here = [row for row in rows if row["mode"] == mode]
        if not here:
            continue
        ax.plot(
            [row["pool_share"] + side for row in here],
            [row["tokens_per_second"] for row in here],
            linestyle="none",
            marker=marker,
            color=colour,
            label=f"{mode}, measured",
        )
        if here[0]["tokens_per_second_predicted"] is None:
            continue
        ax.plot(
            [share + side for share in shares],
            [next(r["tokens_per_second_predicted"] for r in here if r["pool_share"] == s) for s in shares],
            color=colour,
            linestyle="--",
            marker="_",
            markersize=22,
            markeredgewidth=2,
            label=f"{mode}, predicted",
        )
    free = [row for row in record.rows if row["pool_share"] is None and row["mode"] == _MODES[0][0]]
    fastest = max(max(row["tokens_per_second"], row["tokens_per_second_predicted"] or 0.0) for row in rows)
    if free:
        unlimited = float(np.mean([row["tokens_per_second"] for row in free]))
        ax.axhline(unlimited, color="#333333", linestyle=":", linewidth=1, label="prefix sharing, no limit")
        fastest = max(fastest, unlimited)
    ax.set_xlabel("pool, as a share of what the trace takes unfused")
    ax.set_ylabel("generated tokens per second")
    ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
    ax.set_ylim(0, 1.12 * fastest)
    if len(shares) == 1:
        ax.set_xlim(0.6 * shares[0], 1.4 * shares[0])
    ax.set_title(f"{record.rows[0]['workload']}, {record.rows[0]['requests']} requests")
    ax.legend(loc="lower right")
    return figure, ax


def serving_figure(records: Sequence[Record]) -> Figure:
    """A panel for each record, at most three in a row, with one legend; draw inside ``style()``."""
    columns = min(3, len(records))
    lines = -(-len(records) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.3 * columns + 0.6, 3.4 * lines + 0.8), squeeze=False, sharey=True
    )
    fastest = 0.0
    for ax, record in zip(grid.flat, records, strict=False):
        plot_serving(record, ax)
        ax.get_legend().remove()
        fastest = max(fastest, ax.get_ylim()[1])
        ax.set_ylim(0, fastest)
    for ax in grid.flat[len(records) :]:
        ax.set_axis_off()
    shown: dict[str, Any] = {}
    for ax in grid.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(handles=list(shown.values()), labels=list(shown), loc="outside lower center", ncols=2)
    return figure


def save_serving_figure(record: Record, folder: Path) -> Path:
    """Write ``serving.png`` to a folder, and return its path."""
    path = folder / "serving.png"
    with style():
        figure, _ = plot_serving(record)
        assert isinstance(figure, Figure)
        figure.savefig(path)
        plt.close(figure)
    return path
