"""One empirical law for the similarity of all pairs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors.single_law import SingleLawPredictor

__all__ = ["EmpiricalPredictor"]

FloatArray = NDArray[np.float64]


class EmpiricalPredictor(SingleLawPredictor):
    """Every pair scores above τ with the share of the calibration pairs that do.

    No form of law is assumed, so what this predictor misses is not the law's form: it is that pairs do not
    all follow one.

    Test: tests/ratedist/predictors/test_single_law.py::test_chances_are_shares_of_the_pairs.
    """

    name: ClassVar[str] = "empirical"

    def _fit_law(self, scores: FloatArray) -> None:
        self._scores = scores

    def _survival(self, edges: FloatArray) -> FloatArray:
        above = self._scores.size - np.searchsorted(self._scores, edges, side="right")
        return np.asarray(above / max(1, self._scores.size))
