"""One law with a generalised Pareto tail for the similarity of all pairs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.predictors.single_law import SingleLawPredictor
from ratedist.similarity import ParetoTail

__all__ = ["ParetoTailPredictor"]

FloatArray = NDArray[np.float64]

_TAIL = 0.05
_FEWEST = 50
_BELOW_ONE = float(np.nextafter(1.0, 0.0))


class ParetoTailPredictor(SingleLawPredictor):
    """The sample's quantiles up to the 95 % one, generalised Pareto excesses above: peaks over threshold.

    What the tail has beyond 1 counts as just below 1. Where a twentieth of the pairs is fewer than 50, the
    tail begins at the 50 highest; where those cannot be fitted either (fewer pairs, or all of one score),
    the law is the sample's own.

    Source: docs/theory.md, "Laws of similarity".
    Test: tests/ratedist/predictors/test_single_law.py::test_tail_reaches_beyond_the_sample.
    """

    name: ClassVar[str] = "pareto-tail"

    def _fit_law(self, scores: FloatArray) -> None:
        self._scores = np.minimum(scores, _BELOW_ONE)
        self.law: ParetoTail | None = None
        if scores.size > 2 * _FEWEST:
            try:
                self.law = ParetoTail.fit(self._scores, tail_share=max(_TAIL, _FEWEST / scores.size)).law
            except InputError:
                self.law = None

    def _survival(self, edges: FloatArray) -> FloatArray:
        if self.law is not None:
            return np.asarray(self.law.sf(edges))
        above = self._scores.size - np.searchsorted(self._scores, edges, side="right")
        return np.asarray(above / max(1, self._scores.size))
