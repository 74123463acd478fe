"""Position-marked fusion: every pair of positions has its own law of similarity.

A block at position i of one request exceeds the threshold against a block kept at position j of another
with chance P_ij, so against n_j kept there it stays with chance exp(−Σ_j H_ij n_j), H = −ln(1 − P). Only
blocks of *different* requests ever meet, so the diagonal is a pair of positions like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.fusion._positions import ROWS, Exceedance, Positions
from ratedist.fusion._stepping import advance
from ratedist.fusion._tree import kinds_of, tree_levels
from ratedist.fusion.result import prediction_band

__all__ = ["Exceedance", "MarkedFusion", "leader_marked", "tree_marked"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class MarkedFusion:
    """Expected outcome of position-marked fusion, over T thresholds, S scores and P positions.

    Attributes:
        thresholds: (T,) thresholds.
        blocks: (P,) candidate blocks at each position.
        least: the fewest blocks that can be kept, those of the first request.
        kept: (T, P) expected kept blocks at each position.
        scores: (S,) increasing grid that holds every threshold and ends at 1.
        matched: (T, S, P) expected absorbed blocks at each position whose direct match scores above
            ``scores``, counted from the threshold up (below it the value is that at the threshold); None
            where it was not asked for.
        kept_std: (T,) standard deviation of all kept blocks, or None.
    """

    thresholds: FloatArray
    blocks: FloatArray
    least: int
    kept: FloatArray
    scores: FloatArray
    matched: FloatArray | None
    kept_std: FloatArray | None = None

    def band(self, level: float = 0.9) -> tuple[FloatArray, FloatArray]:
        """(T,) each: whole numbers that hold all kept blocks with a chance near ``level``.

        Raises InputError where the result was made without spread.
        """
        if self.kept_std is None:
            raise InputError("spread", False, "was asked for; call with spread=True for a band")
        most = float(self.blocks.sum())
        return prediction_band(self.total_kept, self.kept_std, low=self.least, high=most, level=level)

    @property
    def total_kept(self) -> FloatArray:
        """(T,) expected kept blocks."""
        return self.kept.sum(axis=-1)

    @property
    def compression(self) -> FloatArray:
        """(T,) blocks over expected kept blocks."""
        return self.blocks.sum() / self.total_kept

    @property
    def absorbed(self) -> FloatArray:
        """(T,) expected absorbed blocks."""
        return self.blocks.sum() - self.total_kept

    def sum_over_matches(self, function: Callable[[FloatArray], ArrayLike] | ArrayLike) -> FloatArray:
        """(T, P) expected Σ f(score) over the blocks absorbed from each position, against their direct match.

        Args:
            function: f, called on ``scores``, or its values: (S,), or (S, P) where it differs by position.

        The blocks whose score lies between two grid points count with the mean of f at both, so the error
        falls with the square of the grid's spacing.
        Test: tests/ratedist/fusion/test_marked.py::test_match_sums_agree_with_quadrature.

        Raises:
            InputError: values of another shape or not finite; a result that was made without matches.
        """
        if self.matched is None:
            raise InputError(
                "matches", False, "was asked for; call with matches=True for the law of the best match"
            )
        values = np.asarray(function(self.scores) if callable(function) else function, dtype=np.float64)
        positions = self.blocks.size
        if values.shape not in ((self.scores.size,), (self.scores.size, positions)):
            raise InputError(
                "function",
                f"values of shape {values.shape}",
                f"must give one value per score, ({self.scores.size},), or ({self.scores.size}, {positions})",
            )
        if not np.isfinite(values).all():
            raise InputError("function", "NaN or infinity", "must be finite on every score")
        if values.ndim == 1:
            values = values[:, None]
        between = self.matched[:, :-1] - self.matched[:, 1:]
        return np.einsum("tsp,sp->tp", between, np.broadcast_to(_midpoints(values), between.shape[1:]))

    def mean_over_matches(self, function: Callable[[FloatArray], ArrayLike] | ArrayLike) -> FloatArray:
        """(T,) mean of f over all absorbed blocks, NaN where none is; see ``sum_over_matches``."""
        total = self.sum_over_matches(function).sum(axis=-1)
        assert self.matched is not None
        absorbed = self.matched[:, 0].sum(axis=-1)
        mean = np.full(absorbed.shape, np.nan)
        np.divide(total, absorbed, out=mean, where=absorbed > 0)
        return mean


def leader_marked(
    exceedance: Exceedance,
    full_blocks: Sequence[int] | IntArray,
    *,
    thresholds: ArrayLike,
    scores: ArrayLike | None = None,
    matches: bool = True,
    spread: bool = False,
) -> MarkedFusion:
    """Requests one after another: n_i ← n_i + exp(−Σ_j H_ij(τ) n_j) for every position i of each.

    Args:
        exceedance: P(S > s) by position: an array with one (positions, positions) matrix for each of
            ``scores`` (or of ``thresholds`` where no scores are given), row i of the new block, column j of
            the kept one; or a function that returns the matrix for a score.
        full_blocks: full blocks of each request, at least 1, in the order in which they arrive.
        thresholds: strictly increasing, within [-1, 1].
        scores: grid for the law of the best match; holds every threshold where ``exceedance`` is an array.
        matches: also compute that law, which costs as much as the kept blocks for each score of the grid.
        spread: also carry the covariance between positions, for ``kept_std`` and the band; costs products
            of (positions × positions) matrices.

    The number kept at a position enters as a binomial with its mean and variance (docs/theory.md).
    Test: tests/ratedist/fusion/test_marked.py::test_leader_agrees_with_simulation.

    Raises:
        InputError: an argument outside its domain.
    """
    problem = Positions(exceedance, full_blocks, thresholds, scores, spread)
    state = problem.nothing(1)
    matched = problem.no_matches() if matches else None
    for length, run in groupby(problem.full_blocks.tolist()):
        arriving = problem.leaves(np.array([length]))

        def step(state: FloatArray, arriving: FloatArray = arriving) -> FloatArray:
            return problem.increment(state, arriving)

        def observe(state: FloatArray, weight: float, arriving: FloatArray = arriving) -> None:
            if matched is not None:
                problem.add_matches(matched, state, weight * arriving[0])

        state = advance(state, sum(1 for _ in run), step, observe)
    return _result(problem, state[:, :, 0], matched)


def tree_marked(
    exceedance: Exceedance,
    full_blocks: Sequence[int] | IntArray,
    *,
    thresholds: ArrayLike,
    scores: ArrayLike | None = None,
    matches: bool = True,
    spread: bool = False,
) -> MarkedFusion:
    """A balanced binary tree over the requests: n_i ← n_L,i + n_R,i·exp(−Σ_j H_ij(τ) n_L,j) at each node.

    Arguments, closure and errors as for ``leader_marked``; ``matched`` holds the direct matches, one for each
    absorbed block. An odd unit passes up unchanged. Subtrees over the same lengths are computed once.
    Test: tests/ratedist/fusion/test_marked.py::test_tree_agrees_with_simulation.
    """
    problem = Positions(exceedance, full_blocks, thresholds, scores, spread)
    lengths, kinds, _ = kinds_of(problem.full_blocks)
    levels = tree_levels(kinds)
    widest = max([lengths.size] + [level.left.size + 1 for level in levels])
    tops, matched = [], []
    for part in problem.parts(widest):
        state = part.leaves(lengths)
        tally = part.no_matches() if matches else None
        for level in levels:
            left, right = state[:, :, level.left], state[:, :, level.right]
            if tally is not None:
                part.add_matches(tally, left, level.count[:, None] * right[0])
            merged = left + part.increment(left, right)
            if level.passed is not None:
                merged = np.concatenate([merged, state[:, :, [level.passed]]], axis=2)
            state = merged
        tops.append(state[:, :, 0])
        if tally is not None:
            matched.append(tally)
    return _result(problem, np.concatenate(tops, axis=1), np.concatenate(matched) if matches else None)


def _result(problem: Positions, state: FloatArray, matched: FloatArray | None) -> MarkedFusion:
    if matched is not None:
        matched = problem.from_thresholds(matched)
    kept_std = None
    if problem.spread:
        kept_std = np.sqrt(np.maximum(state[ROWS:].sum(axis=(0, 2)), 0.0))
    least = int(problem.full_blocks[0])
    return MarkedFusion(
        problem.thresholds, problem.blocks, least, state[0], problem.scores, matched, kept_std
    )


def _midpoints(values: FloatArray) -> FloatArray:
    return 0.5 * (values[:-1] + values[1:])
