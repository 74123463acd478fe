"""How far two measurements of the same traffic lie apart: the floor that no prediction gets below, and the
higher one that no prediction from a sample gets below without knowing more than the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ratedist.errors import InputError

__all__ = ["Exchange", "draw_exchange", "noise_floor", "sample_factor"]


@dataclass(frozen=True)
class Exchange:
    """Two drawings of m requests that have as few in common as there are requests for.

    Attributes:
        one, other: (m,) requests in the order in which they are fused. They agree but in the places where
            ``other`` has a request that ``one`` has not.
        share: of the places in which they differ; 1 where the two are disjoint.
    """

    one: tuple[int, ...]
    other: tuple[int, ...]
    share: float

    def deviation(self, one: float, other: float) -> float:
        """|one - other| / sqrt(2·share), for a statistic of each of the two drawings.

        What it estimates: let θ be a statistic of m requests drawn independently from a workload, here the
        logarithm of the compression, and σ² its variance. A prediction that knew the workload exactly would
        give E[θ], and would still miss a measurement by |θ - E[θ]|, whose root mean square is σ.

        Two disjoint drawings (share 1) are independent, so E[(θ₁ - θ₂)²] = 2σ²: the mean of the squared
        deviation is σ² without further assumptions. Where fewer than 2m requests are at hand the drawings
        share some. Write θ as the sum of its orthogonal parts (Efron and Stein 1981): a part that hangs on k
        requests with variance σ_k² adds 2σ_k² times the chance that one of its k places was exchanged,
        which is the share for k = 1 and more for k > 1. Divided by 2·share this is again σ² for what is
        additive over requests, and too much for interactions, at most 1/share times. The floor is then
        generous, never too strict.

        Test: tests/validate/suite/test_noise.py::test_floor_is_the_spread_of_a_known_process.
        """
        return abs(one - other) / math.sqrt(2 * self.share)


def draw_exchange(requests: Sequence[int], m: int, rng: np.random.Generator) -> Exchange:
    """Two drawings of ``m`` of the requests; each by itself is m of them in a random order.

    The places that are exchanged are random too, because a request counts for more in one place of a
    fusion than in another.

    Raises InputError where there are not more requests than ``m``.
    """
    exchanged = min(m, len(requests) - m)
    if m < 1 or exchanged < 1:
        raise InputError(
            "m", m, f"the noise of m requests needs more than m to draw from; there are {len(requests)}"
        )
    order = rng.permutation(np.asarray(requests))
    one = order[:m]
    other = one.copy()
    other[rng.permutation(m)[:exchanged]] = order[m : m + exchanged]
    return Exchange(tuple(one.tolist()), tuple(other.tolist()), exchanged / m)


def sample_factor(n: int, m: int, variance: float, order_variance: float) -> float:
    """How many times the noise of m requests an unbiased prediction from n others misses them by.

    The noise of a measurement has a part O of the order in which the requests come and a part S of which ones
    they are, so σ² = S + O. To first order every estimator from n requests that is right for any traffic has
    the same influence function and adds S·m/n to it (docs/theory.md, "Predictors from a sample, and their
    bands"):

        sqrt((S·(1 + m/n) + O) / (S + O)).

    Args:
        n, m: requests of the sample and of the batch, at least 1.
        variance: σ² of the logarithm of what m requests give; at 0 the result is 1.
        order_variance: O; counted as at most σ².

    Raises InputError where there are no requests or a variance is negative.

    Test: tests/validate/suite/test_noise.py::test_a_sample_adds_what_its_requests_leave_open.
    """
    for name, value, least in (("n", n, 1), ("m", m, 1), ("variance", variance, 0)):
        if not value >= least:
            raise InputError(name, value, f"must be at least {least}")
    if not order_variance >= 0:
        raise InputError("order_variance", order_variance, "must be at least 0")
    if variance == 0:
        return 1.0
    order = min(order_variance, variance) / variance
    return math.sqrt((1 - order) * (1 + m / n) + order)


def noise_floor(deviations: Sequence[float]) -> float:
    """Root mean square of deviations: the spread σ of one measurement, see ``Exchange.deviation``.

    Raises InputError where there is none.
    """
    if len(deviations) == 0:
        raise InputError("deviations", [], "give at least one")
    return math.sqrt(sum(deviation**2 for deviation in deviations) / len(deviations))
