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


def png_of(draw: Callable[[], Figure | bytes]) -> bytes:
    """Draw a figure in the common style; a PNG with a palette, at most 1500 pixels wide.

    The file names neither time nor version of what drew it, so that the same record gives the same bytes.

    Args:
        draw: makes a figure, or the bytes of a picture that is to be made small.
    """
    with style():
        drawn = draw()
        if isinstance(drawn, Figure):
            drawn = _rendered(drawn)
    small = io.BytesIO()
    with Image.open(io.BytesIO(drawn)) as image:
        if image.width > _LARGEST:
            image.thumbnail((_LARGEST, _LARGEST * image.height))
        flat = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        flat.save(small, format="png", optimize=True)
    return small.getvalue()


def _rendered(figure: Figure) -> bytes:
    file = io.BytesIO()
    try:
        figure.savefig(file, format="png", dpi=min(_RESOLUTION, _LARGEST / figure.get_figwidth()))
    finally:
        plt.close(figure)
    return file.getvalue()
