"""Predictions calibrated on one workload and measured on another, as a matrix."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ratedist.errors import InputError
from ratedist.figures.style import predictor_style
from ratedist.figures.suite_rows import predictors_of, shown_predictor
from ratedist.suite_record import SuiteRecord

__all__ = ["plot_suite_transfer"]

_HIGHEST = 1.0
"""Error at which the colours end: a factor of 2.7."""


def plot_suite_transfer(record: SuiteRecord, predictor: str | None = None) -> Figure:
    """Median error by the workload that calibrates (line) and the one that is measured (column).

    On the diagonal a workload predicts itself. Empty fields have no row that counts.

    Args:
        record: of a suite.
        predictor: whose errors; the chosen one where None.

    Raises InputError where the record transfers nothing.
    """
    name = shown_predictor(record, predictor)
    entries = [entry for entry in record.transfer if entry["predictor"] == name]
    if not entries:
        raise InputError(
            "record", "no transfer", "run a suite with a task that calibrates on other workloads"
        )
    sources = list(dict.fromkeys(entry["calibrated_on"] for entry in entries))
    workloads = list(dict.fromkeys(entry["workload"] for entry in entries))
    order = [*(w for w in workloads if w in sources), *(w for w in workloads if w not in sources)]
    sources = [*(w for w in order if w in sources), *(s for s in sources if s not in order)]
    values = np.full((len(sources), len(order)), np.nan)
    for entry in entries:
        if entry["median_abs_log_ratio"] is not None:
            place = sources.index(entry["calibrated_on"]), order.index(entry["workload"])
            values[place] = entry["median_abs_log_ratio"]
    figure, ax = plt.subplots(
        figsize=(0.62 * len(order) + 3.0, 0.42 * len(sources) + 2.2), layout="constrained"
    )
    ax.set_facecolor("#F2F2F2")
    image = ax.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=_HIGHEST)
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.55 * _HIGHEST else "black"
            ax.text(column, line, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    ax.grid(False)
    ax.set_xticks(range(len(order)), order, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(sources)), sources)
    ax.set_xlabel("measured on")
    ax.set_ylabel("calibrated on")
    bar = figure.colorbar(image, ax=ax, extend="max")
    bar.set_label("median |ln(predicted / measured)|")
    look = predictor_style(name, list(predictors_of(record)).index(name))
    sizes = sorted({(entry["n"], entry["m"]) for entry in entries})
    figure.suptitle(
        f"Transfer of {look['label']}: " + ", ".join(f"{n} → {m}" for n, m in sizes) + " requests"
    )
    return figure
