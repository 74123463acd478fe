"""One look for all figures: sizes, colours that colour-blind readers can tell apart, names of things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

__all__ = ["MEASURED", "axes_for", "predictor_style", "style"]

# The eight colours of Okabe and Ito.
_BLACK, _ORANGE, _SKY, _GREEN, _YELLOW, _BLUE, _VERMILION, _PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)

MEASURED: dict[str, Any] = {
    "color": _BLACK,
    "marker": "o",
    "markersize": 4.5,
    "linestyle": "none",
    "markerfacecolor": "white",
}
"""How measured points are drawn, everywhere."""

_PREDICTORS = {
    "gaussian": ("Gaussian (the paper's)", _VERMILION, "--"),
    "empirical": ("one empirical law", _GREEN, "-."),
    "pareto-tail": ("Pareto tail", _PURPLE, ":"),
    "position-marked": ("position-marked", _BLUE, "-"),
    "heterogeneous": ("heterogeneous", _SKY, "--"),
    "accumulation": ("accumulation", _ORANGE, "-"),
}
_OTHERS = ((_GREEN, "-."), (_PURPLE, ":"), (_ORANGE, "-"), (_SKY, "--"))


def predictor_style(name: str, index: int = 0) -> dict[str, Any]:
    """Label, colour and line of a predictor; ``index`` tells apart those without a style of their own."""
    if name in _PREDICTORS:
        label, colour, line = _PREDICTORS[name]
    else:
        label, (colour, line) = name, _OTHERS[index % len(_OTHERS)]
    return {"label": label, "color": colour, "linestyle": line}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this context; settings outside it are left as they are."""
    with mpl.rc_context(
        {
            "figure.dpi": 110,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
            "font.size": 9.5,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        }
    ):
        yield


def axes_for(ax: Axes | None) -> tuple[Figure | SubFigure, Axes]:
    """The figure and axes to draw on; new ones where ``ax`` is None."""
    if ax is None:
        return plt.subplots(figsize=(5.0, 3.8))
    return ax.figure, ax
