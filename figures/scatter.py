"""Predicted against measured compression, one point per row."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.figures.compression import factor_axis
from ratedist.figures.rows import Row, distinct
from ratedist.figures.style import axes_for, predictor_style

__all__ = ["plot_scatter"]


def plot_scatter(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Predicted over measured compression on logarithmic axes, with the line where both agree.

    Args:
        rows: of any layers and thresholds; one colour per predictor.
        ax: where to draw; a new figure where None.
    """
    figure, ax = axes_for(ax)
    highest = max(max(row["compression_measured"], row["compression_predicted"]) for row in rows) * 1.15
    ax.plot([0.9, highest], [0.9, highest], color="#888888", linewidth=1, label="predicted = measured")
    for index, name in enumerate(distinct(rows, "predictor")):
        chosen = [row for row in rows if row["predictor"] == name]
        look = predictor_style(name, index)
        ax.plot(
            [row["compression_measured"] for row in chosen],
            [row["compression_predicted"] for row in chosen],
            linestyle="none",
            marker="o",
            markersize=3,
            alpha=0.45,
            markeredgewidth=0,
            color=look["color"],
            label=look["label"],
        )
    ax.set_xlim(0.9, highest)
    ax.set_ylim(0.9, highest)
    factor_axis(ax, "x")
    factor_axis(ax, "y")
    ax.set_aspect("equal")
    ax.set_xlabel("measured compression")
    ax.set_ylabel("predicted compression")
    return figure, ax
