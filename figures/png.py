"""A figure as the bytes of a small PNG, the same whenever it is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from ratedist.figures.style import style

__all__ = ["png_of"]

_COLOURS = 256
"""Of the palette: lines and shades of a figure need far fewer than the millions that a PNG can name."""

_LARGEST = 1500
"""Pixels across, at most: wider than any page shows."""

_RESOLUTION = 120
"""Pixels per inch."""


def png_of(draw: Callable[[], Figure]) -> bytes:
    """Draw a figure in the common style; a PNG with a palette, at most 1500 pixels wide.

    The file names neither time nor version of what drew it, so that the same record gives the same bytes.
    """
    with style():
        figure = draw()
        try:
            drawn = io.BytesIO()
            resolution = min(_RESOLUTION, _LARGEST / figure.get_figwidth())
            figure.savefig(drawn, format="png", dpi=resolution)
        finally:
            plt.close(figure)
    drawn.seek(0)
    small = io.BytesIO()
    with Image.open(drawn) as image:
        flat = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        flat.save(small, format="png", optimize=True)
    return small.getvalue()
