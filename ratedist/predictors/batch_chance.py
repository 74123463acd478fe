"""How far one batch of requests lies from the mean of such batches, read off disjoint parts of the sample.

A jackknife sees what each request changes by itself. Where fusion counts pairs (two requests share a
document, or do not) much of the variance belongs to pairs, which a jackknife counts twice, and some to the
order in which requests come, which it does not see at all. Two disjoint halves of the sample, each fused in
an order of its own, differ by all of it, counted once (docs/theory.md, "Bands").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST_REQUESTS", "BatchChance"]

FloatArray = NDArray[np.float64]

FEWEST_REQUESTS = 8
"""Requests of a domain from which on its quarters, of two requests, can fuse."""


@dataclass(frozen=True)
class BatchChance:
    """Variances of ln(kept) of one batch of as many requests as the sample has, at T thresholds.

    Attributes:
        total: (T,) by which requests come, and in which order.
        order: (T,) by the order alone.
    """

    total: FloatArray
    order: FloatArray

    @classmethod
    def of(cls, by_order: FloatArray, rotations: int) -> BatchChance:
        """Estimate both from orders of the whole sample.

        Args:
            by_order: (orders, T, n) blocks that stay at each step, n at least ``FEWEST_REQUESTS``; random
                permutations, each with its ``rotations`` in turn.
            rotations: of each permutation; at least 4.

        The first k requests of an order and of its rotation by k are disjoint, so half of the mean squared
        difference of their ln(kept) is the variance H_k of a batch of k, without bias. What single requests
        add to it falls as 1/k, what pairs add does not fall: H_k = a/k + b through k = n/4 and n/2 gives the
        variance at n, at least H/4 and at most 3H/2, H that at n/2. The order's is the variance over orders
        of the whole.

        Test: tests/ratedist/predictors/test_batch_chance.py::test_sees_single_requests_pairs_and_order.
        """
        orders, levels, size = by_order.shape
        logs = np.log(np.cumsum(by_order, axis=2)).reshape(orders // rotations, rotations, levels, size)

        def apart(k: int) -> FloatArray:
            begun = logs[..., k - 1]
            other = np.roll(begun, -round(rotations * k / size), axis=1)
            return np.asarray(((begun - other) ** 2).mean(axis=(0, 1)) / 2)

        quarter, half = size // 4, size // 2
        late, early = apart(half), apart(quarter)
        beyond = (1 / half - 1 / size) / (1 / quarter - 1 / half)
        total = np.clip(late + (late - early) * beyond, late / 4, late * 1.5)
        return cls(total, logs[..., -1].var(axis=(0, 1)))

    @classmethod
    def mean(cls, parts: Sequence[BatchChance], requests: Sequence[int]) -> BatchChance:
        """Of several domains, each weighted by its requests."""
        return cls(
            np.average([part.total for part in parts], axis=0, weights=requests),
            np.average([part.order for part in parts], axis=0, weights=requests),
        )
