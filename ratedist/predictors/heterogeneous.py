"""The position-marked process of blocks that differ, in number of matches, by more than their positions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors.accumulation import AccumulationPredictor
from ratedist.predictors.accumulation_curves import Rehearsal
from ratedist.predictors.base import Outcome, Spread
from ratedist.predictors.growth import Growth
from ratedist.predictors.position_marked import PositionMarkedPredictor
from ratedist.predictors.sample import PairSample

__all__ = ["HeterogeneousPredictor", "void"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LOWEST = -0.95
_HIGHEST = 30.0
_HALVINGS = 40
_ONLY_COPIES = np.array([1.0])


class HeterogeneousPredictor(PositionMarkedPredictor):
    """Position-marked, its void mixed just as much as the sample's own fusion asks for.

    Two things are taken out of the position-marked process and put beside it. *Byte-equal blocks*: how many
    blocks of the m-th request are the first of their content is read off the sample by position and
    continued as a curve of its own (a shared prefix saturates, whatever its similarities are), and only
    distinct blocks enter the process, with the chances of pairs that are not equal. *Heterogeneity*: a block
    that meets Λ_i = Σ_j H_ij n_j expected matches stays with chance (1 + cΛ_i)^(−1/c) in place of
    exp(−Λ_i). c > 0 is gamma-mixed popularity of shape 1/c, c < 0 the first order of a hard core. A c for
    each threshold and variant is fitted to the number of blocks that the sample's own requests keep, which a
    plug-in of each block's share of matches misses by far (it takes the chance in those shares for
    popularity). What no c in [−0.95, 30] reaches is left as a factor.

    Errors are those of the position-marked process. At m = n the prediction is the measurement that
    accumulation makes, so the band is accumulation's; beyond, the distance between the two predictions
    counts as the sample's error where it is larger.

    Source: docs/theory.md, "Heterogeneity within a position".
    Test: tests/ratedist/predictors/test_heterogeneous.py::test_sees_popularity_where_positions_do_not.
    """

    name: ClassVar[str] = "heterogeneous"

    def _fit(self, sample: PairSample) -> None:
        super()._fit(sample)
        self._rehearsal = Rehearsal(sample, self.criterion, self.scale)
        self._accumulation = AccumulationPredictor(sample, criterion=self.criterion, scale=self.scale)
        self._copies = self._rehearsal.leader(_ONLY_COPIES)
        # Positions at which no copy was ever seen take no part in the curve: they have none later either.
        self._copied = (self._copies.by_position[0] < 1).any(axis=0)
        counts = np.bincount(sample.position, minlength=self._copied.size)
        self._copied_share = float(counts[self._copied].sum() / counts.sum())
        if self._copied.any():
            replicates = self._copies.replicates
            self._among_copied = self._of_copied(self._copies.share)
            self._distinct_growth = Growth.of(
                self._among_copied,
                None if replicates is None else self._of_copied(replicates),
                max(1, int(counts[self._copied].sum())),
            )
        _, lengths = np.unique(sample.request, return_counts=True)
        self._typical = round(float(lengths.mean()))

    def _fuse(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> Outcome:
        errors = super()._fuse(full_blocks, thresholds, variant).errors
        sample = np.full(self._rehearsal.requests, self._typical)
        measured = self._measured(sample, thresholds, variant)
        # Blocks of the sample as in the batch, so that c is fitted to the sample and used for the batch.
        own, hazard = self._distinct(sample), self._between(thresholds, int(sample.max()))
        shape = _fit_shape(hazard, own, measured, variant)
        reached = _kept(hazard, own, shape, variant)
        kept = _kept(
            self._between(thresholds, int(full_blocks.max())), self._distinct(full_blocks), shape, variant
        )
        kept = np.clip(kept * measured / reached, min(full_blocks[0], full_blocks.sum()), full_blocks.sum())
        kept = np.maximum.accumulate(kept)
        other, spread = self._accumulation.kept(full_blocks, thresholds, variant)
        if spread is not None:
            apart = np.abs(np.log(kept / other))
            spread = Spread(np.maximum(spread.calibration, apart), spread.batch, spread.freedom)
        return Outcome(kept, errors, spread)

    def _measured(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> FloatArray:
        """(T,) blocks that requests of the sample keep."""
        share = self._rehearsal.leader(thresholds, replicates=False).share
        kept = (share * full_blocks).sum(axis=1)
        if variant == "tree":
            kept = kept * self._rehearsal.tree(thresholds, full_blocks.size, replicates=False)[0]
        return kept

    def _distinct(self, full_blocks: IntArray) -> FloatArray:
        """(requests, positions) expected blocks of each request that are no copy of an earlier one."""
        shares = self._copies.by_position[0]
        steps, positions = shares.shape
        widest = int(full_blocks.max())
        place = np.minimum(np.arange(widest), positions - 1)
        rows = shares[: full_blocks.size, place]
        if full_blocks.size > steps:
            beyond = np.ones((full_blocks.size - steps, positions))
            if self._copied.any():
                ahead = np.arange(steps, full_blocks.size)
                share, weight = self._distinct_growth.ahead(self._among_copied, ahead)
                later = (weight[:, 0, None] * share[:, 0]).sum(axis=0)
                late = shares[int(0.7 * steps) :, self._copied].mean(axis=0)
                relative = late / late.mean() if late.mean() > 0 else np.ones_like(late)
                beyond[:, self._copied] = np.minimum(later[:, None] * relative, 1.0)
            rows = np.concatenate([rows, beyond[:, place]])
        return np.asarray(rows * (np.arange(widest) < full_blocks[:, None]))

    def _of_copied(self, share: FloatArray) -> FloatArray:
        """The same share, of blocks at those positions alone at which copies were seen."""
        return np.asarray(np.maximum(share - (1 - self._copied_share), 0.0) / self._copied_share)

    def _between(self, thresholds: FloatArray, positions: int) -> FloatArray:
        """(T, positions, positions) hazard of a match between blocks that are not byte-equal."""
        cells, shape = self._positions**2, (self._positions, self._positions)
        apart = ~self._exact
        pairs = np.bincount(self._cell[apart], minlength=cells).reshape(shape)
        row, column = self._stand_ins(positions)
        hazard = []
        for threshold in thresholds:
            above = apart & (self._score > threshold)
            share = np.bincount(self._cell[above], minlength=cells).reshape(shape) / np.maximum(pairs, 1)
            # A share of one, of a few pairs, is taken for half a pair less.
            share = np.minimum(share, 1 - 0.5 / np.maximum(pairs, 1))
            hazard.append(-np.log1p(-share)[row, column])
        return np.array(hazard)


def void(rate: FloatArray, shape: FloatArray) -> FloatArray:
    """Chance (1 + c·rate)^(−1/c) to stay, c = ``shape``, and exp(−rate) at c = 0; 0 where 1 + c·rate <= 0.

    Test: tests/ratedist/predictors/test_heterogeneous.py::test_void_is_a_mixture.
    """
    base = 1 + shape * rate
    with np.errstate(divide="ignore", invalid="ignore"):
        mixed = np.where(base > 0, np.maximum(base, 1e-300) ** (-1 / np.where(shape == 0, 1.0, shape)), 0.0)
    return np.asarray(np.where(np.abs(shape) < 1e-9, np.exp(-rate), mixed))


def _kept(hazard: FloatArray, arrivals: FloatArray, shape: FloatArray, variant: str) -> FloatArray:
    """(T,) expected kept blocks.

    Args:
        hazard: (T, P, P), row of the new block, column of the kept one.
        arrivals: (requests, P) distinct blocks of each request.
        shape: (T,) c.
        variant: ``"leader"`` or ``"tree"``.
    """
    column = shape[:, None]

    def merge(left: FloatArray, right: FloatArray) -> FloatArray:
        rate = np.einsum("tij,tj->ti", hazard, left, optimize=True)
        return np.asarray(left + right * void(rate, column))

    nodes = [np.broadcast_to(row, (shape.size, row.size)) for row in arrivals]
    if variant == "leader":
        total = nodes[0]
        for node in nodes[1:]:
            total = merge(total, node)
        return np.asarray(total.sum(axis=1))
    while len(nodes) > 1:
        merged = [merge(left, right) for left, right in zip(nodes[::2], nodes[1::2], strict=False)]
        nodes = merged + nodes[2 * len(merged) :]
    return np.asarray(nodes[0].sum(axis=1))


def _fit_shape(hazard: FloatArray, arrivals: FloatArray, kept: FloatArray, variant: str) -> FloatArray:
    """(T,) c with which the sample keeps ``kept``: more are kept the larger c is, so by halving."""
    low, high = np.full(kept.size, _LOWEST), np.full(kept.size, _HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        few = _kept(hazard, arrivals, middle, variant) < kept
        low, high = np.where(few, middle, low), np.where(few, high, middle)
    return np.asarray((low + high) / 2)
