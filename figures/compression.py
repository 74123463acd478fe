"""Compression against threshold: predicted curves over measured points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log
from statistics import median
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, Locator, NullLocator

from ratedist.figures.rows import Row, distinct, select
from ratedist.figures.style import MEASURED, axes_for, predictor_style

__all__ = ["factor_axis", "plot_compression", "plot_compression_of_layers"]


def plot_compression(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """One layer: measured compression as points, every predictor's as a line.

    Args:
        rows: of one workload, layer, variant and criterion.
        ax: where to draw; a new figure where None.
    """
    figure, ax = axes_for(ax)
    predictors = distinct(rows, "predictor")
    for index, name in enumerate(predictors):
        chosen = select(rows, predictor=name)
        ax.plot(
            [row["threshold"] for row in chosen],
            [row["compression_predicted"] for row in chosen],
            **predictor_style(name, index),
        )
    chosen = select(rows, predictor=predictors[0])
    ax.plot(
        [row["threshold"] for row in chosen],
        [row["compression_measured"] for row in chosen],
        label="measured",
        zorder=3,
        **MEASURED,
    )
    _label(ax)
    ax.set_title(f"layer {chosen[0]['layer']}")
    return figure, ax


def plot_compression_of_layers(
    rows: Sequence[Row], ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """All layers: the median over layers, and the range from the lowest to the highest.

    Args:
        rows: of one workload, variant and criterion.
        ax: where to draw; a new figure where None.
    """
    figure, ax = axes_for(ax)
    predictors = distinct(rows, "predictor")
    for index, name in enumerate(predictors):
        thresholds, low, middle, high = _over_layers(select(rows, predictor=name), "compression_predicted")
        look = predictor_style(name, index)
        ax.plot(thresholds, middle, **look)
        ax.fill_between(thresholds, low, high, color=look["color"], alpha=0.13, linewidth=0)
    thresholds, low, middle, high = _over_layers(
        select(rows, predictor=predictors[0]), "compression_measured"
    )
    bars = [
        [m - lowest for m, lowest in zip(middle, low, strict=True)],
        [highest - m for m, highest in zip(middle, high, strict=True)],
    ]
    ax.errorbar(
        thresholds, middle, yerr=bars, label="measured", elinewidth=1, capsize=2, zorder=3, **MEASURED
    )
    _label(ax)
    ax.set_title(f"median and range of {len(distinct(rows, 'layer'))} layers")
    return figure, ax


def factor_axis(ax: Axes, which: str) -> None:
    """A logarithmic axis (``"x"`` or ``"y"``) whose ticks read as factors: 1×, 2×, 5×."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_major_locator(_FactorLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_minor_locator(NullLocator())


class _FactorLocator(Locator):
    """Round factors, as many as there is room for."""

    _SCALES: ClassVar = (
        [1 + step / 100 for step in range(0, 100, 2)],
        [1 + step / 20 for step in range(40)],
        [1 + step / 10 for step in range(40)],
        [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12],
        [1, 1.5, 2, 3, 5, 8, 12, 20, 30, 50, 80],
        [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
        [10**power for power in range(10)],
    )
    _SPACING = 0.13
    """Least distance of two ticks, as a share of the axis."""

    def __call__(self) -> Sequence[float]:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        room = self._SPACING * log(vmax / vmin)
        for ticks in self._SCALES:
            inside = [tick for tick in ticks if vmin * 0.999 <= tick <= vmax * 1.001]
            apart = all(log(high / low) >= room for low, high in pairwise(inside))
            if apart and ticks[-1] * ticks[-1] / ticks[-2] > vmax:
                return inside
        return [1.0]


def _label(ax: Axes) -> None:
    ax.set_xlabel("threshold τ")
    ax.set_ylabel("compression (fused layer)")
    factor_axis(ax, "y")


def _over_layers(
    rows: Sequence[Row], field: str
) -> tuple[list[float], list[float], list[float], list[float]]:
    thresholds = sorted(distinct(rows, "threshold"))
    values = [[row[field] for row in rows if row["threshold"] == threshold] for threshold in thresholds]
    return (
        thresholds,
        [min(column) for column in values],
        [median(column) for column in values],
        [max(column) for column in values],
    )
