"""Bands of a suite's predictions: how often they hold the measurement, and how wide they are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ratedist.errors import InputError
from ratedist.figures.style import predictor_style
from ratedist.figures.suite_rows import predictors_of, shown_predictor, sizes_of, split_label, workloads_of
from ratedist.suite_digest import band_errors, banded_predictors, counted
from ratedist.suite_record import Columns, SuiteRecord

__all__ = ["plot_suite_bands"]

_GOAL = (0.85, 0.95)
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))


def plot_suite_bands(record: SuiteRecord, predictor: str | None = None) -> Figure:
    """Left: the share of rows whose band holds the measurement, by workload. Middle: half the width of the
    band beside the noise of measuring. Right: where in its band a measurement lies.

    Args:
        record: of a suite.
        predictor: whose bands; the chosen one where None.

    Raises InputError where it gives no bands.
    """
    there = banded_predictors(record)
    name = shown_predictor(record, predictor)
    if predictor is None and name not in there and there:
        name = there[-1]
    if name not in there:
        raise InputError("predictor", name, f"gives no bands; those that do: {', '.join(there) or 'none'}")
    entries = band_errors(record, name)
    sizes, names = sizes_of(record), [*workloads_of(record), "all"]
    figure, axes = plt.subplots(
        1, 3, figsize=(12.4, 0.3 * len(names) + 2.5), layout="constrained", width_ratios=(1, 1, 0.9)
    )
    axes[0].axvspan(*_GOAL, color="#E3E3E3", linewidth=0, zorder=0)
    for index, size in enumerate(sizes):
        colour, marker = _LOOKS[index % len(_LOOKS)]
        there_of = {entry["workload"]: entry for entry in entries if (entry["n"], entry["m"]) == size}
        coverage, width, noise = (
            [_known(there_of.get(workload, {}).get(field)) for workload in names]
            for field in ("coverage", "half_width", "noise")
        )
        place = np.arange(len(names)) + 0.22 * (index - (len(sizes) - 1) / 2)
        look = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 5}
        axes[0].plot(coverage, place, label=split_label(size), **look)
        axes[1].plot(width, place, label=split_label(size), **look)
        axes[1].plot(noise, place, linestyle="none", marker="|", markersize=9, color="#333333")
        rows = counted(record.columns, n=size[0], m=size[1], predictor=name)
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


def _known(value: float | None) -> float:
    return np.nan if value is None else value


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
