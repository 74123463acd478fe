"""Bands of a suite's predictions: how often they hold the measurement, and how wide they are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ratedist.errors import InputError
from ratedist.figures.style import predictor_style
from ratedist.figures.suite_rows import (
    chosen_predictor,
    counted,
    predictors_of,
    sizes_of,
    split_label,
    workloads_of,
)
from ratedist.suite_record import Columns, SuiteRecord

__all__ = ["banded_predictors", "plot_suite_bands"]

_GOAL = (0.85, 0.95)
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))


def banded_predictors(record: SuiteRecord) -> list[str]:
    """Predictors of the record that give bands."""
    low = record.columns.get("compression_predicted_low")
    if low is None:
        return []
    known = np.isfinite(low)
    return [name for name in predictors_of(record) if (known & (record.columns["predictor"] == name)).any()]


def plot_suite_bands(record: SuiteRecord, predictor: str | None = None) -> Figure:
    """Left: the share of rows whose band holds the measurement, by workload. Middle: half the width of the
    band beside the noise of measuring. Right: where in its band a measurement lies.

    Args:
        record: of a suite.
        predictor: whose bands; the chosen one where None.

    Raises InputError where it gives no bands.
    """
    there = banded_predictors(record)
    name = chosen_predictor(record, predictor)
    if predictor is None and name not in there and there:
        name = there[-1]
    if name not in there:
        raise InputError("predictor", name, f"gives no bands; those that do: {', '.join(there) or 'none'}")
    sizes, names = sizes_of(record), [*workloads_of(record), "all"]
    figure, axes = plt.subplots(
        1, 3, figsize=(12.4, 0.3 * len(names) + 2.5), layout="constrained", width_ratios=(1, 1, 0.9)
    )
    axes[0].axvspan(*_GOAL, color="#E3E3E3", linewidth=0, zorder=0)
    for index, size in enumerate(sizes):
        colour, marker = _LOOKS[index % len(_LOOKS)]
        rows = counted(record.columns, n=size[0], m=size[1], predictor=name)
        coverage, width, noise = zip(*(_figures(rows, workload) for workload in names), strict=True)
        place = np.arange(len(names)) + 0.22 * (index - (len(sizes) - 1) / 2)
        look = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 5}
        axes[0].plot(coverage, place, label=split_label(size), **look)
        axes[1].plot(width, place, label=split_label(size), **look)
        axes[1].plot(noise, place, linestyle="none", marker="|", markersize=9, color="#333333")
        _histogram(axes[2], rows, colour, split_label(size))
    axes[1].plot([], [], linestyle="none", marker="|", markersize=9, color="#333333", label="noise (90 %)")
    for ax in axes[:2]:
        ax.set_yticks(range(len(names)), names)
        ax.axhline(len(names) - 1.5, color="#666666", linewidth=0.8)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    axes[1].set_yticklabels([])
    axes[0].set_xlim(0, 1.02)
    axes[0].xaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_xlabel("rows whose band holds the measurement\n(grey: 85 to 95 %, the goal)")
    axes[1].set_xlim(left=0)
    axes[1].set_xlabel("half the width of the band in ln(compression),\nmedian of the rows")
    axes[2].axvline(-1, color="#333333", linewidth=0.9)
    axes[2].axvline(1, color="#333333", linewidth=0.9)
    axes[2].set_xlim(-3, 3)
    axes[2].set_xlabel("place of the measurement in its band\n(ends of the band at −1 and 1)")
    axes[2].set_ylabel("density of rows")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    look = predictor_style(name, list(predictors_of(record)).index(name))
    figure.suptitle(f"Bands of {look['label']}, nominally 90 %")
    return figure


def _figures(rows: Columns, workload: str) -> tuple[float, float, float]:
    """Coverage, median half width, and 90 % quantile of the noise, of one workload; NaN without rows."""
    here = np.isfinite(rows["compression_predicted_low"]) & np.isfinite(rows["compression_predicted_high"])
    if workload != "all":
        here &= rows["workload"] == workload
    if not here.any():
        return np.nan, np.nan, np.nan
    low, high = rows["compression_predicted_low"][here], rows["compression_predicted_high"][here]
    measured = rows["compression_measured"][here]
    held = (measured >= low * (1 - 1e-9)) & (measured <= high * (1 + 1e-9))
    noise = rows["noise_draw"][here]
    noise = noise[np.isfinite(noise)]
    return (
        float(held.mean()),
        float(np.median(np.log(high / low)) / 2),
        float(np.quantile(noise, 0.9)) if len(noise) else np.nan,
    )


def _histogram(ax: Axes, rows: Columns, colour: str, label: str) -> None:
    low, high = rows["compression_predicted_low"], rows["compression_predicted_high"]
    here = np.isfinite(low) & np.isfinite(high) & (high > low)
    if not here.any():
        return
    low, high = np.log(low[here]), np.log(high[here])
    place = (np.log(rows["compression_measured"][here]) - (low + high) / 2) / ((high - low) / 2)
    ax.hist(
        np.clip(place, -2.99, 2.99),
        bins=np.linspace(-3, 3, 31).tolist(),
        density=True,
        histtype="step",
        color=colour,
        label=label,
    )
