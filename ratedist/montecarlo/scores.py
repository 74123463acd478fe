"""Draws of the best match of a block, from a table of the law's tail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ratedist.similarity.base import SimilarityLaw

__all__ = ["TailScores"]

FloatArray = NDArray[np.float64]

_POINTS = 8192
_REACH = 40.0  # the table ends where the tail is e^−40 of that at the threshold


class TailScores:
    """Scores above a threshold, as a function of their tail probability.

    Attributes:
        chance: F̄(τ).
        exponent: H = −ln(1 − F̄(τ)).
    """

    def __init__(self, law: SimilarityLaw, threshold: float) -> None:
        self.chance = min(float(law.sf(threshold)), 1 - 1e-12)
        self.exponent = -float(np.log1p(-self.chance))
        start = np.log(max(self.chance, 1e-300))
        levels = np.linspace(start - _REACH, start, _POINTS)
        self._table = np.clip(law.isf(np.exp(levels)), threshold, 1.0)
        self._first = start - _REACH
        self._scale = (_POINTS - 1) / _REACH

    def best_of(self, log_uniform: FloatArray, count: FloatArray | NDArray[np.int64]) -> FloatArray:
        """Best of ``count`` scores at the given log of its distribution function, above the threshold's.

        A best match M of n scores has P(M <= s) = (1 − F̄(s))^n, so F̄(M) = 1 − U^(1/n).
        """
        tail = -np.expm1(log_uniform / count)
        place = (np.log(tail) - self._first) * self._scale
        low = np.clip(place.astype(np.int64), 0, _POINTS - 2)
        share = np.clip(place - low, 0.0, 1.0)
        return self._table[low] + share * (self._table[low + 1] - self._table[low])
