"""Checked arguments and the arithmetic that the position-marked leader and tree share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_thresholds
from ratedist.errors import InputError
from ratedist.fusion.units import as_units

__all__ = ["ROWS", "Exceedance", "Positions"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Exceedance = ArrayLike | Callable[[float], ArrayLike]
"""Exceedance by position: an array (scores, positions, positions), or a function of the score."""

# Certain exceedance has an infinite exponent; e^−700 is about the smallest chance that float64 holds.
_CERTAIN = 700.0
# Numbers in one array of states while a tree is walked; more thresholds are taken in parts.
_STATE_ENTRIES = 2_000_000
# Success of the binomial, without skewness, of which one more kept block is weighed.
_SYMMETRIC = 0.5
ROWS = 3  # mean, variance and chance of none


class Positions:
    """Position-marked problem over T thresholds, S scores and P positions.

    A state is (R, T, U, P) for U subtrees: mean and variance of the number kept at each position, the chance
    that it is 0, then (with spread) the P rows of the covariance.

    At other positions, of n kept blocks of variance σ² n − σ² count with −ln(1 − P) each, as if certain, and
    σ² with P each, as if Poisson: to second order in P the mean of (1 − P)^n over a binomial with these
    moments. The sum over positions is then a product with two matrices. At a block's own position, where P
    is largest and the first block nearly always stays, the number is 0 or one more than a number that is
    certain in part and binomial in part, with the chance of 0 and the moments carried along. That more kept
    at one position means fewer at its neighbours lowers the mean by up to 1 %; it enters with spread only.
    """

    def __init__(
        self,
        exceedance: Exceedance,
        full_blocks: Sequence[int] | IntArray,
        thresholds: ArrayLike,
        scores: ArrayLike | None,
        spread: bool,
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
        self.full_blocks = as_units("full_blocks", full_blocks)
        longest = int(self.full_blocks.max())
        if longest > self.positions:
            raise InputError(
                "full_blocks",
                longest,
                f"must be at most {self.positions}, the positions that exceedance covers",
            )
        self.blocks = (self.full_blocks[:, None] > np.arange(self.positions)).sum(axis=0).astype(np.float64)
        if grid[-1] < 1:
            grid = np.append(grid, 1.0)
            chance = np.append(chance, np.zeros((1, *chance.shape[1:])), axis=0)
        self.scores = grid
        self.spread = spread
        # Transposed, so that a row of kept blocks times the matrix gives the exponents by position.
        self._poisson = np.ascontiguousarray(chance.transpose(0, 2, 1))
        with np.errstate(divide="ignore"):
            self._certain = np.minimum(-np.log1p(-self._poisson), _CERTAIN)
        self._at = np.searchsorted(self.scores, self.thresholds)
        self._set_thresholds(slice(None))

    def _set_thresholds(self, chosen: slice) -> None:
        self.thresholds, self._at = self.thresholds[chosen], self._at[chosen]
        rows: slice | IntArray = self._at
        if self._at[-1] - self._at[0] + 1 == self._at.size:
            rows = slice(int(self._at[0]), int(self._at[-1]) + 1)  # a view, no copy
        self._own_poisson, self._own_certain = self._poisson[rows], self._certain[rows]
        # What one more block at a position takes from the logarithm of the void, kept finite.
        self._own_chance = np.diagonal(self._own_poisson, axis1=1, axis2=2)[:, None]
        if self.spread:
            slope = -np.log1p(-_SYMMETRIC * self._own_poisson) / _SYMMETRIC
            self._slope = slope.transpose(0, 2, 1)[:, None]

    def parts(self, width: int) -> Iterator[Positions]:
        """The same problem over few enough thresholds at a time to hold ``width`` states in memory."""
        entries = width * self.positions * (ROWS + self.positions * self.spread)
        size = max(1, 2 * _STATE_ENTRIES // entries)
        if size >= self.thresholds.size:
            yield self
            return
        for start in range(0, self.thresholds.size, size):
            part = object.__new__(Positions)
            part.__dict__.update(self.__dict__)
            part._set_thresholds(slice(start, start + size))
            yield part

    def present(self, length: int) -> FloatArray:
        """(P,) 1 at each position that a request of this length has."""
        return (np.arange(self.positions) < length).astype(np.float64)

    def leaves(self, lengths: IntArray) -> FloatArray:
        """States of requests of these lengths, (R, T, U, P): their own blocks, for certain."""
        state = self.nothing(lengths.size)
        state[0] = np.stack([self.present(int(length)) for length in lengths])
        state[2] = 1 - state[0]
        return state

    def nothing(self, subtrees: int) -> FloatArray:
        """States of ``subtrees`` subtrees that keep nothing."""
        rows = ROWS + self.positions * self.spread
        state = np.zeros((rows, self.thresholds.size, subtrees, self.positions))
        state[2] = 1.0
        return state

    def no_matches(self) -> FloatArray:
        """(T, S, P) of zeros."""
        return np.zeros((self.thresholds.size, self.scores.size, self.positions))

    def _others(self, state: FloatArray, poisson: FloatArray, certain: FloatArray) -> FloatArray:
        """Chance that no kept block at another position matches, under transposed exceedances (…, P, P)."""
        mean = state[0]
        uncertain = np.minimum(state[1], mean)
        exponent = np.matmul(uncertain, poisson) + np.matmul(mean - uncertain, certain)
        exponent -= uncertain * _diagonal(poisson) + (mean - uncertain) * _diagonal(certain)
        return np.exp(-np.maximum(exponent, 0.0))

    def increment(self, kept: FloatArray, arriving: FloatArray) -> FloatArray:
        """What arriving blocks add to the state of the kept ones."""
        others = self._others(kept, self._own_poisson, self._own_certain)
        chance = self._own_chance
        number = _Number(kept)
        own, tilted = number.none(chance), number.tilted(chance)
        own_square = number.none(chance * (2 - chance))
        void = others * own
        void_square = others**2 * own_square
        if self.spread:
            crossed = self._crossed(kept)
            void = np.minimum(void * np.exp(0.5 * crossed), 1.0)
            void_square = void_square * np.exp(2 * crossed)
        void_square = np.clip(void_square, void**2, void)
        stays = arriving[0] * void
        added = np.empty(np.broadcast_shapes(kept.shape, arriving.shape))
        added[0] = stays
        # K | v is binomial(n_R, v), and v falls where more than expected is kept at the same position.
        change = (
            2 * arriving[0] * others * (tilted - kept[0] * own)
            + stays
            + (arriving[1] + arriving[0] ** 2 - arriving[0]) * void_square
            - stays**2
        )
        added[1] = np.maximum(change, -kept[1])
        added[2] = kept[2] * (_Number(arriving).none(others) - 1)
        if self.spread:
            covariance = np.moveaxis(kept[ROWS:], 0, -2)
            own_part = np.moveaxis(arriving[ROWS:], 0, -2) * void[..., :, None] * void[..., None, :]
            back = stays[..., :, None] * self._slope
            crossed = np.matmul(back, covariance)
            change = own_part - crossed - crossed.swapaxes(-1, -2)
            change += np.matmul(crossed, back.swapaxes(-1, -2))
            step = np.arange(self.positions)
            # A position's effect on itself is known better than to first order.
            itself = back[..., step, step]
            linear = (itself**2 - 2 * itself) * covariance[..., step, step]
            from_others = change[..., step, step] - own_part[..., step, step] - linear
            added[1] = np.maximum(added[1] + from_others, -kept[1])
            change[..., step, step] = added[1]
            added[ROWS:] = np.moveaxis(change, -2, 0)
        return added

    def _crossed(self, kept: FloatArray) -> FloatArray:
        """Σ_{j≠k} s_j s_k Cov(N_j, N_k), s the slopes of the logarithm of the void; mostly below 0."""
        covariance = np.moveaxis(kept[ROWS:], 0, -2)
        crossed = np.einsum("...ij,...ij->...i", np.matmul(self._slope, covariance), self._slope)
        own = np.diagonal(covariance, axis1=-2, axis2=-1)
        return np.minimum(crossed - np.einsum("...ij,...j->...i", self._slope**2, own), 0.0)

    def add_matches(self, tally: FloatArray, kept: FloatArray, arriving: FloatArray) -> None:
        """Add to (T, S, P) how many arriving blocks have their best match above each score."""
        number = _Number(kept)
        for s in range(self.scores.size - 1):
            # Thresholds above the score start to match at their own.
            below = int(np.searchsorted(self._at, s, side="right"))
            if below == 0:
                continue
            met = kept[:, :below]
            others = self._others(met, self._poisson[s], self._certain[s])
            own = number.none(np.diagonal(self._poisson[s]), below)
            tally[:below, s] += (arriving[:below] * (1 - others * own)).sum(axis=1)

    def from_thresholds(self, matched: FloatArray) -> FloatArray:
        """(T, S, P) with the value at the threshold in place of those below it."""
        start = np.maximum(np.arange(self.scores.size), self._at[:, None])
        return np.take_along_axis(matched, start[:, :, None], axis=1)


def _diagonal(matrix: FloatArray) -> FloatArray:
    """Diagonals of (T, P, P) as (T, 1, P), or of (P, P) as (P,)."""
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    return diagonal if matrix.ndim == 2 else diagonal[:, None]


class _Number:
    """Law of the number N kept at each position: 0, or 1 + X with X certain in part and binomial in part."""

    def __init__(self, state: FloatArray) -> None:
        mean, variance, self.empty = state[0], state[1], state[2]
        some = np.maximum(1 - self.empty, 1e-12)
        more = np.maximum(mean / some - 1, 0.0)
        spread = np.maximum((variance + mean**2) / some - (more + 1) ** 2, 0.0)
        success = np.where(more > 1e-9, 1 - spread / np.maximum(more, 1e-9), 0.0)
        self.success = np.clip(np.where(np.abs(success) < 1e-6, 1e-6, success), -5.0, 0.5)
        self.uncertain = np.minimum(spread / (1 - self.success), more)
        self.certain = 1 + more - self.uncertain
        self.trials = self.uncertain / self.success

    def none(self, chance: FloatArray, first: int | None = None) -> FloatArray:
        """E[(1 − chance)^N], for the ``first`` thresholds only where given."""
        empty, success, certain, trials = (
            part[:first] for part in (self.empty, self.success, self.certain, self.trials)
        )
        exponent = np.log1p(-success * chance)
        exponent *= trials
        exponent += certain * np.log(np.maximum(1 - chance, 1e-300))
        np.exp(exponent, out=exponent)
        exponent *= 1 - empty
        exponent += empty
        return exponent

    def tilted(self, chance: FloatArray) -> FloatArray:
        """E[N·(1 − chance)^N]."""
        expected = self.certain + self.uncertain * (1 - chance) / (1 - self.success * chance)
        return (self.none(chance) - self.empty) * expected


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
