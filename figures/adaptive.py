"""A stream under adaptive thresholds: threshold, error and promise, and evidence of a change.

Reads a record of ``ratedist adapt`` (schema ``ratedist/adapt/1``) and computes nothing but running means.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.errors import InputError
from ratedist.figures.rows import Row
from ratedist.figures.style import axes_for
from ratedist.records import Record

__all__ = ["plot_adaptive", "plot_evidence", "plot_thresholds", "plot_window_errors"]

_LOOKS = {
    "integral": ("integral, every window", "#0072B2", "-"),
    "mean": ("integral, long-run mean", "#56B4E9", "-"),
    "bound": ("bound", "#009E73", "-"),
    "fixed": ("fixed, calibrated on the first", "#D55E00", "--"),
    "oracle": ("oracle, knows the change", "#000000", ":"),
}


def plot_thresholds(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Threshold in force for every request, per policy."""
    figure, ax = axes_for(ax)
    for policy, (label, colour, line) in _LOOKS.items():
        chosen = _of(rows, policy)
        if chosen:
            ax.plot(
                [row["request"] for row in chosen],
                [row["threshold"] for row in chosen],
                color=colour,
                linestyle=line,
                linewidth=1.2,
                label=label,
            )
    _mark_changes(rows, ax)
    ax.set_ylabel("threshold τ")
    return figure, ax


def plot_window_errors(
    rows: Sequence[Row], *, target: float, window: int, ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Mean error over the window that ends at each request, beside what is promised of it."""
    figure, ax = axes_for(ax)
    for policy, (label, colour, line) in _LOOKS.items():
        chosen = _of(rows, policy)
        if len(chosen) < window:
            continue
        total = np.concatenate([[0.0], np.cumsum([row["error"] for row in chosen])])
        ax.plot(
            [row["request"] for row in chosen[window - 1 :]],
            (total[window:] - total[:-window]) / window,
            color=colour,
            linestyle=line,
            linewidth=1.2,
            label=label,
        )
    ax.axhline(target, color="#555555", linewidth=0.9)
    ax.annotate("promised", (0.005, target), xycoords=("axes fraction", "data"), va="bottom", color="#555555")
    _mark_changes(rows, ax)
    ax.set_ylabel(f"e², mean of the last {window} requests")
    ax.set_ylim(bottom=0)
    return figure, ax


def plot_evidence(
    rows: Sequence[Row], *, alarm_rate: float, ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Evidence of a change that the policy ``integral`` saw, and where it said that a calibration is due."""
    figure, ax = axes_for(ax)
    chosen = [row for row in _of(rows, "integral") if "evidence" in row]
    if not chosen:
        raise InputError("rows", "integral", "no row of the record is of this policy, with evidence")
    requests = [row["request"] for row in chosen]
    ax.plot(requests, [max(row["evidence"], 1e-2) for row in chosen], color="#0072B2", linewidth=1.2)
    ax.axhline(1 / alarm_rate, color="#555555", linewidth=0.9)
    ax.annotate(
        f"alarm, at most {alarm_rate:g} false ones per request",
        (0.995, 1 / alarm_rate),
        xycoords=("axes fraction", "data"),
        # Above the marks of alarms, which stand on the line.
        xytext=(0, 8),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color="#555555",
    )
    due = [row for row in chosen if row["calibration_due"]]
    ax.plot(
        [row["request"] for row in due],
        [row["evidence"] for row in due],
        color="#D55E00",
        marker="v",
        linestyle="none",
        label="calibration due",
    )
    _mark_changes(rows, ax)
    ax.set_yscale("log")
    ax.set_ylim(top=max(10 / alarm_rate, 3 * max(row["evidence"] for row in chosen)))
    ax.set_ylabel("evidence of a change")
    if due:
        ax.legend(loc="upper left")
    return figure, ax


def plot_adaptive(record: Record) -> Figure:
    """All three above each other; draw inside ``style()``."""
    settings = record.provenance
    figure, axes = plt.subplots(3, 1, figsize=(8.6, 8.2), sharex=True, height_ratios=(3, 3, 2))
    plot_thresholds(record.rows, axes[0])
    plot_window_errors(record.rows, target=settings["target"], window=settings["window"], ax=axes[1])
    plot_evidence(record.rows, alarm_rate=settings["alarm_rate"], ax=axes[2])
    axes[2].set_xlabel("request")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(
        f"{' → '.join(settings['workloads'])}, layer {settings['layer']}, criterion {settings['criterion']}"
    )
    return figure


def _of(rows: Sequence[Row], policy: str) -> list[Row]:
    return sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["request"])


def _mark_changes(rows: Sequence[Row], ax: Axes) -> None:
    """A line where a workload gives way to the next."""
    first: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["request"]):
        first.setdefault(row["workload"], row["request"])
    for request in list(first.values())[1:]:
        ax.axvline(request - 0.5, color="#AAAAAA", linewidth=0.9, zorder=0)
