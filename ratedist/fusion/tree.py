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
        least: (U, 1) those kept for certain: the blocks of the first unit.
        logarithm: (U, T) −ln of the uncovered share, at the mean.
        tail: (K, U, T) the same for the smaller cap of each node of the quadrature.
        members: (U, T) absorbed blocks.
        first, second: (U, T) two sums over what hangs on the representatives, as the variant defines them.
    """

    kept: FloatArray
    variance: FloatArray
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
    void = problem.void(left.kept, left.variance, left.logarithm, left.least)
    stays, absorbed = right.kept * void.mean, right.kept * void.hit
    # K | v is binomial(N_R, v), N_R independent of the left side.
    variance = (
        left.variance
        + 2 * right.kept * void.covariance
        + right.kept * (void.mean - void.square)
        + (right.variance + right.kept**2) * void.square
        - stays**2
    )
    slope, chance = problem.tail_slope(left.logarithm)
    by_score = problem.matched(void, left.tail, slope, chance)
    ratio = _growth(problem, void, right) if problem.has_core else 1.0
    growth = stays * ratio * void.correction
    first, second = problem.similarity(void.hit, by_score)
    followed = follow(
        Merge(left, right, stays, absorbed, void.hit, void.mean, first, second, problem.scatter)
    )
    by_score *= right.kept
    merged = State(
        kept=left.kept + stays,
        variance=np.maximum(variance, 0.0),
        least=left.least,
        logarithm=left.logarithm + growth * void.slope,
        tail=left.tail + growth * slope,
        members=left.members + right.members + absorbed,
        first=followed[0],
        second=followed[1],
    )
    return merged, absorbed, by_score


def _growth(problem: Problem, void: Void, right: State) -> FloatArray:
    """Growth of −ln v per surviving block of the right side, over the slope.

    The number of right representatives in an uncovered cap is binomial, with the mean that the cap's size
    gives and the chance of none that the right side leaves uncovered; each survives with chance c, two of
    them more often together than apart. E[no survivor] is shared out over the survivors.
    """
    count = right.kept
    inside = count * problem.chance
    binomial = _binomial_of_void(inside, right.logarithm)
    survives = np.minimum(void.mean * void.weight, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(inside > 0, binomial / inside, 0.0)
    inverse = 1 - (1 - inverse) * np.exp(problem.core.common * void.logarithm)
    per_arrival = -log_void_rate(inside * survives, inverse) / count
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = -np.expm1(-per_arrival) / (void.mean * problem.chance * void.weight)
    return np.where((void.mean > 1e-200) & (problem.chance > 0), np.minimum(ratio, _MOST_GROWTH), 1.0)


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
