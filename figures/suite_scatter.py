"""Predicted against measured compression of a suite, with the noise of measuring around the diagonal."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ratedist.figures.compression import factor_axis
from ratedist.figures.style import predictor_style
from ratedist.figures.suite_rows import predictors_of, shown_predictor, sizes_of, split_label
from ratedist.suite_digest import counted
from ratedist.suite_record import Columns, SuiteRecord

__all__ = ["plot_suite_scatter"]

_BINS = 7
_MANY = 500
"""Points from which they are drawn small and faint."""

_LEAST = 8
"""Rows of a bin from which the noise is drawn."""


def plot_suite_scatter(record: SuiteRecord, predictors: Sequence[str] | None = None) -> Figure:
    """A panel for every split (column) and predictor (row); every row of the record that counts is a point.

    The band around the diagonal is where 90 % of measurements of the same workload lie, of compressions near
    by: points outside it are errors of prediction.

    Args:
        record: of a suite.
        predictors: rows of panels; the paper's Gaussian and the chosen predictor where None.
    """
    if predictors is None:
        shown = shown_predictor(record)
        predictors = [*(name for name in predictors_of(record)[:1] if name != shown), shown]
    sizes = sizes_of(record)
    figure, grid = plt.subplots(
        len(predictors),
        len(sizes),
        figsize=(max(5.4, 3.3 * len(sizes) + 0.8), 3.1 * len(predictors) + 1.1),
        squeeze=False,
        layout="constrained",
    )
    order = list(predictors_of(record))
    for column, size in enumerate(sizes):
        here = counted(record.columns, n=size[0], m=size[1])
        limits = _limits(here)
        for line, name in enumerate(predictors):
            ax = grid[line, column]
            _panel(ax, counted(record.columns, n=size[0], m=size[1], predictor=name), limits)
            look = predictor_style(name, order.index(name))
            ax.set_title(split_label(size) if line == 0 else "")
            ax.set_ylabel(f"{look['label']}\npredicted compression" if column == 0 else "")
            ax.set_xlabel("measured compression" if line == len(predictors) - 1 else "")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if len(sizes) == 1 else len(labels))
    drawn = (
        ""
        if record.sampled_from is None
        else f"; {len(record.columns['n']):,} of {record.sampled_from:,} rows"
    )
    figure.suptitle(f"Compression of fused layers,\npredicted and measured on unseen requests{drawn}")
    return figure


def _panel(ax: Axes, rows: Columns, limits: tuple[float, float]) -> None:
    measured, predicted = rows["compression_measured"], rows["compression_predicted"]
    there = np.isfinite(predicted)
    edges, width = _noise(measured, rows["noise_draw"])
    ax.fill_between(
        edges,
        edges * np.exp(-width),
        edges * np.exp(width),
        color="#999999",
        alpha=0.35,
        linewidth=0,
        label="noise of measuring (90 %)",
    )
    ax.plot(limits, limits, color="#333333", linewidth=0.9, label="predicted = measured")
    ax.plot(
        measured[there],
        predicted[there],
        linestyle="none",
        marker="o",
        markersize=2.2 if there.sum() > _MANY else 3.2,
        alpha=0.3 if there.sum() > _MANY else 0.5,
        markeredgewidth=0,
        color="#0072B2",
        rasterized=True,
        label="layer, threshold, variant, criterion",
    )
    ax.set_xlim(*limits)
    ax.set_ylim(*limits)
    factor_axis(ax, "x")
    factor_axis(ax, "y")
    ax.set_aspect("equal")


def _limits(rows: Columns) -> tuple[float, float]:
    if len(rows["m"]) == 0:
        return 1.0, 2.0
    measured, predicted = rows["compression_measured"], rows["compression_predicted"]
    # A predictor that is far off is seen to be; a single absurd value must not shrink all others.
    highest = max(measured.max(), min(np.nanmax(predicted), 2 * measured.max()))
    return 0.95, float(highest * 1.15)


def _noise(measured: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compressions, and beside each the 90 % quantile of the noise of the rows near by."""
    known = np.isfinite(draws)
    measured, draws = measured[known], draws[known]
    if len(measured) < _LEAST:
        return np.array([]), np.array([])
    order = np.argsort(measured)
    parts = [part for part in np.array_split(order, min(_BINS, len(order) // _LEAST)) if len(part)]
    centres = [float(np.exp(np.log(measured[part]).mean())) for part in parts]
    widths = [float(np.quantile(draws[part], 0.9)) for part in parts]
    ends = [float(measured.min()), *centres, float(measured.max())]
    return np.array(ends), np.array([widths[0], *widths, widths[-1]])
