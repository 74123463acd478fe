"""Tree: a balanced binary tree over the units; at a node the left side absorbs from the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.fusion._moments import Problem, Void, log_void_rate
from ratedist.fusion._tree import kinds_of, tree_levels
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.result import FusionResult
from ratedist.similarity.base import SimilarityLaw

__all__ = ["Merge", "State", "tree", "walk"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A block that stays takes at most this many times its first-order part of the uncovered share.
_MOST_GROWTH = 8.0


def tree(
    law: SimilarityLaw,
    units: Sequence[int] | NDArray[np.int64],
    thresholds: ArrayLike,
    *,
    hard_core: HardCore | bool = True,
    baseline: float | None = None,
) -> FusionResult:
    """N ← N_L + N_R·v_L at each node, v_L the expected share that the left side leaves uncovered.

    A representative that is absorbed takes its members with it. For directions that are independent given
    the match and share a common direction, similarities c = (s − b)/(1 − b), b the mean similarity,
    multiply along the path to the final representative.

    Args:
        law, units, thresholds, hard_core: as for ``leader``; an odd unit passes up unchanged.
        baseline: b; the mean of the law by default.

    Tests: tests/ratedist/fusion/test_tree.py::test_agrees_with_directions and
    tests/ratedist/montecarlo/test_agreement.py.

    Raises:
        InputError: an argument outside its domain.
    """
    problem = Problem(law, np.asarray(units), thresholds, hard_core, baseline)
    top, absorbed, matched = walk(problem, 0.0, _along_the_path)
    return problem.result("tree", top.kept, top.variance, absorbed, matched, (top.first, top.second))


@dataclass(frozen=True)
class Merge:
    """What happens to members at one merge; every array is (U, T).

    Attributes:
        left, right: the states that merge.
        stays: expected blocks of the right side that stay.
        absorbed: expected blocks that do not.
        hit: chance to be absorbed; 1 − hit = void.
        void: chance to stay.
        first, second: E[c; absorbed] and E[c²; absorbed] of a block of the right side.
        scatter: variance of c between unrelated directions, relative to 1 − variance.
    """

    left: State
    right: State
    stays: FloatArray
    absorbed: FloatArray
    hit: FloatArray
    void: FloatArray
    first: FloatArray
    second: FloatArray
    scatter: float


@dataclass(frozen=True)
class State:
    """Expected state of U subtrees at T thresholds.

    Attributes:
        kept, variance: (U, T) mean and variance of the number of representatives.
        covariance: (U, T) of the number of representatives and −ln of the uncovered share.
        least: (U, 1) those kept for certain: the blocks of the first unit.
        logarithm: (U, T) −ln of the uncovered share, at the mean.
        tail: (K, U, T) the same for the smaller cap of each node of the quadrature.
        members: (U, T) absorbed blocks.
        first, second: (U, T) two sums over what hangs on the representatives, as the variant defines them.
    """

    kept: FloatArray
    variance: FloatArray
    covariance: FloatArray
    least: FloatArray
    logarithm: FloatArray
    tail: FloatArray
    members: FloatArray
    first: FloatArray
    second: FloatArray

    def take(self, rows: IntArray | int) -> State:
        """The subtrees of the given rows."""
        return State(*(getattr(self, name)[..., rows, :] for name in _FIELDS))

    def with_last(self, other: State, row: int) -> State:
        """These subtrees, then the given one of another state."""
        return State(
            *(
                np.concatenate([getattr(self, name), getattr(other, name)[..., [row], :]], axis=-2)
                for name in _FIELDS
            )
        )


_FIELDS = tuple(field.name for field in fields(State))


def walk(
    problem: Problem, start: float, follow: Callable[[Merge], tuple[FloatArray, FloatArray]]
) -> tuple[State, FloatArray, FloatArray]:
    """Merge the units of a problem from the leaves up.

    Args:
        problem: checked arguments.
        start: ``first`` and ``second`` per block of a unit that was not merged yet.
        follow: ``first`` and ``second`` after a merge.

    Returns:
        The state of the root, with the axis of subtrees dropped; expected absorbed blocks (T,); and those
        with a direct match above each node of the quadrature (K, T).
    """
    kinds, index, _ = kinds_of(problem.units)
    blocks = np.repeat(kinds.astype(np.float64)[:, None], problem.count, axis=1)
    nothing = np.zeros_like(blocks)
    state = State(
        kept=blocks,
        variance=nothing,
        covariance=nothing,
        least=blocks[:, :1],
        logarithm=blocks * problem.plain_slope,
        tail=blocks * problem.plain_tail_slope[:, None],
        members=nothing,
        first=start * blocks,
        second=start * blocks,
    )
    absorbed = np.zeros(problem.count)
    matched = np.zeros_like(problem.panels.scores)
    for level in tree_levels(index):
        below = state
        state, lost, by_score = _merge(problem, below.take(level.left), below.take(level.right), follow)
        absorbed += level.count @ lost
        matched += np.einsum("u,kut->kt", level.count.astype(np.float64), by_score)
        if level.passed is not None:
            state = state.with_last(below, level.passed)
    return state.take(0), absorbed, matched


def _along_the_path(merge: Merge) -> tuple[FloatArray, FloatArray]:
    """Σ c and Σ c² over absorbed members: similarities multiply along the path."""
    left, right = merge.left, merge.right
    first = left.first + right.first * merge.void + (right.kept + right.first) * merge.first
    # c² of a product of independent directions: c₁²c₂² plus what the parts across the path add.
    across = (right.members - right.second) * (merge.hit - merge.second) * merge.scatter
    second = left.second + right.second * merge.void + (right.kept + right.second) * merge.second + across
    return first, second


def _merge(
    problem: Problem, left: State, right: State, follow: Callable[[Merge], tuple[FloatArray, FloatArray]]
) -> tuple[State, FloatArray, FloatArray]:
    """State after a merge, the blocks it absorbs (U, T), and those by score (K, U, T)."""
    void = problem.void(left.kept, left.variance, left.covariance, left.logarithm, left.least)
    stays, absorbed = right.kept * void.mean, right.kept * void.hit
    # K | v is binomial(N_R, v), N_R independent of the left side.
    against = right.kept * void.covariance
    spread = (
        right.kept * (void.mean - void.square) + (right.variance + right.kept**2) * void.square - stays**2
    )
    variance = np.maximum(left.variance + 2 * against + spread, 0.0)
    slope, chance = problem.tail_slope(left.logarithm)
    by_score = problem.matched(void, left.tail, slope, chance)
    growth = _growth(problem, void, left, right)
    # ℓ grows by a slope, which moves with both sides, with each of K blocks.
    steeper = stays * growth.steepening
    covariance = left.covariance + (growth.slope + void.moved + steeper * void.moved) * against
    covariance += steeper * left.covariance + growth.slope * spread
    covariance += void.mean * right.variance * stays * growth.with_right
    part = growth.expected / np.maximum(void.slope, 1e-300)
    first, second = problem.similarity(void.hit, by_score)
    followed = follow(
        Merge(left, right, stays, absorbed, void.hit, void.mean, first, second, problem.scatter)
    )
    by_score *= right.kept
    merged = State(
        kept=left.kept + stays,
        variance=variance,
        covariance=covariance,
        least=left.least,
        logarithm=left.logarithm + growth.expected,
        tail=left.tail + part * slope,
        members=left.members + right.members + absorbed,
        first=followed[0],
        second=followed[1],
    )
    return merged, absorbed, by_score


@dataclass(frozen=True)
class _Growth:
    """Growth of ℓ = −ln v at a merge.

    Attributes:
        expected: in all.
        slope: per surviving block, at the mean.
        steepening: change of the slope with ℓ of the left side.
        with_right: change of the slope with each representative of the right side.
    """

    expected: FloatArray
    slope: FloatArray
    steepening: FloatArray
    with_right: FloatArray


def _growth(problem: Problem, void: Void, left: State, right: State) -> _Growth:
    """Growth of ℓ, averaged over two values of each side.

    Where a side varies, ℓ of the left and N_R of the right stand one standard deviation to either side of
    their means; blocks that stay are fewer where ℓ is large.
    """
    stays = right.kept * void.mean
    if not problem.has_core:
        nothing = np.zeros_like(stays)
        return _Growth(stays * void.slope, void.slope, nothing, nothing)
    deviation = void.moved * np.sqrt(left.variance)
    spread = np.sqrt(right.variance)
    moved = np.divide(right.covariance, spread, out=np.zeros_like(spread), where=spread > 1e-6)
    slopes = {}
    for side in (-1, 1):
        count = np.maximum(right.kept + side * spread, 0.5)
        arriving = _Arriving(problem, count, np.maximum(right.logarithm + side * moved, 0.0))
        for sign in (-1, 1):
            slopes[sign, side] = arriving.slope(np.maximum(void.logarithm + sign * deviation, 0.0))
    up, down = slopes[1, 1] + slopes[1, -1], slopes[-1, 1] + slopes[-1, -1]
    right_up, right_down = slopes[1, 1] + slopes[-1, 1], slopes[1, -1] + slopes[-1, -1]
    slope = 0.25 * (up + down)
    steepening = np.divide(up - down, 4 * deviation, out=np.zeros_like(slope), where=deviation > 1e-6)
    with_right = np.divide(right_up - right_down, 4 * spread, out=np.zeros_like(slope), where=spread > 1e-6)
    tilt = np.tanh(deviation)  # of the blocks that stay, towards the smaller ℓ
    expected = stays * (slope - 0.25 * tilt * (up - down)) + void.mean * right.variance * with_right
    return _Growth(np.maximum(expected, 0.0), slope, steepening, with_right)


class _Arriving:
    """The right side of a merge, as a block of the left side's uncovered share meets it.

    The number of right representatives in an uncovered cap is binomial, with the mean that the cap's size
    gives and the chance of none that the right side leaves uncovered.
    """

    def __init__(self, problem: Problem, count: FloatArray, logarithm: FloatArray) -> None:
        self._problem = problem
        self._count = count
        self._inside = count * problem.chance
        success = _binomial_of_void(self._inside, logarithm)
        self._inverse = np.divide(
            success, self._inside, out=np.zeros_like(success), where=self._inside > 0
        )  # 1/k, k the trials

    def slope(self, logarithm: FloatArray) -> FloatArray:
        """Growth of ℓ per block that stays.

        Each representative in the cap survives with chance c = v·w, two of them more often together than
        apart; E[no survivor] is shared out over the survivors.
        """
        problem = self._problem
        weight = problem.weight(logarithm)
        share = np.exp(-logarithm)
        survives = np.minimum(share * weight, 1.0)
        inverse = 1 - (1 - self._inverse) * np.exp(problem.core.common * logarithm)
        per_arrival = -log_void_rate(self._inside * survives, inverse) / self._count
        taken = share * problem.chance * weight
        ratio = np.divide(-np.expm1(-per_arrival), taken, out=np.ones_like(share), where=taken > 1e-200)
        return problem.plain_slope * weight * np.minimum(ratio, _MOST_GROWTH)


def _binomial_of_void(mean: FloatArray, logarithm: FloatArray) -> FloatArray:
    """π of the binomial with this mean and chance e^−ℓ of 0.

    With x = −ln(1 − π) it solves x/(1 − e^−x) = ℓ/mean, which is convex, so that Newton's method converges.
    """
    ratio = np.divide(logarithm, mean, out=np.ones_like(mean), where=mean > 0)
    x = 2 * (ratio - 1)
    flat = np.abs(x) < 1e-4
    x = np.where(flat, 1.0, np.minimum(x, ratio))
    for _ in range(5):
        rest = -np.expm1(-x)
        x = np.maximum(x - (x / rest - ratio) * rest**2 / (rest - x * (1 - rest)), -3.0)
    return np.where(flat, 2 * (ratio - 1), -np.expm1(-x))
