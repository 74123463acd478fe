"""The ladder: compression on every rung against the threshold, and the gaps between the rungs.

Reads a record of ``ratedist simulate`` (schema ``ratedist/ladder/1``) and computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.figures.compression import factor_axis
from ratedist.figures.rows import Row, distinct, select
from ratedist.figures.style import MEASURED, axes_for
from ratedist.records import Record

__all__ = ["plot_gaps", "plot_ladder", "plot_rungs"]

_LOOKS: dict[int, dict[str, Any]] = {
    1: {"color": "#0072B2", "linestyle": "-"},
    2: {"color": "#56B4E9", "linestyle": "none", "marker": "s", "markersize": 7, "markerfacecolor": "none"},
    3: {"color": "#D55E00", "linestyle": "none", "marker": "^", "markersize": 5.5},
    4: MEASURED,
}
_GAPS = {(1, 2): ("#0072B2", "o"), (2, 3): ("#D55E00", "^"), (3, 4): ("#000000", "s")}


def plot_rungs(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Compression on each rung, with two standard errors either way."""
    figure, ax = axes_for(ax)
    for rung in distinct(rows, "rung"):
        chosen = select(rows, rung=rung)
        ax.errorbar(
            [row["threshold"] for row in chosen],
            [row["compression"] for row in chosen],
            yerr=[2 * row["compression_se"] for row in chosen],
            elinewidth=1,
            capsize=2,
            label=f"{rung}: {chosen[0]['name']}",
            **_LOOKS[rung],
        )
    corrected = [row for row in rows if row.get("kept_with_hard_core") is not None]
    if corrected:
        ax.plot(
            [row["threshold"] for row in corrected],
            [row["blocks"] / row["kept_with_hard_core"] for row in corrected],
            color="#009E73",
            linestyle="--",
            label="1 with hard core",
        )
    ax.set_xlabel("threshold τ")
    ax.set_ylabel("compression (fused layers)")
    factor_axis(ax, "y")
    ax.legend(title="rung, ± 2 SE")
    return figure, ax


def plot_gaps(summary: Sequence[dict[str, Any]], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """ln of the ratio of compressions between neighbouring rungs."""
    figure, ax = axes_for(ax)
    for (low, high), (colour, marker) in _GAPS.items():
        chosen = [row for row in summary if row["kind"] == "gap" and (row["from"], row["to"]) == (low, high)]
        if not chosen:
            continue
        ax.plot(
            [row["threshold"] for row in chosen],
            [row["log_ratio"] for row in chosen],
            color=colour,
            marker=marker,
            label=f"{low} → {high}: {chosen[0]['assumption'].split(':')[0]}",
        )
    ax.axhline(0, color="#555555", linewidth=0.8)
    ax.set_xlabel("threshold τ")
    ax.set_ylabel("ln(compression, upper rung / lower rung)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure, ax


def plot_ladder(record: Record) -> Figure:
    """Both, side by side; draw inside ``style()``."""
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.4))
    plot_rungs(record.rows, axes[0])
    plot_gaps(record.summary, axes[1])
    figure.suptitle(record.provenance.get("title", ""))
    return figure
