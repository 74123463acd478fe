"""Mean and variance of a request's error at every threshold, with exponential forgetting."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, as_thresholds
from ratedist.errors import InputError

__all__ = ["ForgettingCurve"]

FloatArray = NDArray[np.float64]


class ForgettingCurve:
    """Weighted moments of the error curve, the request of age a with weight λ^a.

    The requests are the independent units, since the blocks of one request resemble each other. Their
    effective number n = (Σw)²/Σw² tends to (1 + λ)/(1 − λ), which ``memory`` sets.

    Tests: tests/ratedist/adaptive/test_forgetting.py.
    """

    def __init__(self, thresholds: ArrayLike, memory: float) -> None:
        """Start with nothing seen.

        Args:
            thresholds: sorted from low to high, within [−1, 1].
            memory: effective number of requests that are remembered in the long run, at least 2.

        Raises:
            InputError: an argument outside what is listed.
        """
        self.thresholds = as_thresholds("thresholds", thresholds)
        self.memory = float(as_numbers("memory", memory, low=2.0))
        self._keep = (self.memory - 1) / (self.memory + 1)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        # Σw, Σw², and per threshold Σw·x and Σw·x².
        self._weight = self._weight2 = 0.0
        self._sums = np.zeros((2, len(self.thresholds)))

    def update(self, curve: FloatArray) -> None:
        """Take in one request's error at every threshold, (thresholds,)."""
        self._weight = self._keep * self._weight + 1
        self._weight2 = self._keep**2 * self._weight2 + 1
        self._sums *= self._keep
        self._sums[0] += curve
        self._sums[1] += curve * curve

    @property
    def weight(self) -> float:
        """Σw, the requests that count, the last as 1."""
        return self._weight

    @property
    def effective(self) -> float:
        """Effective number of requests (Σw)²/Σw²; 0 before the first."""
        return self._weight**2 / self._weight2 if self._weight2 else 0.0

    @property
    def total(self) -> FloatArray:
        """(thresholds,) Σw·x."""
        return self._sums[0]

    @property
    def mean(self) -> FloatArray:
        """(thresholds,) weighted mean; 0 before the first request."""
        return self._sums[0] / self._weight if self._weight else np.zeros(len(self.thresholds))

    @property
    def variance(self) -> FloatArray:
        """(thresholds,) unbiased variance between requests, Σw(x − x̄)²/(Σw − Σw²/Σw); infinite below two."""
        if self.effective <= 1:
            return np.full(len(self.thresholds), np.inf)
        spread = np.maximum(self._sums[1] - self._sums[0] ** 2 / self._weight, 0.0)
        return spread / (self._weight - self._weight2 / self._weight)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state, read back by ``from_dict``."""
        return {
            "thresholds": self.thresholds.tolist(),
            "memory": self.memory,
            "weight": self._weight,
            "weight2": self._weight2,
            "sums": self._sums.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``; raises InputError where it is not such a state."""
        curve = cls(data["thresholds"], data["memory"])
        curve._weight = float(as_numbers("weight", data["weight"], low=0.0))
        curve._weight2 = float(as_numbers("weight2", data["weight2"], low=0.0))
        sums = as_numbers("sums", data["sums"], low=0.0)
        if sums.shape != curve._sums.shape:
            raise InputError("sums", sums.shape, f"must have shape {curve._sums.shape}")
        curve._sums = sums
        return curve
