"""Distribution functions that are linear between knots: the bodies of fitted laws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError

__all__ = ["PiecewiseLinear"]

FloatArray = NDArray[np.float64]


class PiecewiseLinear:
    """A distribution function through the points (values, levels), linear between them.

    ``values`` (k,) increase strictly within [−1, 1]; ``levels`` (k,) increase strictly from 0 to 1. Raises
    InputError where they do not.
    """

    def __init__(self, values: FloatArray, levels: FloatArray, name: str = "values") -> None:
        values = np.asarray(values, dtype=np.float64)
        levels = np.asarray(levels, dtype=np.float64)
        if values.ndim != 1 or values.size < 2 or values.shape != levels.shape:
            raise InputError(
                name,
                f"shapes {values.shape} and {levels.shape}",
                "must be two or more knots and as many levels, each one-dimensional",
            )
        if not (np.all(np.diff(values) > 0) and values[0] >= -1 and values[-1] < 1):
            raise InputError(name, values.tolist()[:4], "must increase strictly within [-1, 1)")
        if not (np.all(np.diff(levels) > 0) and levels[0] == 0 and levels[-1] == 1):
            raise InputError("levels", levels.tolist()[:4], "must increase strictly from 0 to 1")
        self.values = values
        self.levels = levels
        self.slopes = np.diff(levels) / np.diff(values)

    @classmethod
    def through(cls, ordered: FloatArray, levels: FloatArray) -> PiecewiseLinear:
        """Through the quantiles of a sorted sample at the given levels; tied quantiles become one knot."""
        values = np.quantile(ordered, levels)
        # Where values tie, the distribution function jumps: keep the level at the end of the jump, and
        # let it rise from the knot before.
        last = np.append(np.diff(values) > 0, True)
        values, levels = values[last], levels[last]
        if levels[0] > 0:
            step = 1e-9 if values.size < 2 else 1e-6 * (values[1] - values[0])
            values = np.insert(values, 0, max(values[0] - step, -1.0))
            levels = np.insert(levels, 0, 0.0)
            if values[0] == values[1]:
                values[1] = np.nextafter(values[0], 1.0)
        return cls(values, levels)

    def pdf(self, s: FloatArray) -> FloatArray:
        """Density: constant between knots, taken from the right at a knot."""
        cell = np.searchsorted(self.values, s, side="right") - 1
        inside = (cell >= 0) & (cell < self.slopes.size)
        return np.where(inside, self.slopes[np.clip(cell, 0, self.slopes.size - 1)], 0.0)

    def cdf(self, s: FloatArray) -> FloatArray:
        """Share below, 0 and 1 beyond the knots."""
        return np.interp(s, self.values, self.levels)

    def sf(self, s: FloatArray) -> FloatArray:
        """Share above, interpolated in 1 − level."""
        return np.interp(s, self.values, 1 - self.levels)

    def ppf(self, q: FloatArray) -> FloatArray:
        """Inverse of ``cdf``."""
        return np.interp(q, self.levels, self.values)

    def moment(self, centre: float, power: int) -> float:
        """E[(S − centre)^power] for power 1 or 2."""
        a, b = self.values[:-1] - centre, self.values[1:] - centre
        within = 0.5 * (a + b) if power == 1 else (a * a + a * b + b * b) / 3
        return float(np.sum(np.diff(self.levels) * within))
