"""Position-marked fusion: every pair of positions has its own law of similarity.

A block at position i of one request exceeds the threshold against a block kept at position j of another
with chance P_ij, so against n_j kept there it stays with chance exp(−Σ_j H_ij n_j), H = −ln(1 − P). Only
blocks of *different* requests ever meet, so the diagonal is a pair of positions like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.errors import InputError
from ratedist.fusion._stepping import advance
from ratedist.fusion._tree import tree_levels

__all__ = ["Exceedance", "MarkedFusion", "leader_marked", "tree_marked"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Exceedance = ArrayLike | Callable[[float], ArrayLike]
"""Exceedance by position: an array (scores, positions, positions), or a function of the score."""

# Certain exceedance has an infinite exponent; e^−700 is the smallest chance that float64 holds.
_CERTAIN = 700.0
# Numbers in one array of states while a tree is walked; more thresholds are taken in parts.
_STATE_ENTRIES = 2_000_000


@dataclass(frozen=True)
class MarkedFusion:
    """Expected outcome of position-marked fusion, over T thresholds, S scores and P positions.

    Attributes:
        thresholds: (T,) thresholds.
        blocks: (P,) candidate blocks at each position.
        kept: (T, P) expected kept blocks at each position.
        scores: (S,) increasing grid that holds every threshold and ends at 1.
        matched: (T, S, P) expected absorbed blocks at each position whose direct match scores above
            ``scores``, counted from the threshold up (below it the value is that at the threshold); None
            where it was not asked for.
    """

    thresholds: FloatArray
    blocks: FloatArray
    kept: FloatArray
    scores: FloatArray
    matched: FloatArray | None

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

    Of the n kept at a position, n − Var n count with −ln(1 − P) each, as if certain, and Var n with P each,
    as if Poisson: the mean of (1 − P)^n over a binomial n, to second order in P (docs/theory.md).
    Test: tests/ratedist/fusion/test_marked.py::test_leader_agrees_with_simulation.

    Raises:
        InputError: an argument outside its domain.
    """
    problem = _Problem(exceedance, full_blocks, thresholds, scores)
    state = np.zeros((2, problem.thresholds.size, 1, problem.positions))
    matched = problem.no_matches() if matches else None
    for length, run in groupby(problem.full_blocks.tolist()):
        present = problem.present(length)
        arriving = np.stack([present, np.zeros_like(present)])[:, None, None]

        def step(state: FloatArray, arriving: FloatArray = arriving) -> FloatArray:
            return problem.increment(state, arriving)

        def observe(state: FloatArray, weight: float, arriving: FloatArray = arriving) -> None:
            if matched is None:
                return
            counted = np.broadcast_to(weight * arriving[0], state.shape[1:])
            problem.add_matches(matched, state, counted)

        state = advance(state, sum(1 for _ in run), step, observe)
    return problem.result(state[0, :, 0], matched)


def tree_marked(
    exceedance: Exceedance,
    full_blocks: Sequence[int] | IntArray,
    *,
    thresholds: ArrayLike,
    scores: ArrayLike | None = None,
    matches: bool = True,
) -> MarkedFusion:
    """A balanced binary tree over the requests: n_i ← n_L,i + n_R,i·exp(−Σ_j H_ij(τ) n_L,j) at each node.

    Arguments, closure and errors as for ``leader_marked``; ``matched`` holds the direct matches, one for each
    absorbed block. An odd unit passes up unchanged. Subtrees over the same lengths are computed once.
    Test: tests/ratedist/fusion/test_marked.py::test_tree_agrees_with_simulation.
    """
    problem = _Problem(exceedance, full_blocks, thresholds, scores)
    lengths, kinds = np.unique(problem.full_blocks, return_inverse=True)
    levels = tree_levels(kinds)
    widest = max([lengths.size] + [level.left.size + 1 for level in levels])
    kept, matched = [], []
    for part in problem.parts(widest):
        state = np.zeros((2, part.thresholds.size, lengths.size, part.positions))
        state[0] = np.stack([part.present(int(length)) for length in lengths])
        tally = part.no_matches() if matches else None
        for level in levels:
            left, right = state[:, :, level.left], state[:, :, level.right]
            if tally is not None:
                part.add_matches(tally, left, level.count[:, None] * right[0])
            merged = left + part.increment(left, right)
            if level.passed is not None:
                merged = np.concatenate([merged, state[:, :, [level.passed]]], axis=2)
            state = merged
        kept.append(state[0, :, 0])
        if tally is not None:
            matched.append(tally)
    return problem.result(np.concatenate(kept), np.concatenate(matched) if matches else None)


class _Problem:
    """Checked arguments and the arithmetic that leader and tree share.

    A state is (2, T, U, P): mean and variance of the number kept at each position, for U subtrees.
    """

    def __init__(
        self,
        exceedance: Exceedance,
        full_blocks: Sequence[int] | IntArray,
        thresholds: ArrayLike,
        scores: ArrayLike | None,
    ) -> None:
        self.thresholds = as_thresholds("thresholds", thresholds)
        grid = self.thresholds if scores is None else as_thresholds("scores", scores)
        if callable(exceedance):
            grid = np.union1d(grid, self.thresholds)
            chance = np.stack([np.asarray(exceedance(float(s)), dtype=np.float64) for s in grid])
        else:
            chance = np.asarray(exceedance, dtype=np.float64)
            absent = np.setdiff1d(self.thresholds, grid)
            if absent.size:
                raise InputError(
                    "scores", grid.tolist(), f"must hold every threshold; {absent[0]:g} is missing"
                )
        _check_exceedance(chance, grid)
        self.positions = chance.shape[1]
        self.full_blocks = _check_lengths(full_blocks, self.positions)
        self.blocks = (self.full_blocks[:, None] > np.arange(self.positions)).sum(axis=0).astype(np.float64)
        if grid[-1] < 1:
            self.scores = np.append(grid, 1.0)
            chance = np.append(chance, np.zeros((1, *chance.shape[1:])), axis=0)
        else:
            self.scores = grid
        # Transposed, so that a row of kept blocks times the matrix gives the exponents by position.
        self._poisson = np.ascontiguousarray(chance.transpose(0, 2, 1))
        with np.errstate(divide="ignore"):
            self._certain = np.minimum(-np.log1p(-self._poisson), _CERTAIN)
        self._at = np.searchsorted(self.scores, self.thresholds)
        self._own = np.diagonal(self._certain, axis1=1, axis2=2)[self._at][:, None]

    def parts(self, width: int) -> Iterator[_Problem]:
        """The same problem over few enough thresholds at a time to hold ``width`` states in memory."""
        size = max(1, _STATE_ENTRIES // (width * self.positions))
        for start in range(0, self.thresholds.size, size):
            part = object.__new__(_Problem)
            part.__dict__.update(self.__dict__)
            chosen = slice(start, start + size)
            part.thresholds, part._at, part._own = (
                self.thresholds[chosen],
                self._at[chosen],
                self._own[chosen],
            )
            yield part

    def present(self, length: int) -> FloatArray:
        """(P,) 1 at each position that a request of this length has."""
        return (np.arange(self.positions) < length).astype(np.float64)

    def no_matches(self) -> FloatArray:
        return np.zeros((self.thresholds.size, self.scores.size, self.positions))

    def _exponent(self, state: FloatArray, score: slice | IntArray) -> FloatArray:
        mean, variance = state
        uncertain = np.minimum(variance, mean)
        return np.matmul(mean - uncertain, self._certain[score]) + np.matmul(uncertain, self._poisson[score])

    def increment(self, kept: FloatArray, arriving: FloatArray) -> FloatArray:
        """What arriving blocks (mean and variance by position) add to the kept ones."""
        void = np.exp(-self._exponent(kept, self._at))
        stays = arriving[0] * void
        # More kept than expected at a position means fewer that stay there; other positions matter less.
        feedback = np.minimum(stays * self._own, 1.0)
        variance = arriving[1] * void**2 + stays * (1 - void) + kept[1] * (feedback**2 - 2 * feedback)
        return np.stack([stays, np.maximum(variance, -kept[1])])

    def add_matches(self, tally: FloatArray, kept: FloatArray, arriving: FloatArray) -> None:
        """Add to (T, S, P) how many arriving blocks have their best match above each score."""
        for s in range(self.scores.size - 1):
            # Thresholds above the score start to match at their own.
            below = int(np.searchsorted(self._at, s, side="right"))
            if below == 0:
                continue
            chance = -np.expm1(-self._exponent(kept[:, :below], slice(s, s + 1)))
            tally[:below, s] += (arriving[:below] * chance).sum(axis=1)

    def result(self, kept: FloatArray, matched: FloatArray | None) -> MarkedFusion:
        if matched is None:
            return MarkedFusion(self.thresholds, self.blocks, kept, self.scores, None)
        above = np.arange(self.scores.size)
        start = np.maximum(above, self._at[:, None])
        matched = np.take_along_axis(matched, start[:, :, None], axis=1)
        return MarkedFusion(self.thresholds, self.blocks, kept, self.scores, matched)


def _check_exceedance(chance: FloatArray, grid: FloatArray) -> None:
    if chance.ndim != 3 or chance.shape[1] != chance.shape[2] or chance.shape[1] == 0:
        raise InputError(
            "exceedance", f"shape {chance.shape}", "must be square matrices, (scores, positions, positions)"
        )
    if chance.shape[0] != grid.size:
        raise InputError(
            "exceedance", f"shape {chance.shape}", f"must hold one matrix for each of {grid.size} scores"
        )
    inside = (chance >= 0) & (chance <= 1)
    if not inside.all():
        raise InputError("exceedance", float(chance[~inside][0]), "must be chances within [0, 1]")
    rising = chance[1:] > chance[:-1]
    if rising.any():
        s, i, j = (int(k[0]) for k in np.nonzero(rising))
        raise InputError(
            "exceedance",
            f"{chance[s, i, j]:g} at {grid[s]:g}, {chance[s + 1, i, j]:g} at {grid[s + 1]:g}",
            f"must not rise with the score; positions ({i}, {j}) do",
        )
    if grid[-1] == 1 and chance[-1].any():
        raise InputError(
            "exceedance", float(chance[-1].max()), "must be 0 at score 1, which no score exceeds"
        )


def _check_lengths(full_blocks: Sequence[int] | IntArray, positions: int) -> IntArray:
    lengths = np.atleast_1d(np.asarray(full_blocks))
    if lengths.ndim != 1 or lengths.size == 0:
        raise InputError(
            "full_blocks", f"shape {lengths.shape}", "must list the full blocks of at least one request"
        )
    whole = np.array(
        [whole_number("full_blocks", length, low=1) for length in lengths.tolist()], dtype=np.int64
    )
    if whole.max() > positions:
        raise InputError(
            "full_blocks",
            int(whole.max()),
            f"must be at most {positions}, the positions that exceedance covers",
        )
    return whole


def _midpoints(values: FloatArray) -> FloatArray:
    return 0.5 * (values[:-1] + values[1:])
