"""predictors.batch_chance: variances of processes whose variances are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ratedist.predictors.batch_chance import BatchChance
from ratedist.predictors.sample_fusion import cyclic_orders

N = 16
LARGE = 1e4
"""Kept blocks of a request that are always the same: far more than those that vary, so that ln is linear."""


def estimates(
    counts: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray], draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """(draws,) each: total and order variance of the sum over N of 1e4 + ``counts``, times (N·1e4)²."""
    rng = np.random.default_rng(3)
    totals, order_parts = [], []
    for _ in range(draws):
        own, pair = rng.normal(size=N), np.triu(rng.normal(size=(N, N)), 1)
        pair = pair + pair.T
        orders = cyclic_orders(N, 4, 64, rng)
        by_order = LARGE + np.array(
            [[counts(own[order], pair[np.ix_(order, order)], rng)] for order in orders]
        )
        chance = BatchChance.of(by_order, rotations=N)
        totals.append(chance.total[0])
        order_parts.append(chance.order[0])
    return np.array(totals) * (N * LARGE) ** 2, np.array(order_parts) * (N * LARGE) ** 2


def test_sees_single_requests_pairs_and_order() -> None:
    """Mean of 200 samples against the variance that is known; standard errors 3 %, limits 12 %.

    Requests that add a standard normal each: N. Pairs that add one each: N(N − 1)/2, of which a jackknife
    would make twice that. Steps that add one each whoever comes: N, all of it the order's.
    """
    singles, no_order = estimates(lambda own, pair, rng: own, 200)
    assert singles.mean() == pytest.approx(N, rel=0.12)
    assert no_order.max() < 1e-6 * N
    pairs, no_order = estimates(lambda own, pair, rng: np.tril(pair).sum(axis=1), 200)
    assert pairs.mean() == pytest.approx(N * (N - 1) / 2, rel=0.12)
    assert no_order.max() < 1e-6 * N**2
    steps, order = estimates(lambda own, pair, rng: rng.normal(size=N), 200)
    assert steps.mean() == pytest.approx(N, rel=0.12)
    assert order.mean() == pytest.approx(N, rel=0.12)


@pytest.mark.parametrize("requests", [8, 9, 11, 16, 30])
def test_the_halves_are_disjoint(requests: int) -> None:
    """One request alone adds 1: of two halves exactly one may hold it, so they differ by it or by nothing.

    With n odd the halves leave one request out. Overlapping halves would agree more often.
    """
    rng = np.random.default_rng(0)
    orders = cyclic_orders(requests, 4, 64, rng)
    by_order = LARGE + (orders == 3)[:, None, :].astype(float)
    rotations = min(requests, 64)
    chance = BatchChance.of(by_order, rotations)
    quarter, half = requests // 4, requests // 2
    # (1/k − 1/n)-interpolation of H_k = k/n · (1/(k·L))²: of 2k places of n either half holds it equally.
    early, late = (1 / (requests * k) / LARGE**2 for k in (quarter, half))
    slope = (1 / half - 1 / requests) / (1 / quarter - 1 / half)
    expected = np.clip(late + (late - early) * slope, late / 4, late * 1.5)
    assert chance.total == pytest.approx([expected], rel=0.01)


def test_domains_count_by_their_requests() -> None:
    one = BatchChance(np.array([1.0]), np.array([0.2]))
    other = BatchChance(np.array([4.0]), np.array([0.8]))
    both = BatchChance.mean([one, other], [20, 10])
    assert both.total == pytest.approx([2.0])
    assert both.order == pytest.approx([0.4])
