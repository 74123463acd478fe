"""Which blocks of a sample are versions of one content, and how alike such versions are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.similarity import Spherical

__all__ = ["LEVELS", "Atoms", "byte_groups", "find_atoms"]

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.96)
"""Residual correlations at which content is cut into finer and finer groups, the coarsest first."""

# The coarsest cut stays this factor above the largest correlation that chance would give the pairs.
_MARGIN = 1.15


@dataclass(frozen=True)
class Atoms:
    """Nested groups of blocks.

    Attributes:
        groups: (n, levels) int64; group of each block at each level, from coarse to fine; a finer group lies
            within one coarser one.
        keys: (levels,) mean correlation of key residuals of blocks whose finest common group is of that
            level, made non-decreasing.
        values: the same of values.
        cuts: (levels,) the correlations at which groups were cut.
    """

    groups: IntArray
    keys: FloatArray
    values: FloatArray
    cuts: FloatArray


def byte_groups(*arrays: NDArray[np.generic]) -> IntArray:
    """(n,) index of the first row that is byte-equal in every array."""
    first: dict[bytes, int] = {}
    rows = zip(
        *(np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1) for array in arrays), strict=True
    )
    return np.array([first.setdefault(b"".join(p.tobytes() for p in row), i) for i, row in enumerate(rows)])


def find_atoms(keys: Float32Array, values: Float32Array) -> Atoms:
    """Group blocks by the correlation of their key residuals (average linkage).

    Independent residuals of low dimension are alike by chance, so groups are cut only above what chance
    gives: the coarsest cut is at least 0.5 and at least 1.15 times the largest of n²/2 correlations of that
    spread, the spread taken from the median, which duplicates do not move.
    Test: tests/sim/test_atoms.py::test_finds_planted_versions_and_nothing_else.

    Args:
        keys: (n, r) unit residuals of the keys of distinct blocks.
        values: the same of values.
    """
    n = len(keys)
    if n < 2:
        return Atoms(
            np.zeros((n, len(LEVELS)), dtype=np.int64), np.array(LEVELS), np.array(LEVELS), np.array(LEVELS)
        )
    alike = (keys @ keys.T).astype(np.float64)
    upper = np.triu_indices(n, 1)
    pairs = alike[upper]
    spread = max(float(np.median(np.abs(pairs))) / 0.6745, 1e-3)
    chance = float(Spherical(max(spread**-2, 2.0)).isf(1 / n**2))
    cuts = np.maximum(LEVELS, min(_MARGIN * chance, 0.99))
    tree = scipy.cluster.hierarchy.linkage(np.maximum(1 - pairs, 0), method="average")
    groups = np.stack(
        [scipy.cluster.hierarchy.fcluster(tree, 1 - cut, criterion="distance") for cut in cuts], axis=1
    ).astype(np.int64)
    # Depth of a pair: the number of levels at which both are in one group.
    depth = sum(
        (groups[upper[0], level] == groups[upper[1], level]).astype(np.int64) for level in range(len(cuts))
    )
    other = np.einsum("ij,ij->i", values[upper[0][depth > 0]], values[upper[1][depth > 0]], dtype=np.float64)
    inside, found = depth[depth > 0], pairs[depth > 0]
    of_keys, of_values = (_by_level(inside, scores, cuts) for scores in (found, np.maximum(other, 0.0)))
    return Atoms(groups, of_keys, of_values, cuts)


def _by_level(depth: IntArray, scores: FloatArray, cuts: FloatArray) -> FloatArray:
    """(levels,) mean score of the pairs of each depth, made non-decreasing; interpolated where none is."""
    levels = np.arange(1, len(cuts) + 1)
    count = np.bincount(depth, minlength=len(cuts) + 1)[1:]
    mean = np.bincount(depth, weights=scores, minlength=len(cuts) + 1)[1:] / np.maximum(count, 1)
    known = levels[count > 0]
    if not known.size:
        ends = np.append(cuts, 1.0)
        return np.asarray(0.5 * (ends[1:] + ends[:-1]))
    filled = np.interp(levels, [0, *known, len(cuts) + 1], [0.0, *mean[known - 1], 1.0])
    return 0.5 * (np.maximum.accumulate(filled) + np.minimum.accumulate(filled[::-1])[::-1])
