"""Checks of arguments that every law shares."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["DUPLICATE", "finite", "floats", "points", "positive", "probabilities", "sample_of", "share"]

FloatArray = NDArray[np.float64]

# Scores are computed in float32 from normalised blocks: up to this far beyond -1 or 1 is rounding, and
# this near to 1 is an exact duplicate.
DUPLICATE = 1e-5


def finite(name: str, value: object) -> float:
    """``value`` as a finite float."""
    number = _number(name, value)
    if not math.isfinite(number):
        raise InputError(name, value, "must be a finite number")
    return number


def positive(name: str, value: object) -> float:
    """``value`` as a finite float above 0."""
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise InputError(name, value, "must be a finite number above 0")
    return number


def share(name: str, value: object, *, zero: bool = True, one: bool = True) -> float:
    """``value`` as a share between 0 and 1."""
    number = _number(name, value)
    low = number >= 0 if zero else number > 0
    high = number <= 1 if one else number < 1
    if not (low and high):
        bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise InputError(name, value, f"must be a share in {bounds}")
    return number


def points(s: ArrayLike, name: str = "s") -> FloatArray:
    """Where a law is evaluated: float64, without NaN."""
    array = floats(s, name)
    if np.isnan(array).any():
        raise InputError(name, float("nan"), "must not hold NaN")
    return array


def probabilities(q: ArrayLike, name: str = "q") -> FloatArray:
    """Levels of quantiles: float64 in [0, 1]."""
    array = floats(q, name)
    wrong = ~((array >= 0) & (array <= 1))
    if wrong.any():
        raise InputError(name, float(array[wrong][0]), "must lie in [0, 1]")
    return array


def sample_of(
    sample: ArrayLike,
    *,
    name: str = "sample",
    needed: int = 2,
    duplicates: bool = True,
    purpose: str = "to fit this law",
) -> FloatArray:
    """A sample of scores as a flat float64 array.

    Scores beyond -1 or 1 by rounding are moved to the edge. Raises InputError where the sample is empty,
    holds NaN or infinity or a number that is no score, is constant, has fewer than ``needed`` values, or
    (with ``duplicates`` false) holds exact duplicates: a score of 1, or more scores within 1e-5 of it than
    those beside explain.
    """
    array = floats(sample, name).ravel()
    if array.size == 0:
        raise InputError(name, [], f"is empty; at least {needed} scores are needed {purpose}")
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(
            name,
            float(array[first]),
            f"must be finite: {int(wrong.sum())} of {array.size} scores are not, "
            f"the first at position {first}",
        )
    beyond = np.abs(array) > 1 + DUPLICATE
    if beyond.any():
        first = int(np.flatnonzero(beyond)[0])
        raise InputError(
            name,
            float(array[first]),
            f"must hold scores in [-1, 1]: {int(beyond.sum())} of {array.size} lie outside, "
            f"the first at position {first}",
        )
    array = np.clip(array, -1.0, 1.0)
    if array.size < needed:
        raise InputError(
            name, f"{array.size} scores", f"too few: at least {needed} scores are needed {purpose}"
        )
    if array.min() == array.max():
        raise InputError(name, float(array[0]), f"is constant; scores must vary {purpose}")
    if not duplicates:
        count = _duplicates(array)
        if count:
            raise InputError(
                name,
                f"{count} scores of 1",
                "holds exact duplicates; fit 'mixture', which sets them apart as an atom at 1, "
                "or leave them out",
            )
    return array


def _duplicates(array: FloatArray) -> int:
    """How many scores are exact duplicates: 0 where a continuous law explains those that are near to 1."""
    near = int((array >= 1 - DUPLICATE).sum())
    beside = int((array >= 1 - 100 * DUPLICATE).sum()) - near
    if array.max() < 1 and near <= 10 + 10 * beside / 99:
        return 0
    return near


def floats(value: ArrayLike, name: str) -> FloatArray:
    """``value`` as a float64 array."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(name, value, "must be a number or an array of numbers") from None


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(name, value, "must be a number") from None
