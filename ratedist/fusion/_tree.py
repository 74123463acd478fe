"""The shape of a balanced binary tree over units, with subtrees that are alike computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Level", "kinds_of", "tree_levels"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """One level of merges, over U different pairs of subtrees.

    Attributes:
        left: (U,) row of the left child among the states of the level below.
        right: (U,) row of the right child.
        count: (U,) how many merges of this level look like this.
        passed: row of the state that passes up unchanged (as the last of the next states), or None.
    """

    left: IntArray
    right: IntArray
    count: IntArray
    passed: int | None


def kinds_of(values: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """The different values, the row of each entry among them, and how often each occurs."""
    if (
        values[0] == values[-1] and (values == values[0]).all()
    ):  # by far the most frequent case, without a sort
        return values[:1], np.zeros(values.size, dtype=np.int64), np.array([values.size])
    return np.unique(values, return_inverse=True, return_counts=True)


def tree_levels(kinds: IntArray) -> list[Level]:
    """Levels of the tree over units of the given kinds (row of each unit's state), from the leaves up.

    Neighbours merge, an odd last unit passes up. After a level the states are its U merges, then the passed
    one. Test: tests/ratedist/fusion/test_stepping.py::test_levels_cover_every_unit_once.
    """
    levels = []
    while kinds.size > 1:
        pairs = kinds[: kinds.size // 2 * 2].reshape(-1, 2)
        passed = int(kinds[-1]) if kinds.size % 2 else None
        base = int(kinds.max()) + 1
        unique, inverse, count = kinds_of(pairs[:, 0] * base + pairs[:, 1])
        levels.append(Level(unique // base, unique % base, count, passed))
        kinds = inverse
        if passed is not None:
            kinds = np.append(kinds, unique.size)
    return levels
