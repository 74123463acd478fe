"""Relative error against compression: what each factor costs."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ratedist.errors import InputError
from ratedist.figures.compression import factor_axis
from ratedist.figures.rows import Row, distinct, select
from ratedist.figures.style import MEASURED, axes_for, predictor_style

__all__ = ["plot_error"]

_NAMES = {"k": "keys", "v": "values"}


def plot_error(rows: Sequence[Row], which: str, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """One layer: error of keys (``"k"``) or values (``"v"``) against compression, along the thresholds.

    Args:
        rows: of one workload, layer, variant and criterion.
        which: ``"k"`` or ``"v"``.
        ax: where to draw; a new figure where None.

    Raises InputError for another ``which``.
    """
    if which not in _NAMES:
        raise InputError("which", which, "must be 'k' (keys) or 'v' (values)")
    figure, ax = axes_for(ax)
    predictors = distinct(rows, "predictor")
    for index, name in enumerate(predictors):
        chosen = select(rows, predictor=name)
        ax.plot(
            [row["compression_predicted"] for row in chosen],
            [row[f"{which}_error_predicted"] for row in chosen],
            **predictor_style(name, index),
        )
    chosen = select(rows, predictor=predictors[0])
    ax.plot(
        [row["compression_measured"] for row in chosen],
        [row[f"{which}_error_measured"] for row in chosen],
        label="measured",
        zorder=3,
        **MEASURED,
    )
    ax.set_xlabel("compression (fused layer)")
    ax.set_ylabel(f"relative error of {_NAMES[which]} (RMS, all blocks)")
    ax.set_ylim(bottom=0)
    factor_axis(ax, "x")
    ax.set_title(f"{_NAMES[which]}, layer {chosen[0]['layer']}")
    return figure, ax
