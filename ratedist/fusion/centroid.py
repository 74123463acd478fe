"""Centroid: the tree with the normalised mean of a group's members as its representative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.fusion._moments import Problem
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.result import KeptBlocks
from ratedist.fusion.tree import Merge, tree, walk
from ratedist.similarity.base import SimilarityLaw

__all__ = ["CentroidResult", "centroid"]

FloatArray = NDArray[np.float64]

_MOST = 12  # numbers absorbed by one group at a merge that are summed one by one


@dataclass(frozen=True)
class CentroidResult(KeptBlocks):
    """Kept blocks of the centroid variant, and what its groups' members suffer.

    No member is stored as it was, so the errors are Σ e² over *all* members of all groups for each absorbed
    block: times ``absorbed_share`` they are the mean over all blocks, as in the other variants.

    Attributes:
        final_error2: (T,) own norm, from the modelled lengths of the groups' sums, within 5 % of the
            simulated process; NaN where nothing is absorbed.
        final_error2_low, final_error2_high: (T,) bounds on it that hold whatever the spread of the groups.
    """

    final_error2: FloatArray
    final_error2_low: FloatArray
    final_error2_high: FloatArray


def centroid(
    law: SimilarityLaw,
    units: Sequence[int] | NDArray[np.int64],
    thresholds: ArrayLike,
    *,
    hard_core: HardCore | bool = True,
) -> CentroidResult:
    """The tree's kept blocks, and the error of members against the mean of their group.

    Kept: the centroid of independent uniform directions is again uniform and independent of the other side,
    so every merge meets the law of a pair and the tree's recursion holds as it stands. Around a common
    direction centroids lose what sets them apart and attract each other: fewer are kept, and the tree's
    number is an upper estimate.

    Error: a group of m unit vectors whose sum has length R has Σ e² = 2m − 2R under own norm, exactly. At a
    merge R² ← (R + Σ R_k s_k)² + Σ R_k²(1 − s_k²) over the groups k that one absorbs, whose directions are
    independent given the match. The mean of its root is taken with two values for R and for
    every R_k. The error is bounded from below through E R <= √(E R²) for every number of groups absorbed,
    and from above by R + Σ R_k s_k, the similarity to a representative that does not move (the tree's final
    error).

    Args:
        law, units, thresholds, hard_core: as for ``tree``; the law is taken as that of directions without
            a common part.

    Tests: tests/ratedist/fusion/test_centroid.py::test_agrees_with_directions and
    tests/ratedist/montecarlo/test_agreement.py.

    Raises:
        InputError: an argument outside its domain.
    """
    problem = Problem(law, np.asarray(units), thresholds, hard_core, 0.0)
    top, absorbed, _ = walk(problem, 1.0, _sum_of_directions)
    upper, _, _ = walk(problem, 1.0, _largest_sum)
    fixed = tree(law, units, thresholds, hard_core=hard_core, baseline=0.0)
    some = absorbed > 0

    def error2(length: FloatArray) -> FloatArray:
        suffered = 2 * (problem.blocks - np.minimum(length, problem.blocks))
        return np.divide(suffered, absorbed, out=np.full_like(absorbed, np.nan), where=some)

    low = error2(upper.first)
    modelled = np.clip(error2(top.first), low, fixed.final_error2)
    return CentroidResult(
        "centroid",
        fixed.thresholds,
        fixed.blocks,
        fixed.least,
        fixed.kept,
        fixed.kept_std,
        fixed.kept_low,
        fixed.kept_high,
        modelled,
        np.minimum(low, fixed.final_error2),
        fixed.final_error2,
    )


def _sum_of_directions(merge: Merge) -> tuple[FloatArray, FloatArray]:
    """Σ R and Σ R² over groups, R the length of the sum of a group's directions."""
    left, right = merge.left, merge.right
    mean, mean_square = left.first / left.kept, left.second / left.kept
    arriving, arriving_square = right.first / right.kept, right.second / right.kept
    score = merge.first / np.maximum(merge.hit, 1e-300)
    spread = np.sqrt(np.maximum(mean_square - mean**2, 0.0))
    arriving_spread = np.sqrt(np.maximum(arriving_square - arriving**2, 0.0))
    along = arriving * score

    none, some = _absorbed_by_one(right.kept, merge.hit / left.kept)
    rate = merge.absorbed / left.kept
    grown = none * mean
    for number, chance in some:
        for sign in (-1.0, 1.0):
            # Σ R_k, and Σ R_k² where each R_k is one of two values.
            added = number * arriving + sign * np.sqrt(number) * arriving_spread
            squares = number * arriving_square + 2 * arriving * (added - number * arriving)
            squares = np.clip(squares, 0.0, np.maximum(added, 0.0) ** 2)
            added = np.maximum(added, 0.0)
            across = score**2 * (added**2 - squares) + squares
            for own in (mean - spread, mean + spread):
                grown += 0.25 * chance * np.sqrt(own**2 + 2 * own * score * added + across)
    square = mean_square + 2 * rate * mean * along + rate**2 * along**2 + rate * arriving_square
    return (
        left.kept * grown + merge.stays * arriving,
        left.kept * square + merge.stays * arriving_square,
    )


def _largest_sum(merge: Merge) -> tuple[FloatArray, FloatArray]:
    """As ``_sum_of_directions``, with the largest mean root that its mean square allows."""
    left, right = merge.left, merge.right
    mean, mean_square = left.first / left.kept, left.second / left.kept
    arriving, arriving_square = right.first / right.kept, right.second / right.kept
    along = arriving * merge.first / np.maximum(merge.hit, 1e-300)
    none, some = _absorbed_by_one(right.kept, merge.hit / left.kept)
    rate = merge.absorbed / left.kept
    grown = none * mean
    for number, chance in some:
        pairs = number * (number - 1)
        square = mean_square + 2 * number * mean * along + pairs * along**2 + number * arriving_square
        grown += chance * np.sqrt(square)
    square = mean_square + 2 * rate * mean * along + rate**2 * along**2 + rate * arriving_square
    return (
        left.kept * grown + merge.stays * arriving,
        left.kept * square + merge.stays * arriving_square,
    )


def _absorbed_by_one(
    arriving: FloatArray, chance: FloatArray
) -> tuple[FloatArray, list[tuple[FloatArray, FloatArray]]]:
    """Chance that a group absorbs none, and numbers 1, 2, … with theirs: binomial over the arriving blocks.

    The last number stands for all larger ones, by their mean.
    """
    chance = np.minimum(chance, 1 - 1e-12)
    none = np.exp(arriving * np.log1p(-chance))
    found = []
    now, rest, rest_mean = none, 1 - none, arriving * chance
    for number in range(1, _MOST):
        now = now * np.maximum(arriving - number + 1, 0.0) / number * chance / (1 - chance)
        found.append((np.full_like(now, number), now))
        rest, rest_mean = rest - now, rest_mean - number * now
    enough = rest > 1e-9
    number = np.divide(rest_mean, rest, out=np.full_like(rest, float(_MOST)), where=enough)
    found.append((np.maximum(number, _MOST), np.where(enough, rest, 0.0)))
    return none, found
