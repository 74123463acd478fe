"""Serving: tokens per second against the size of the pool, with and without fusion, beside the prediction.

Reads a record of schema ``ratedist/serve/1`` and computes nothing but means over repeats.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.figures.rows import distinct
from ratedist.figures.style import axes_for, style
from ratedist.records import Record

__all__ = ["plot_serving", "save_serving_figure"]

_MODES = (("prefix sharing", "#0072B2", "o"), ("prefix sharing and fusion", "#D55E00", "s"))


def plot_serving(record: Record, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Measured runs as points, predictions as lines, over the pool's share of what the trace takes."""
    figure, ax = axes_for(ax)
    rows = [row for row in record.rows if row["pool_share"] is not None]
    shares = sorted(distinct(rows, "pool_share"))
    for mode, colour, marker in _MODES:
        here = [row for row in rows if row["mode"] == mode]
        ax.plot(
            [row["pool_share"] for row in here],
            [row["tokens_per_second"] for row in here],
            linestyle="none",
            marker=marker,
            color=colour,
            label=f"{mode}, measured",
        )
        ax.plot(
            shares,
            [next(r["tokens_per_second_predicted"] for r in here if r["pool_share"] == s) for s in shares],
            color=colour,
            linestyle="--",
            label=f"{mode}, predicted",
        )
    ax.set_xlabel("pool, as a share of what the trace takes unfused")
    ax.set_ylabel("generated tokens per second")
    ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
    ax.set_ylim(bottom=0)
    ax.set_title(f"{record.rows[0]['workload']}, {record.rows[0]['requests']} requests")
    ax.legend(loc="lower right")
    return figure, ax


def save_serving_figure(record: Record, folder: Path) -> Path:
    """Write ``serving.png`` to a folder, and return its path."""
    path = folder / "serving.png"
    with style():
        figure, _ = plot_serving(record)
        assert isinstance(figure, Figure)
        figure.savefig(path)
        plt.close(figure)
    return path
