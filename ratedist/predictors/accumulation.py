"""Accumulation: fuse the calibration requests in many orders, and continue the curve of new blocks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors.accumulation_curves import Accumulated, Rehearsal
from ratedist.predictors.base import Outcome, Predictor, Spread
from ratedist.predictors.growth import Growth
from ratedist.predictors.sample import PairSample

__all__ = ["AccumulationPredictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LATE = 0.7
_STEEPEST = -1.0
_NOTHING = 1e-12
_FEWEST_COUNTED = 0.5
"""Least share of the jackknife's variance that is believed: what pairs of requests do it counts twice."""


class AccumulationPredictor(Predictor):
    """What fusing the sample's own requests leaves, continued beyond them.

    Up to the n requests of the sample (of its largest domain) this is measurement: the mean number of blocks
    that stay when requests of the sample arrive in random order, by position. Beyond, the share of a
    request's blocks that stay follows A·(1 + m/s)^(−b), averaged over all curves by how well they fit
    (``Growth``). The tree keeps a share of what the leader variant keeps; its logarithm is continued in
    proportion to ln m, at its slope over the last two doublings of the sample. Squared errors of absorbed
    blocks are those of the sample, continued likewise.

    The band rests on a jackknife over requests (docs/theory.md, "Bands"): what a request changes about the
    prediction from n of them it changes, by n/m, about a batch of m. So the variance of ln(kept) is V from
    the sample, or the spread of the curves that fit where that is larger, and V·n/m from the batch, and in
    the batch that of the order in which requests come (``BatchChance``). V is the jackknife's, less what it
    counts more than once, as halves of the sample show. No band for a sample whose domains all have fewer
    than 4 requests; with fewer than 8 V is the jackknife's whole.
    """

    name: ClassVar[str] = "accumulation"

    def _fit(self, sample: PairSample) -> None:
        self._rehearsal = Rehearsal(sample, self.criterion, self.scale)
        self._leader: dict[bytes, tuple[Accumulated, Growth, FloatArray]] = {}

    def _fuse(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> Outcome:
        kept, spread = self.kept(full_blocks, thresholds, variant)
        curves, growth, _ = self._curves(thresholds)
        return Outcome(kept, self._absorbed_errors(curves, growth, full_blocks, thresholds, variant), spread)

    def kept(
        self, full_blocks: IntArray, thresholds: FloatArray, variant: str
    ) -> tuple[FloatArray, Spread | None]:
        """(T,) expected kept blocks of requests of one domain, and their spread; thresholds ascend."""
        curves, growth, whole = self._curves(thresholds)
        log_kept, form = self._log_kept(curves, growth, full_blocks)
        replicates = self._replicates(curves, growth, full_blocks)
        if variant == "tree":
            ratio, ratio_form = self._tree_ratio(thresholds, full_blocks.size)
            log_kept, form = log_kept + ratio[0], np.hypot(form, ratio_form)
            replicates = None if replicates is None else replicates + ratio[1:]
        most, first = full_blocks.sum(), full_blocks[0]
        # A single sample need not keep more at a higher threshold; what is expected of all of them does.
        kept = np.maximum.accumulate(np.clip(np.exp(log_kept), first, most))
        return kept, self._spread(curves, replicates, form, kept, full_blocks.size, whole)

    def _curves(self, thresholds: FloatArray) -> tuple[Accumulated, Growth, FloatArray]:
        """Curves, how to continue them, and (T,) the jackknife's variance of ln(kept) at their end."""
        key = thresholds.tobytes()
        if key not in self._leader:
            curves = self._rehearsal.leader(thresholds)
            growth = Growth.of(curves.share, curves.replicates, self._rehearsal.blocks)
            alike = self._replicates(curves, growth, np.ones(growth.length, np.int64))
            whole = np.zeros(thresholds.size) if alike is None else _jackknife(alike)
            self._leader[key] = (curves, growth, whole)
        return self._leader[key]

    def _arrivals(self, curves: Accumulated, full_blocks: IntArray) -> tuple[FloatArray, FloatArray]:
        """(T,) blocks that stay of the requests within the sample's length; (T, M) weights of the others.

        A request counts the positions that it has; those that no calibration request has count like the
        last one. Beyond the sample positions keep the proportions of its last steps.
        """
        shares = curves.by_position
        steps, positions = shares.shape[1:]
        late = shares[:, int(_LATE * steps) :].mean(axis=1)
        mean = late.mean(axis=1, keepdims=True)
        relative = np.divide(late, mean, out=np.ones_like(late), where=mean > 0)
        within = np.zeros(shares.shape[0])
        for step, blocks in enumerate(full_blocks[:steps]):
            place = np.minimum(np.arange(blocks), positions - 1)
            within += shares[:, step, place].sum(axis=1)
        beyond = [
            relative[:, np.minimum(np.arange(blocks), positions - 1)].sum(axis=1)
            for blocks in full_blocks[steps:]
        ]
        return within, np.stack(beyond, axis=1) if beyond else np.zeros((shares.shape[0], 0))

    def _log_kept(
        self, curves: Accumulated, growth: Growth, full_blocks: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """(T,) each: expected ln(kept) of the leader variant, and its spread over the curves that fit."""
        within, beyond = self._arrivals(curves, full_blocks)
        if not beyond.shape[1]:
            return np.log(within), np.zeros_like(within)
        ahead = np.arange(growth.length, full_blocks.size)
        share, weight = growth.ahead(curves.share, ahead)
        logs = np.log(within + (share * beyond).sum(axis=2))
        mean = (weight * logs).sum(axis=0)
        return mean, np.sqrt((weight * (logs - mean) ** 2).sum(axis=0))

    def _replicates(self, curves: Accumulated, growth: Growth, full_blocks: IntArray) -> FloatArray | None:
        """(J, T) ln(kept) of the leader variant with each group of requests left out; None without groups."""
        if curves.replicates is None:
            return None
        logs = []
        for replicate in curves.replicates:
            known = int((~np.isnan(replicate[0])).sum())
            kept = (replicate[:, : min(known, full_blocks.size)] * full_blocks[:known]).sum(axis=1)
            if full_blocks.size > known:
                share, weight = growth.ahead(replicate, np.arange(known, full_blocks.size))
                later = np.log(kept + (share * full_blocks[known:]).sum(axis=2))
                logs.append((weight * later).sum(axis=0))
            else:
                logs.append(np.log(kept))
        return np.array(logs)

    def _tree_ratio(self, thresholds: FloatArray, requests: int) -> tuple[FloatArray, FloatArray]:
        """ln of tree over leader, (J + 1, T), and half of what was added to it beyond the sample, (T,)."""
        seen = self._rehearsal.requests
        ratio = np.log(self._rehearsal.tree(thresholds, min(requests, seen)))
        if requests <= seen:
            return ratio, np.zeros(thresholds.size)
        earlier = np.log(self._rehearsal.tree(thresholds, max(1, seen // 4))[0])
        slope = np.minimum((ratio[0] - earlier) / np.log(seen / max(1, seen // 4)), 0.0)
        more = slope * np.log(requests / seen)
        return ratio + more, np.abs(more) / 2

    def _absorbed_errors(
        self,
        curves: Accumulated,
        growth: Growth,
        full_blocks: IntArray,
        thresholds: FloatArray,
        variant: str,
    ) -> FloatArray:
        """(2, T) mean squared error of absorbed blocks."""
        seen, requests = self._rehearsal.requests, full_blocks.size
        leader = self._rehearsal.absorbed(thresholds, min(requests, seen), "leader")
        total, count = leader.squared.sum(axis=2), leader.count.sum(axis=1)
        if requests > seen:
            share, weight = growth.ahead(curves.share, np.arange(seen, requests))
            absorbed = full_blocks[seen:] * (1 - (weight[:, :, None] * share).sum(axis=0))
            for step, error in enumerate(_later_errors(leader.squared, leader.count, requests)):
                total = total + absorbed[:, step] * error
                count = count + absorbed[:, step]
        errors = _mean(total, count)
        if variant == "leader":
            return errors
        return errors * np.exp(self._tree_errors(thresholds, requests))

    def _tree_errors(self, thresholds: FloatArray, requests: int) -> FloatArray:
        """(2, T) ln of the tree's final squared error over the leader's, continued beyond the sample."""
        seen = self._rehearsal.requests

        def log_ratio(size: int) -> FloatArray:
            means = []
            for variant in ("tree", "leader"):
                absorbed = self._rehearsal.absorbed(thresholds, size, variant)
                means.append(_mean(absorbed.squared.sum(axis=2), absorbed.count.sum(axis=1)))
            both = (means[0] > 0) & (means[1] > 0)
            return np.log(np.where(both, means[0], 1.0) / np.where(both, means[1], 1.0))

        last = log_ratio(min(requests, seen))
        quarter = max(1, seen // 4)
        if requests <= seen or quarter == seen:
            return last
        slope = np.maximum((last - log_ratio(quarter)) / np.log(seen / quarter), 0.0)
        return last + slope * np.log(requests / seen)

    def _spread(
        self,
        curves: Accumulated,
        replicates: FloatArray | None,
        form: FloatArray,
        kept: FloatArray,
        requests: int,
        whole: FloatArray,
    ) -> Spread | None:
        """Spread from the replicates, ``form`` and the variance ``whole`` of the replicates at m = n."""
        if replicates is None:
            return None
        variance, order = _jackknife(replicates), np.zeros_like(kept)
        if curves.chance is not None:
            order = curves.chance.order
            counted = np.divide(
                curves.chance.total - order, whole, out=np.ones_like(whole), where=whole > _NOTHING
            )
            variance = variance * np.clip(counted, _FEWEST_COUNTED, 1.0)
        # A sample in which nothing varied does not tell less than half a block.
        variance = np.maximum(variance, (0.5 / kept) ** 2)
        return Spread(
            calibration=np.sqrt(np.maximum(variance, form**2)),
            batch=np.sqrt(variance * self._rehearsal.requests / requests + order),
            freedom=len(replicates) - 1,
        )


def _jackknife(replicates: FloatArray) -> FloatArray:
    return np.asarray((len(replicates) - 1) * replicates.var(axis=0))


def _mean(total: FloatArray, count: FloatArray) -> FloatArray:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def _later_errors(squared: FloatArray, count: FloatArray, requests: int) -> list[FloatArray]:
    """(2, T) mean squared error of what is absorbed at each step beyond the sample.

    A power of the step that goes through the later half of the sample, at its slope from the earlier
    half: more representatives make the best match nearer, never farther.
    """
    steps = count.shape[1]
    half = max(1, steps // 2)
    late = _mean(squared[:, :, half:].sum(axis=2), count[:, half:].sum(axis=1))
    early = _mean(squared[:, :, :half].sum(axis=2), count[:, :half].sum(axis=1))
    both = (late > 0) & (early > 0)
    step = np.log(np.where(both, late, 1.0) / np.where(both, early, 1.0))
    slope = np.clip(step / np.log(3.0), _STEEPEST, 0.0)
    middle = (half + steps) / 2
    return [late * (place / middle) ** slope for place in range(steps, requests)]
