"""Predicted curves of fusion: compression and error against the threshold, and rate against distortion.

They read a record of ``ratedist curve`` (schema ``ratedist/curve/1``) and compute nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.curve import RateDistortionCurve
from ratedist.figures.compression import factor_axis
from ratedist.figures.rows import Row, distinct, select
from ratedist.figures.style import MEASURED, axes_for
from ratedist.records import Record

__all__ = ["plot_compression_curve", "plot_curve", "plot_error_curve", "plot_rate_distortion"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D")
_REFERENCES = {
    "bound": ("#555555", "-."),
    "limit": ("#999999", ":"),
    "quantisation": ("#E69F00", "none"),
}


def plot_compression_curve(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Compression against the threshold: line and band predicted, points with error bars simulated.

    Args:
        rows: rows of a curve record, of any variants.
        ax: where to draw; a new figure where None.
    """
    figure, ax = axes_for(ax)
    for index, variant in enumerate(distinct(rows, "variant")):
        chosen, colour = select(rows, variant=variant), _COLOURS[index % len(_COLOURS)]
        thresholds = [row["threshold"] for row in chosen]
        ax.plot(thresholds, [row["compression"] for row in chosen], color=colour, label=variant)
        ax.fill_between(
            thresholds,
            [row["compression_low"] for row in chosen],
            [row["compression_high"] for row in chosen],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        _points(ax, chosen, "simulated_compression", index)
    ax.set_xlabel("threshold τ")
    ax.set_ylabel("compression (fused layers)")
    factor_axis(ax, "y")
    ax.legend()
    return figure, ax


def plot_error_curve(rows: Sequence[Row], ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Mean e² of absorbed blocks against the threshold: final representative solid, direct match dashed.

    Args:
        rows: rows of a curve record, of any variants.
        ax: where to draw; a new figure where None.
    """
    figure, ax = axes_for(ax)
    for index, variant in enumerate(distinct(rows, "variant")):
        chosen, colour = select(rows, variant=variant), _COLOURS[index % len(_COLOURS)]
        for field, line, label in (
            ("absorbed_error2", "-", f"{variant}, final"),
            ("direct_error2", "--", f"{variant}, direct match"),
        ):
            there = [row for row in chosen if row[field] is not None]
            same = all(row["absorbed_error2"] == row["direct_error2"] for row in there)
            if not there or (field == "direct_error2" and same):
                continue
            ax.plot(
                [row["threshold"] for row in there],
                [row[field] for row in there],
                line,
                color=colour,
                label=variant if same else label,
            )
        _points(ax, chosen, "simulated_absorbed_error2", index)
    ax.set_xlabel("threshold τ")
    ax.set_ylabel("e² of absorbed blocks (own norm)")
    ax.set_ylim(bottom=0)
    ax.legend()
    return figure, ax


def plot_rate_distortion(
    rows: Sequence[Row], summary: Sequence[dict[str, Any]], ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Bits per scalar against mean e² over all blocks, with bounds and quantisation beside it.

    Args:
        rows: rows of a curve record, of any variants.
        summary: its summary; entries with a ``curve`` are drawn: bounds, quantisation, hulls of time sharing.
        ax: where to draw; a new figure where None.
    """
    figure, ax = axes_for(ax)
    for index, variant in enumerate(distinct(rows, "variant")):
        colour = _COLOURS[index % len(_COLOURS)]
        chosen = [row for row in select(rows, variant=variant) if row["mean_error2"]]
        if not chosen:
            continue
        ax.plot(
            [row["bits_per_scalar"] for row in chosen],
            [row["mean_error2"] for row in chosen],
            color=colour,
            label=variant,
        )
    for entry in summary:
        if entry["kind"] not in _REFERENCES:
            continue
        curve = RateDistortionCurve.from_dict(entry["curve"])
        colour, line = _REFERENCES[entry["kind"]]
        ax.plot(
            curve.rate,
            curve.distortion,
            color=colour,
            linestyle=line,
            marker="x" if line == "none" else None,
            label=curve.name,
            zorder=1.5,
        )
    ax.set_yscale("log")
    ax.set_xlabel("bits per scalar")
    ax.set_ylabel("mean e² over all blocks (own norm)")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=2e-4)  # an error of 1.4 %; below it the points of many bits run on straight
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure, ax


def plot_curve(record: Record) -> Figure:
    """The three figures of a curve record in one row; draw inside ``style()``."""
    figure, axes = plt.subplots(1, 3, figsize=(14.6, 3.9))
    plot_compression_curve(record.rows, axes[0])
    plot_error_curve(record.rows, axes[1])
    plot_rate_distortion(record.rows, record.summary, axes[2])
    figure.suptitle(record.provenance.get("title", ""))
    return figure


def _points(ax: Axes, rows: Sequence[Row], field: str, index: int) -> None:
    """Simulated points with two standard errors either way, where the record has them."""
    there = [row for row in rows if row.get(field) is not None]
    if not there:
        return
    look: dict[str, Any] = {
        **MEASURED,
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }
    ax.errorbar(
        [row["threshold"] for row in there],
        [row[field] for row in there],
        yerr=[2 * row[f"{field}_se"] for row in there],
        elinewidth=1,
        capsize=2,
        zorder=3,
        label="Monte Carlo ± 2 SE" if index == 0 else None,
        **look,
    )
