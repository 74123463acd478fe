"""Matches as a marked Poisson process between classes of blocks, and the best match that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hazard", "score_grid"]

FloatArray = NDArray[np.float64]

_CELLS = 8_000_000


@dataclass(frozen=True)
class Hazard:
    """How likely blocks match, by class of the block, class of the representative, and score.

    C classes (positions in a request, or one class for everything); scores in Q bins
    (edges[q], edges[q + 1]], the last of them the atom of byte-equal pairs above every edge. A block of
    class i that meets n_j representatives of class j finds a best match in bin q or above with
    probability 1 − exp(−Σ_j n_j Σ_{q' >= q} weight[q', i, j]).

    Attributes:
        edges: (Q,) lower edges, ascending; the edge of the atom is 1.
        weight: (Q, C, C) hazard of each bin, not negative.
        k_mark: (Q, C, C) mean squared relative error of keys of a match in the bin.
        v_mark: (Q, C, C) the same of values.
    """

    edges: FloatArray
    weight: FloatArray
    k_mark: FloatArray
    v_mark: FloatArray

    def above(self, threshold: float) -> Hazard:
        """The part of the process above ``threshold``, which must be one of the edges."""
        start = int(np.searchsorted(self.edges, threshold, side="left"))
        return Hazard(self.edges[start:], self.weight[start:], self.k_mark[start:], self.v_mark[start:])

    def total(self) -> FloatArray:
        """(C, C) hazard of any match."""
        return self.weight.sum(axis=0)

    def exceedance(self) -> FloatArray:
        """(Q, C, C) chance that one pair scores above each edge; at the last one, that it is byte-equal."""
        return -np.expm1(-np.cumsum(self.weight[::-1], axis=0)[::-1])

    def best_match(self, met: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Void probability and expected squared errors of a block of each class that meets ``met``.

        Args:
            met: (M, C) expected representatives of each class, for M situations.

        Returns:
            void (M, C): probability that nothing matches; k (M, C) and v (M, C): expected squared
            relative error with the best match, counting 0 where nothing matches.

        With A_q the hazard of bins q and above, the best match lies in bin q with probability
        exp(−A_{q+1}) − exp(−A_q) (docs/theory.md, "The position-marked process"), and in class j in
        proportion to n_j·weight[q, i, j]; its errors are the mean marks of that cell.

        Test: tests/ratedist/predictors/test_hazard.py::test_best_match_agrees_with_simulation.
        """
        rate, share = self._rate_and_share(met)
        void = np.exp(-rate.sum(axis=1))
        per_rate = np.divide(share, rate, out=np.zeros_like(share), where=rate > 0)
        k = np.einsum("mqi,qij,mj->mi", per_rate, self.weight * self.k_mark, met, optimize=True)
        v = np.einsum("mqi,qij,mj->mi", per_rate, self.weight * self.v_mark, met, optimize=True)
        return void, k, v

    def flows(self, met: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Like ``best_match``, by class of the best match: (M, C, C) each.

        Returns:
            flow: probability that a block of class i has its best match in class j; k and v: the same
            times the expected squared relative error of that match.
        """
        rate, share = self._rate_and_share(met)
        per_rate = np.divide(share, rate, out=np.zeros_like(share), where=rate > 0)

        def spread(cells: FloatArray) -> FloatArray:
            return np.einsum("mqi,qij,mj->mij", per_rate, cells, met, optimize=True)

        return spread(self.weight), spread(self.weight * self.k_mark), spread(self.weight * self.v_mark)

    def _rate_and_share(self, met: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Both (M, Q, C): rate of matches in each bin, and probability that the best one lies there."""
        rate = np.einsum("qij,mj->mqi", self.weight, met, optimize=True)
        above = np.cumsum(rate[:, ::-1], axis=1)[:, ::-1] - rate
        return rate, np.exp(-above) * -np.expm1(-rate)


def score_grid(thresholds: FloatArray, classes: int, step: float = 0.005) -> FloatArray:
    """Edges from the lowest threshold to 1 that hold every threshold, about ``step`` apart.

    Coarser where many classes would make the grid large; the thresholds themselves are always kept.
    """
    low = float(thresholds.min())
    count = min(round((1.0 - low) / step), _CELLS // max(1, classes * classes))
    return np.unique(np.concatenate([np.linspace(low, 1.0, max(count, 1) + 1), thresholds, [1.0]]))
