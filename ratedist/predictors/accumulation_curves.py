"""What random orders of the calibration requests show: new blocks per request, and who varies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors.batch_chance import FEWEST_REQUESTS, BatchChance
from ratedist.predictors.sample import PairSample
from ratedist.predictors.sample_fusion import (
    Exceedances,
    Units,
    cyclic_orders,
    fuse_sample,
    leader_survivors,
    tree_kept,
)

__all__ = ["AbsorbedErrors", "Accumulated", "Rehearsal"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_PERMUTATIONS = 4
_MOST_ORDERS = 64
_ERROR_ORDERS = 8
_MOST_GROUPS = 20
_FEWEST_FOR_REPLICATES = 4


@dataclass(frozen=True)
class Accumulated:
    """New blocks by step, on average over orders; T thresholds, n steps, J replicates.

    Attributes:
        by_position: (T, n, positions) share of the blocks at each position that stay; that of all blocks
            where no request of that position arrives at that step.
        share: (T, n) share of all blocks of the request that stay.
        replicates: (J, T, n) the same with each group of requests left out, NaN at the steps this leaves
            out; None where the sample is too small for replicates.
        chance: how far one batch as large as the sample lies from the mean of such; None where no domain
            has requests enough.
    """

    by_position: FloatArray
    share: FloatArray
    replicates: FloatArray | None
    chance: BatchChance | None


@dataclass(frozen=True)
class AbsorbedErrors:
    """Absorbed blocks and their squared relative errors (keys, values), by step of the leader variant.

    Attributes:
        count: (T, steps) absorbed blocks.
        squared: (2, T, steps) their summed squared errors.
    """

    count: FloatArray
    squared: FloatArray


class Rehearsal:
    """Fuses the calibration requests over and over, in orders drawn once.

    Requests of each domain fuse among themselves, and the domains are pooled step by step.

    Args:
        sample: the calibration sample.
        criterion, scale: as for a predictor.
        seed: of the orders.
    """

    def __init__(self, sample: PairSample, criterion: str, scale: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        score, errors = sample.scores(criterion), sample.squared_errors(scale)
        self._units: list[Units] = []
        self._orders: list[IntArray] = []
        self._score: list[FloatArray] = []
        self._errors: list[tuple[FloatArray, FloatArray]] = []
        for domain in np.unique(sample.domain):
            units = Units.of(sample.request, sample.position, sample.duplicate, sample.domain == domain)
            block = np.ix_(units.block, units.block)
            self._units.append(units)
            self._orders.append(cyclic_orders(units.requests, _PERMUTATIONS, _MOST_ORDERS, rng))
            self._score.append(score[block])
            self._errors.append((errors[0][block], errors[1][block]))
        self.requests = max(units.requests for units in self._units)
        self.blocks = int(sum(units.block.size for units in self._units))
        self._groups = self._left_out(rng)

    @property
    def replicates(self) -> int:
        """Number of replicates of the jackknife; 0 where the sample is too small for it."""
        return len(self._groups[0]) - 1

    def leader(self, thresholds: FloatArray, *, replicates: bool = True) -> Accumulated:
        """New blocks by step of the leader variant; with those of the replicates, where asked for."""
        counted = self.replicates if replicates else 0
        positions = max(int(units.position.max()) for units in self._units) + 1
        stay = np.zeros((thresholds.size, self.requests, positions))
        came = np.zeros((self.requests, positions))
        total = np.zeros((counted + 1, thresholds.size, self.requests))
        arrived = np.zeros((counted + 1, self.requests))
        chances: list[BatchChance] = []
        sizes: list[int] = []
        for units, orders, score, left_out in zip(
            self._units, self._orders, self._score, self._groups, strict=True
        ):
            left_out = left_out[: counted + 1]
            exceedances = Exceedances(score, units, thresholds, left_out)
            by_position, counts, by_order = leader_survivors(exceedances, orders)
            steps, width = by_position.shape[1:]
            stay[:, :steps, :width] += by_position
            lengths = np.diff(units.start)
            came[:steps, :width] += (lengths[orders][:, :, None] > np.arange(width)).mean(axis=0)
            total[:, :, :steps] += np.nan_to_num(counts)
            # Over rotations every request stands at every step alike.
            present = ~left_out
            mean = (present * lengths).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
            arrived[:, :steps] += mean[:, None] * (np.arange(steps) < present.sum(axis=1)[:, None])
            if steps >= FEWEST_REQUESTS:
                chances.append(BatchChance.of(by_order, rotations=min(steps, _MOST_ORDERS)))
                sizes.append(steps)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = total / arrived[:, None]
        by_position = np.broadcast_to(share[0][:, :, None], stay.shape).copy()
        np.divide(stay, came, out=by_position, where=np.broadcast_to(came > 0, stay.shape))
        chance = BatchChance.mean(chances, sizes) if chances else None
        return Accumulated(by_position, share[0], share[1:] if counted else None, chance)

    def tree(self, thresholds: FloatArray, requests: int, *, replicates: bool = True) -> FloatArray:
        """(J + 1, T) blocks that trees over ``requests`` keep, per block that the leader variant keeps.

        Of the domains that have so many requests; the first row leaves nobody out.
        """
        tree = np.zeros((self.replicates + 1, thresholds.size))
        leader = np.zeros_like(tree)
        for units, orders, score, left_out in zip(
            self._units, self._orders, self._score, self._groups, strict=True
        ):
            if units.requests < requests:
                continue
            # Over half of the orders, of which the rotations still reach every request.
            some = orders[::2, :requests]
            whole = replicates and requests == units.requests
            exceedances = Exceedances(score, units, thresholds, left_out if whole else left_out[:1])
            tree += tree_kept(exceedances, some)
            leader += np.nansum(leader_survivors(exceedances, some)[1], axis=2)
        return tree / leader

    def absorbed(self, thresholds: FloatArray, requests: int, variant: str) -> AbsorbedErrors:
        """Errors of what ``requests`` requests absorb, by the step at which each block arrives."""
        count = np.zeros((thresholds.size, requests))
        squared = np.zeros((2, thresholds.size, requests))
        for units, orders, score, errors in zip(
            self._units, self._orders, self._score, self._errors, strict=True
        ):
            steps = min(requests, units.requests)
            picked = orders[np.unique(np.linspace(0, len(orders) - 1, _ERROR_ORDERS).astype(int)), :steps]
            if variant == "tree" and steps < requests:
                continue
            for order in picked:
                fused = fuse_sample(score, units, order, thresholds, variant)
                for step, request in enumerate(order):
                    rows = units.rows(int(request))
                    here = np.arange(rows.start, rows.stop)
                    count[:, step] += (~fused.kept[:, rows]).sum(axis=1) / len(picked)
                    for total, error in zip(squared, errors, strict=True):
                        total[:, step] += error[here, fused.representative[:, rows]].sum(axis=1) / len(picked)
        return AbsorbedErrors(count, squared)

    def _left_out(self, rng: np.random.Generator) -> list[BoolArray]:
        """(J + 1, requests) for each domain: groups of requests that replicates leave out."""
        sizes = [units.requests for units in self._units]
        total = sum(sizes)
        nobody = [np.zeros((1, size), bool) for size in sizes]
        if self.requests < _FEWEST_FOR_REPLICATES:
            return nobody
        groups = min(total, _MOST_GROUPS)
        owner = np.split(rng.permutation(np.arange(total) % groups), np.cumsum(sizes)[:-1])
        left_out = [
            np.concatenate([none, group == np.arange(groups)[:, None]])
            for none, group in zip(nobody, owner, strict=True)
        ]
        longest = np.max([(~out).sum(axis=1) for out in left_out], axis=0)
        return left_out if longest.min() >= 2 else nobody
