"""Checks of arguments that several modules of the theory share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["as_numbers", "as_thresholds", "whole_number"]

FloatArray = NDArray[np.float64]


def as_numbers(
    argument: str,
    value: ArrayLike,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    low_open: bool = False,
) -> FloatArray:
    """``value`` as float64 of any shape, every entry finite and within [low, high].

    Raises InputError naming ``argument`` and the first entry outside; ``low_open`` excludes ``low`` itself.
    """
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(argument, value, "must be a number or an array of numbers") from None
    inside = np.isfinite(array) & (array <= high) & ((array > low) if low_open else (array >= low))
    if not inside.all():
        remedy = "must be finite"
        if np.isfinite(low) and np.isfinite(high):
            remedy += f" and lie in {'(' if low_open else '['}{low:g}, {high:g}]"
        elif np.isfinite(low):
            remedy += f" and {'above' if low_open else 'at least'} {low:g}"
        elif np.isfinite(high):
            remedy += f" and at most {high:g}"
        raise InputError(argument, float(array[~inside].flat[0]), remedy)
    return array


def as_thresholds(argument: str, value: ArrayLike) -> FloatArray:
    """Thresholds as a strictly increasing float64 array of shape (n,), n >= 1, within [-1, 1]."""
    array = np.atleast_1d(as_numbers(argument, value, low=-1.0, high=1.0))
    if array.ndim != 1 or array.size == 0:
        raise InputError(argument, f"shape {array.shape}", "must be one number or a list of at least one")
    steps = np.diff(array)
    if (steps == 0).any():
        raise InputError(
            argument, float(array[1:][steps == 0][0]), "is given twice; name each threshold once"
        )
    if (steps < 0).any():
        raise InputError(argument, array.tolist(), "must be sorted from low to high")
    return array


def whole_number(argument: str, value: object, *, low: int) -> int:
    """``value`` as an int of at least ``low``; a float with a whole value is accepted."""
    remedy = f"must be a whole number of at least {low}"
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(argument, value, remedy)
    if not np.isfinite(value) or int(value) != value or value < low:
        raise InputError(argument, value, remedy)
    return int(value)
