"""The paper's predictor: one Gaussian for the similarity of all pairs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.predictors.base import Outcome, Predictor
from ratedist.predictors.hazard import Hazard, score_grid
from ratedist.predictors.mean_field import leader_mean_field, tree_mean_field
from ratedist.predictors.sample import PairSample

__all__ = ["GaussianPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MIN_SD = 1e-9


class GaussianPredictor(Predictor):
    """Scores of all pairs are one Gaussian sample, and matches one Poisson process.

    A block that meets N representatives finds none above τ with probability exp(−N·F̄(τ)), whatever their
    positions; leader N ← N + p·exp(−N·F̄(τ)), tree N = N_L + N_R·exp(−N_L·F̄(τ)). Mass of the Gaussian
    above 1 counts as just below 1: this law knows no byte-equal pairs. The squared errors given the
    score are the regressions that a jointly Gaussian pair (S_K, S_V) implies: linear in the score, and
    quadratic under the projection scale.

    Source: the Gaussian approximation and Poisson exceedances of Kampeas and Haleva, arXiv 2601.03067;
    the recursions are derived in docs/theory.md, "Recursions".
    """

    name: ClassVar[str] = "gaussian"

    def _fit(self, sample: PairSample) -> None:
        pairs = sample.comparable
        score = sample.scores(self.criterion)[pairs]
        self.mean = float(score.mean())
        self.sd = max(float(score.std()), _MIN_SD)
        errors = [error[pairs] for error in sample.squared_errors(self.scale)]
        self._far = tuple(np.full((1, 1), error.mean()) for error in errors)
        degree = 2 if self.scale == "projection" else 1
        standard = (score - self.mean) / self.sd
        if self.sd == _MIN_SD:
            self._marks = [far[0] for far in self._far]
        else:
            self._marks = [np.polynomial.polynomial.polyfit(standard, error, degree) for error in errors]

    def _fuse(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> Outcome:
        hazard = self._hazard(score_grid(thresholds, 1, step=0.001))
        counts = full_blocks[:, None].astype(np.float64)
        if variant == "leader":
            return Outcome(*leader_mean_field(hazard, counts, thresholds))
        return Outcome(*tree_mean_field(hazard, counts, thresholds, self._far))

    def _hazard(self, edges: FloatArray) -> Hazard:
        survival = scipy.special.ndtr((self.mean - edges) / self.sd)
        weight = np.append(survival[:-1] - survival[1:], 0.0)
        if edges.size > 1:
            weight[-2] += survival[-1]
        middle = np.append((edges[1:] + edges[:-1]) / 2, 1.0)
        marks = [
            np.maximum(np.polynomial.polynomial.polyval((middle - self.mean) / self.sd, mark), 0.0)
            for mark in self._marks
        ]
        return Hazard(edges, *(array[:, None, None] for array in (weight, *marks)))
