"""Fusing the calibration sample itself: leader and tree on its matrix of scores, for many thresholds at once.

Two ways, for two uses. ``fuse_sample`` follows one order of the requests and says who represents whom, as
the kernels do. ``leader_survivors`` and ``tree_kept`` only count, over many orders, and beside every count
also the same count with a group of requests left out (the replicates of a jackknife): whether a block finds
a match among the kept ones is one product of matrices, so a replicate costs a column of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Exceedances", "Fused", "Units", "cyclic_orders", "fuse_sample", "leader_survivors", "tree_kept"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_NOBODY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Units:
    """Requests of one domain, their blocks request by request.

    Attributes:
        block: (N,) index of each block in the sample, by request and position.
        start: (requests + 1,) where each request's blocks begin in ``block``.
        position: (N,) position of each block in its request.
        duplicate: (N,) blocks with the same number are byte-equal.
    """

    block: IntArray
    start: IntArray
    position: IntArray
    duplicate: IntArray

    @classmethod
    def of(cls, request: IntArray, position: IntArray, duplicate: IntArray, chosen: BoolArray) -> Units:
        """The blocks ``chosen`` of a sample, its requests in ascending order."""
        block = np.flatnonzero(chosen)
        block = block[np.lexsort((position[block], request[block]))]
        _, count = np.unique(request[block], return_counts=True)
        return cls(
            block=block,
            start=np.concatenate([[0], np.cumsum(count)]),
            position=position[block],
            duplicate=np.unique(duplicate[block], return_inverse=True)[1].reshape(-1),
        )

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.start.size - 1

    def rows(self, request: int) -> slice:
        """Where the blocks of a request stand."""
        return slice(int(self.start[request]), int(self.start[request + 1]))

    def owner(self) -> IntArray:
        """(N,) request of each block, from 0."""
        return np.repeat(np.arange(self.requests), np.diff(self.start))

    def first(self, order: Sequence[int] | IntArray) -> IntArray:
        """(N,) block whose copy this one is: the first byte-equal one in this order of the requests.

        A block stands for itself where no other request of the order holds its content, and where its own
        request is not in the order.
        """
        owner, rank = self.owner(), np.full(self.requests, _NOBODY)
        rank[np.asarray(order, np.int64)] = np.arange(len(order))
        arrival = rank[owner]
        first = np.arange(owner.size)
        present = np.flatnonzero(arrival < _NOBODY)
        by_arrival = present[np.lexsort((present, arrival[present]))]
        _, where, group = np.unique(self.duplicate[by_arrival], return_index=True, return_inverse=True)
        group = group.reshape(-1)
        requests_apart = np.zeros(where.size, bool)
        earliest = arrival[by_arrival[where]]
        np.logical_or.at(requests_apart, group, arrival[by_arrival] != earliest[group])
        shared = requests_apart[group]
        first[by_arrival[shared]] = by_arrival[where][group[shared]]
        return first


@dataclass(frozen=True)
class Fused:
    """One order fused at T thresholds; blocks as in ``Units``, those of requests outside the order untouched.

    Attributes:
        kept: (T, N) blocks that stay.
        representative: (T, N) block that stands for each in the end, itself where it stays.
    """

    kept: BoolArray
    representative: IntArray


def fuse_sample(
    score: FloatArray, units: Units, order: Sequence[int] | IntArray, thresholds: FloatArray, variant: str
) -> Fused:
    """Fuse requests of the sample in the order given, as the kernels fuse a cache.

    Args:
        score: (N, N) score of every pair of blocks of ``units``, at most 1.
        units: the requests.
        order: requests to fuse, by their number in ``units``.
        thresholds: (T,).
        variant: ``"leader"`` or ``"tree"``.

    Test: tests/ratedist/predictors/test_sample_fusion.py::test_agrees_with_the_reference_kernels.
    """
    first = units.first(order)
    blocks = np.arange(first.size)
    absorber = np.broadcast_to(first, (thresholds.size, first.size)).copy()
    kept = np.zeros(absorber.shape, bool)
    arrived = [np.arange(units.start[r], units.start[r + 1]) for r in order]
    for rows in arrived:
        kept[:, rows] = first[rows] == rows

    def merge(left: IntArray, right: IntArray) -> IntArray:
        """Blocks of ``right`` go to their best match above the threshold among those kept on the left."""
        rows = right[first[right] == right]
        if left.size and rows.size:
            # Of equal scores the one that arrived first wins: argmax takes the first.
            seen = np.where(kept[:, None, left], score[np.ix_(rows, left)], -np.inf)
            best = seen.argmax(axis=2)
            above = np.take_along_axis(seen, best[:, :, None], 2)[:, :, 0] > thresholds[:, None]
            above &= kept[:, rows]
            absorber[:, rows] = np.where(above, left[best], absorber[:, rows])
            kept[:, rows] &= ~above
        return np.concatenate([left, right])

    if variant == "leader":
        before = np.zeros(0, np.int64)
        for rows in arrived:
            before = merge(before, rows)
    else:
        while len(arrived) > 1:
            paired = [merge(a, b) for a, b in zip(arrived[::2], arrived[1::2], strict=False)]
            arrived = paired + arrived[2 * len(paired) :]
    while True:
        further = np.take_along_axis(absorber, absorber, axis=1)
        if (further == absorber).all():
            return Fused(kept=absorber == blocks, representative=absorber)
        absorber = further


def cyclic_orders(requests: int, permutations: int, most: int, rng: np.random.Generator) -> IntArray:
    """(orders, requests): random permutations with their rotations, at most ``most`` in all.

    Over all rotations of a permutation every request stands at every place once, so which requests come
    late by chance does not disturb the shape of the curve.
    """
    permutations = max(1, min(permutations, most // requests))
    shifts = np.unique(np.linspace(0, requests, min(requests, most), endpoint=False).astype(np.int64))
    drawn = [rng.permutation(requests) for _ in range(permutations)]
    return np.array([np.roll(order, -shift) for order in drawn for shift in shifts])


class Exceedances:
    """Which pairs of blocks exceed each threshold, as matrices to multiply with, and who is left out when.

    Args:
        score: (N, N) of the blocks of ``units``.
        units: the requests.
        thresholds: (T,).
        left_out: (J, requests) requests left out of each replicate; in the first one none is.
    """

    def __init__(self, score: FloatArray, units: Units, thresholds: FloatArray, left_out: BoolArray) -> None:
        self.units = units
        self.left_out = left_out
        self.matrix = (score[None] > thresholds[:, None, None]).astype(np.float32)
        _, group, count = np.unique(units.duplicate, return_inverse=True, return_counts=True)
        copies = np.flatnonzero(count[group.reshape(-1)] > 1)
        self._copies = copies[np.argsort(units.duplicate[copies], kind="stable")]
        self._groups = np.flatnonzero(np.diff(units.duplicate[self._copies], prepend=-1))
        self._owner = units.owner()

    def distinct(self, order: IntArray) -> NDArray[np.float32]:
        """(N, J) 1 where a block takes part in a replicate and is no copy of one before it.

        A content that several requests hold counts once, in the first of them.
        """
        units, owner = self.units, self._owner
        rank = np.full(units.requests, _NOBODY)
        rank[order] = np.arange(order.size)
        absent = self.left_out.T | (rank == _NOBODY)[:, None]  # (requests, J)
        alive = ~absent[owner]
        if self._copies.size:
            arrival = np.where(absent[owner[self._copies]], _NOBODY, rank[owner[self._copies]][:, None])
            lowest = np.minimum.reduceat(arrival, self._groups, axis=0)
            present = np.where(arrival == _NOBODY, -1, arrival)
            highest = np.maximum.reduceat(present, self._groups, axis=0)
            size = np.diff(np.append(self._groups, self._copies.size))
            # Within a request blocks stand by position, so the first place of the earliest request counts.
            place = np.where(arrival == np.repeat(lowest, size, axis=0), self._copies[:, None], _NOBODY)
            chosen = np.repeat(np.minimum.reduceat(place, self._groups, axis=0), size, axis=0)
            apart = np.repeat(highest > lowest, size, axis=0)
            alive[self._copies] &= ~apart | (chosen == self._copies[:, None])
        return cast("NDArray[np.float32]", alive.astype(np.float32))


def leader_survivors(exceedances: Exceedances, orders: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Blocks that stay at each step of the leader variant.

    Args:
        exceedances: the sample, with J replicates.
        orders: (orders, n) requests.

    Returns:
        by_position (T, n, positions): blocks that stay of the request that arrives at each step, nobody left
        out, on average over orders; total (J, T, n): all of them, in each replicate, its steps counted
        without those left out (NaN at steps that a replicate does not have); by_order (orders, T, n): all of
        them in each order, nobody left out.

    Test: tests/ratedist/predictors/test_sample_fusion.py::test_counts_are_those_of_the_fusions.
    """
    units, matrix = exceedances.units, exceedances.matrix
    levels, replicates = matrix.shape[0], exceedances.left_out.shape[0]
    steps = orders.shape[1]
    by_position = np.zeros((levels, steps, int(units.position.max()) + 1))
    total = np.zeros((replicates, levels, steps))
    by_order = np.zeros((len(orders), levels, steps))
    for number, order in enumerate(orders):
        distinct = exceedances.distinct(order)
        kept = np.zeros((levels, units.block.size, replicates), np.float32)
        step = np.zeros(replicates, np.int64)
        for place, request in enumerate(order):
            rows = units.rows(int(request))
            stays = (matrix[:, rows] @ kept == 0) * distinct[None, rows]
            kept[:, rows] = stays
            here = np.flatnonzero(~exceedances.left_out[:, request])
            total[here, :, step[here]] += stays[:, :, here].sum(axis=1).T
            step[here] += 1
            by_position[:, place, units.position[rows]] += stays[:, :, 0]
            by_order[number, :, place] = stays[:, :, 0].sum(axis=1)
    total[:, :, :] = np.where(np.arange(steps) < step[:, None, None], total, np.nan)
    return by_position / len(orders), total / len(orders), by_order


def tree_kept(exceedances: Exceedances, orders: IntArray) -> FloatArray:
    """(J, T) blocks that a tree over the requests of each order keeps, on average over orders.

    In a replicate the leaves of those left out stay empty: the tree keeps its shape.

    Test: tests/ratedist/predictors/test_sample_fusion.py::test_counts_are_those_of_the_fusions.
    """
    units, matrix = exceedances.units, exceedances.matrix
    levels, replicates = matrix.shape[0], exceedances.left_out.shape[0]
    total = np.zeros((replicates, levels))
    for order in orders:
        kept = np.repeat(exceedances.distinct(order)[None], levels, axis=0)
        nodes = [np.arange(units.start[request], units.start[request + 1]) for request in order]
        while len(nodes) > 1:
            merged = []
            for left, right in zip(nodes[::2], nodes[1::2], strict=False):
                kept[:, right] *= matrix[:, right[:, None], left] @ kept[:, left] == 0
                merged.append(np.concatenate([left, right]))
            nodes = merged + nodes[2 * len(merged) :]
        total += kept.sum(axis=1).T
    return total / len(orders)
