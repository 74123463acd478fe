"""A law per pair of positions: where in their requests two blocks stand decides most of their similarity."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ratedist.fusion.marked import leader_marked, tree_marked
from ratedist.predictors.base import Outcome, Predictor
from ratedist.predictors.hazard import Hazard, score_grid
from ratedist.predictors.mean_field import leader_mean_field, tree_mean_field
from ratedist.predictors.sample import PairSample

__all__ = ["PositionMarkedPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_MIN_PAIRS = 2
_CERTAIN = 1.0 - 1e-12
_BELOW_ONE = float(np.nextafter(1.0, 0.0))


class PositionMarkedPredictor(Predictor):
    """Matches depend on the positions of both blocks.

    P_ij(τ) is the chance that a block at position i scores above τ with one at position j of another
    request, estimated by its share among the calibration pairs; H_ij = −ln(1 − P_ij); n_j the expected
    number of kept blocks at position j: n_i ← n_i + exp(−Σ_j H_ij n_j) for each request in the leader
    variant, and n_i = n_L,i + n_R,i·exp(−Σ_j H_ij n_L,j) at each node of the tree. Errors are the means of
    the sample's own squared errors by pair of positions and bin of the score, so byte-equal blocks
    (an atom of their own) count 0.

    Shares are not smoothed: a request of p blocks meets thousands of pairs of positions, and any
    pseudo-count, summed over them, outweighs the data. Where fewer than two calibration pairs stand at
    (i, j) (requests of different lengths, or longer than those of the sample), the nearest pair of
    positions with the same difference and enough pairs, towards the start, serves instead.

    Source: docs/theory.md, "The position-marked process".
    """

    name: ClassVar[str] = "position-marked"

    def _fit(self, sample: PairSample) -> None:
        row, column = np.nonzero(sample.comparable)
        self._positions = int(sample.position.max()) + 1
        self._cell = sample.position[row] * self._positions + sample.position[column]
        self._score = sample.scores(self.criterion)[row, column]
        self._exact = sample.exact[row, column]
        self._errors = [error[row, column] for error in sample.squared_errors(self.scale)]
        size, shape = self._positions**2, (self._positions, self._positions)
        self._pairs = np.bincount(self._cell, minlength=size).reshape(shape)
        self._far = [
            np.bincount(self._cell, error, minlength=size).reshape(shape) / np.maximum(self._pairs, 1)
            for error in self._errors
        ]

    def _fuse(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> Outcome:
        positions = int(full_blocks.max())
        hazard = self._hazard(score_grid(thresholds, max(positions, self._positions)), positions)
        counts = (np.arange(positions) < full_blocks[:, None]).astype(np.float64)
        if variant == "leader":
            _, errors = leader_mean_field(hazard, counts, thresholds)
        else:
            far = [error[self._stand_ins(positions)] for error in self._far]
            _, errors = tree_mean_field(hazard, counts, thresholds, far)
        recursion = leader_marked if variant == "leader" else tree_marked
        # The recursion knows no score above 1, where byte-equal blocks stand: they get the one just below.
        fused = recursion(
            hazard.exceedance(),
            full_blocks,
            thresholds=np.minimum(thresholds, _BELOW_ONE),
            scores=np.minimum(hazard.edges, _BELOW_ONE),
            matches=False,
        )
        return Outcome(fused.total_kept, errors)

    def _hazard(self, edges: FloatArray, positions: int) -> Hazard:
        """Hazard of matches between ``positions`` positions, from the calibration pairs above edges[0]."""
        cells = self._positions**2
        used = self._exact | (self._score > edges[0])
        # Bin q holds edges[q] < s <= edges[q + 1]; byte-equal pairs stand above every edge.
        bins = np.searchsorted(edges, self._score[used], side="left") - 1
        bins[self._exact[used]] = edges.size - 1
        flat = bins * cells + self._cell[used]
        size = edges.size * cells
        shape = (edges.size, self._positions, self._positions)
        count = np.bincount(flat, minlength=size).reshape(shape)
        marks = [
            np.divide(
                np.bincount(flat, error[used], minlength=size).reshape(shape),
                count,
                out=np.zeros(shape),
                where=count > 0,
            )
            for error in self._errors
        ]
        above = np.cumsum(count[::-1], axis=0)[::-1]
        share = np.minimum(above / np.maximum(self._pairs, 1), _CERTAIN)
        cumulative = -np.log1p(-share)
        weight = cumulative - np.append(cumulative[1:], np.zeros((1, *shape[1:])), axis=0)
        row, column = self._stand_ins(positions)
        return Hazard(edges, *(array[:, row, column] for array in (weight, *marks)))

    def _stand_ins(self, positions: int) -> tuple[IntArray, IntArray]:
        """(positions, positions) each: pair of calibrated positions that serves for (i, j)."""
        row, column = (grid.copy() for grid in np.indices((positions, positions)))
        while True:
            inside = (row < self._positions) & (column < self._positions)
            pairs = np.zeros(row.shape, dtype=np.int64)
            pairs[inside] = self._pairs[row[inside], column[inside]]
            poor = (pairs < _MIN_PAIRS) & (row + column > 0)
            if not poor.any():
                return row, column
            row[poor] = np.maximum(row[poor] - 1, 0)
            column[poor] = np.maximum(column[poor] - 1, 0)
