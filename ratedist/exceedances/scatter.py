"""Exceedances scattered at random over the candidate pairs: what a Poisson process would look like."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.exceedances.pairs import NULLS, Exceedances

__all__ = ["scatter"]

IntArray = NDArray[np.int64]


def scatter(
    exceedances: Exceedances, draws: int, rng: np.random.Generator, null: str = "homogeneous"
) -> Iterator[Exceedances]:
    """Given their number, the points of a Poisson process are independent draws from its intensity.

    Yields ``draws`` sets of as many exceedances as there are, without repetition, over all candidate pairs
    ("homogeneous") or keeping every pair of positions its number of them ("positions"). Comparing a statistic
    with its values on these is an exact test of the Poisson law given W: it needs no estimate of the rate.
    Test: tests/ratedist/exceedances/test_scatter.py::test_scattered_pairs_are_uniform.

    Raises InputError where ``null`` is unknown.
    """
    if null not in NULLS:
        raise InputError("null", null, f"must be one of {', '.join(NULLS)}")
    sampler = _Homogeneous(exceedances) if null == "homogeneous" else _Positions(exceedances)
    for _ in range(draws):
        first, second = sampler.draw(rng)
        yield Exceedances(first, second, exceedances.blocks)


class _Homogeneous:
    def __init__(self, exceedances: Exceedances) -> None:
        blocks = exceedances.blocks
        a, b = np.triu_indices(exceedances.requests, 1)
        self.count = exceedances.count
        self.ends = np.cumsum(blocks[a] * blocks[b])
        self.a, self.b = a, b
        self.blocks = blocks
        self.start = np.cumsum(blocks) - blocks

    def draw(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        chosen = rng.choice(int(self.ends[-1]), self.count, replace=False)
        pair = np.searchsorted(self.ends, chosen, side="right")
        a, b = self.a[pair], self.b[pair]
        within = chosen - (self.ends[pair] - self.blocks[a] * self.blocks[b])
        return self.start[a] + within // self.blocks[b], self.start[b] + within % self.blocks[b]


class _Positions:
    """Keeps the positions {i, j} of every exceedance and draws its two requests anew."""

    def __init__(self, exceedances: Exceedances) -> None:
        i, j = exceedances.position_of[exceedances.first], exceedances.position_of[exceedances.second]
        # In the cell (i, j), i < j, a pair is two ordered requests; for i = j it is an unordered one.
        self.i, self.j = np.minimum(i, j), np.maximum(i, j)
        size = int(exceedances.blocks.max())
        self.cell = self.i * size + self.j
        # Requests by falling length: those that reach position i are the first reach[i].
        self.order = np.argsort(-exceedances.blocks, kind="stable")
        self.reach = np.sum(exceedances.blocks[:, None] > np.arange(size), axis=0)
        self.start = np.cumsum(exceedances.blocks) - exceedances.blocks
        self.requests = exceedances.requests
        # Cells that are more than half full would reject most draws: there the empty pairs are drawn.
        seen, candidates = exceedances._position_counts
        full = np.where(np.eye(size, dtype=bool), seen / 2, seen)
        room = np.where(np.eye(size, dtype=bool), candidates / 2, candidates)
        crowded = (full > 0.5 * room).ravel()
        self.sparse = np.flatnonzero(~crowded[self.cell])
        self.crowded = [
            np.flatnonzero(self.cell == cell) for cell in np.unique(self.cell[crowded[self.cell]])
        ]

    def draw(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        a = np.empty(self.i.size, dtype=np.int64)
        b = np.empty(self.i.size, dtype=np.int64)
        for members in self.crowded:
            a[members], b[members] = self._from_full_cell(members, rng)
        self._by_rejection(a, b, rng)
        return self._numbers(a, b)

    def _from_full_cell(self, members: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        i, j = self.i[members[0]], self.j[members[0]]
        rows, columns = np.indices((int(self.reach[i]), int(self.reach[j])))
        allowed = rows < columns if i == j else rows != columns
        chosen = rng.choice(int(allowed.sum()), members.size, replace=False)
        return rows[allowed][chosen], columns[allowed][chosen]

    def _by_rejection(self, a: IntArray, b: IntArray, rng: np.random.Generator) -> None:
        open_ = self.sparse
        while open_.size:
            a[open_] = rng.integers(0, self.reach[self.i[open_]])
            b[open_] = rng.integers(0, self.reach[self.j[open_]])
            mine = self.sparse
            x, y = a[mine], b[mine]
            same_position = self.i[mine] == self.j[mine]
            low, high = (
                np.where(same_position, np.minimum(x, y), x),
                np.where(same_position, np.maximum(x, y), y),
            )
            code = (self.cell[mine] * self.requests + low) * self.requests + high
            # The first of equal codes stays; np.unique's index is the first in order of arrival, and those
            # settled in an earlier round must win over newcomers.
            settled = np.ones(self.i.size, dtype=bool)
            settled[open_] = False
            rank = np.argsort(~settled[mine], kind="stable")
            keep = np.zeros(mine.size, dtype=bool)
            keep[rank[np.unique(code[rank], return_index=True)[1]]] = True
            open_ = mine[~keep | (x == y)]

    def _numbers(self, a: IntArray, b: IntArray) -> tuple[IntArray, IntArray]:
        x = self.start[self.order[a]] + self.i
        y = self.start[self.order[b]] + self.j
        return np.minimum(x, y), np.maximum(x, y)
