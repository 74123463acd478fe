"""What predictors share that know one law for the similarity of all pairs, and an atom of byte-equal ones."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors.base import Outcome, Predictor
from ratedist.predictors.hazard import Hazard, score_grid
from ratedist.predictors.mean_field import leader_mean_field, tree_mean_field
from ratedist.predictors.sample import PairSample

__all__ = ["SingleLawPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MIN_SD = 1e-9


class SingleLawPredictor(Predictor):
    """Matches are one Poisson process, whatever the positions; byte-equal pairs are an atom above all scores.

    With a the share of byte-equal pairs and F̄ the survival of the others, a pair scores above τ with
    chance a + (1 − a)·F̄(τ). Kept blocks follow the recursions of docs/theory.md, "Recursions", in
    expectation alone. Squared errors given the score are regressions on the half of the pairs that is
    nearest, linear, and quadratic under the projection scale.
    """

    @abstractmethod
    def _fit_law(self, scores: FloatArray) -> None:
        """Fit the law to the ``scores`` of pairs that are not byte-equal, ascending; there may be none."""

    @abstractmethod
    def _survival(self, edges: FloatArray) -> FloatArray:
        """Chance that a pair that is not byte-equal scores above each edge."""

    def _fit(self, sample: PairSample) -> None:
        row, column = np.nonzero(np.triu(sample.comparable))
        exact = sample.exact[row, column]
        score = sample.scores(self.criterion)[row, column]
        self.atom = float(exact.mean())
        self._fit_law(np.sort(score[~exact]))
        errors = [error[row, column] for error in sample.squared_errors(self.scale)]
        self._far = tuple(np.full((1, 1), error.mean()) for error in errors)
        near = ~exact & (score >= (np.median(score[~exact]) if not exact.all() else 1.0))
        self._centre = float(score[near].mean()) if near.any() else 0.0
        degree = 2 if self.scale == "projection" else 1
        if not near.any() or score[near].std() < _MIN_SD:
            self._marks = [np.array([error[near].mean() if near.any() else 0.0]) for error in errors]
        else:
            self._marks = [
                np.polynomial.polynomial.polyfit(score[near] - self._centre, error[near], degree)
                for error in errors
            ]

    def _fuse(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> Outcome:
        hazard = self._hazard(score_grid(thresholds, 1, step=0.001))
        counts = full_blocks[:, None].astype(np.float64)
        if variant == "leader":
            return Outcome(*leader_mean_field(hazard, counts, thresholds))
        return Outcome(*tree_mean_field(hazard, counts, thresholds, self._far))

    def _hazard(self, edges: FloatArray) -> Hazard:
        # At the last edge, 1, only byte-equal pairs are left. Certainty would be an infinite hazard.
        survival = np.append(self._survival(edges[:-1]), 0.0)
        chance = np.minimum(self.atom + (1 - self.atom) * survival, 1 - 1e-12)
        above = -np.log1p(-chance)
        weight = above - np.append(above[1:], 0.0)
        middle = np.append((edges[1:] + edges[:-1]) / 2, 1.0)
        marks = [
            np.maximum(np.polynomial.polynomial.polyval(middle - self._centre, mark), 0.0)
            for mark in self._marks
        ]
        for mark in marks:
            mark[-1] = 0.0
        return Hazard(edges, *(array[:, None, None] for array in (np.maximum(weight, 0.0), *marks)))
