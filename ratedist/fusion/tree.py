"""Tree: a balanced binary tree over the units; at a node the left side absorbs from the right one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.fusion._moments import Problem, Void, log_void_rate
from ratedist.fusion._tree import kinds_of, tree_levels
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.result import FusionResult
from ratedist.similarity.base import SimilarityLaw

__all__ = ["tree"]

FloatArray = NDArray[np.float64]

# Rows of a state before ℓ by score: E N, Var N, ℓ, absorbed members, Σ c and Σ c² over these against their
# representative.
_MEAN, _VARIANCE, _LOG, _MEMBERS, _FIRST, _SECOND, _TAIL = range(7)


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
    kinds, index, _ = kinds_of(problem.units)
    state = _leaves(problem, kinds.astype(np.float64))
    absorbed = np.zeros(problem.count)
    matched = np.zeros_like(problem.panels.scores)
    for level in tree_levels(index):
        left, right = state[:, level.left], state[:, level.right]
        merged, lost, by_score = _merge(problem, left, right)
        absorbed += level.count @ lost
        matched += np.einsum("u,kut->kt", level.count.astype(np.float64), by_score)
        if level.passed is not None:
            merged = np.concatenate([merged, state[:, [level.passed]]], axis=1)
        state = merged
    top = state[:, 0]
    final = top[_FIRST], top[_SECOND]
    return problem.result("tree", top[_MEAN], top[_VARIANCE], absorbed, matched, final)


def _leaves(problem: Problem, blocks: FloatArray) -> FloatArray:
    """States (rows, U, T) of units that have not been merged."""
    state = np.zeros((_TAIL + problem.panels.scores.shape[0], blocks.size, problem.count))
    state[_MEAN] = blocks[:, None]
    state[_LOG] = blocks[:, None] * problem.plain_slope
    state[_TAIL:] = blocks[:, None] * problem.plain_tail_slope[:, None]
    return state


def _merge(
    problem: Problem, left: FloatArray, right: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """State after a merge, the blocks it absorbs (U, T), and those by score (K, U, T)."""
    void = problem.void(left[_MEAN], left[_VARIANCE], left[_LOG])
    arriving, spread = right[_MEAN], right[_VARIANCE]
    stays = arriving * void.mean
    merged = np.empty_like(left)
    merged[_MEAN] = left[_MEAN] + stays
    # K | v is binomial(N_R, v), N_R independent of the left side.
    merged[_VARIANCE] = np.maximum(
        left[_VARIANCE]
        + 2 * arriving * void.covariance
        + arriving * (void.mean - void.square)
        + (spread + arriving**2) * void.square
        - stays**2,
        0.0,
    )
    slope, chance = problem.tail_slope(left[_LOG])
    by_score = problem.matched(left[_MEAN], void, left[_TAIL:], slope, chance)
    ratio = _growth(problem, void, right) if problem.has_core else 1.0
    growth = stays * ratio * void.correction
    merged[_LOG] = left[_LOG] + growth * void.slope
    merged[_TAIL:] = left[_TAIL:] + growth * slope

    first, second = problem.similarity(void.hit, by_score)
    absorbed = arriving * void.hit
    merged[_MEMBERS] = left[_MEMBERS] + right[_MEMBERS] + absorbed
    # An absorbed representative stands at c = 1 to itself, its members at the product along the path.
    merged[_FIRST] = left[_FIRST] + right[_FIRST] * void.mean + (arriving + right[_FIRST]) * first
    # c² of a product of independent directions: c₁²c₂² plus what the parts across the path add.
    across = (right[_MEMBERS] - right[_SECOND]) * (void.hit - second) * problem.scatter
    merged[_SECOND] = (
        left[_SECOND] + right[_SECOND] * void.mean + (arriving + right[_SECOND]) * second + across
    )
    by_score *= arriving
    return merged, absorbed, by_score


def _growth(problem: Problem, void: Void, right: FloatArray) -> FloatArray:
    """Growth of −ln v per surviving block of the right side, over the slope.

    The number of right representatives in an uncovered cap is binomial, with the mean that the cap's size
    gives and the chance of none that the right side leaves uncovered; each survives with chance c, two of
    them more often together than apart. E[no survivor] is shared out over the survivors.
    """
    count = right[_MEAN]
    inside = count * problem.chance
    binomial = _binomial_of_void(inside, right[_LOG])
    survives = np.minimum(void.mean * void.weight, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(inside > 0, binomial / inside, 0.0)
    inverse = 1 - (1 - inverse) * np.exp(problem.core.common * void.logarithm)
    per_arrival = -log_void_rate(inside * survives, inverse) / count
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = -np.expm1(-per_arrival) / void.mean
        ratio = -np.log1p(-np.minimum(factor, 1 - 1e-12)) / void.slope
    return np.where((void.mean > 1e-200) & (void.slope > 0), ratio, 1.0)


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
