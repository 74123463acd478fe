"""validate.noise against processes whose spread is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.validate.suite.noise import Exchange, draw_exchange, noise_floor, sample_factor


@pytest.mark.parametrize(("pool", "share"), [(40, 1.0), (24, 0.5), (18, 0.125)])
def test_floor_is_the_spread_of_a_known_process(pool: int, share: float) -> None:
    """θ = Σ w_i x of the request at place i, plus an interaction of all pairs where drawings are disjoint.

    4,000 pools of independent requests; the mean squared deviation against the exact variance, within 4
    standard errors. The formula is ``ratedist.validate.suite.noise.Exchange.deviation``.
    """
    m, rng = 16, np.random.default_rng(5)
    weight = np.linspace(1.0, 3.0, m)  # a place counts for more than another
    interaction = 0.3 if share == 1 else 0.0

    def theta(x: np.ndarray) -> float:
        pairs = (x.sum() ** 2 - (x**2).sum()) / 2
        return float(weight @ x + interaction * pairs)

    # Independent x of variance 1: Var = Σ w² + c² · m(m - 1)/2, the two parts uncorrelated.
    variance = float((weight**2).sum() + interaction**2 * m * (m - 1) / 2)
    squared = []
    for _ in range(4000):
        x = rng.standard_normal(pool)
        exchange = draw_exchange(range(pool), m, rng)
        assert exchange.share == share
        one, other = (theta(x[list(drawn)]) for drawn in (exchange.one, exchange.other))
        squared.append(exchange.deviation(one, other) ** 2)
    error = np.std(squared) / math.sqrt(len(squared))
    assert abs(np.mean(squared) - variance) / error < 4
    assert noise_floor([math.sqrt(s) for s in squared]) == pytest.approx(math.sqrt(np.mean(squared)))


def test_interactions_make_the_floor_generous_where_drawings_overlap() -> None:
    """A pure interaction: at share s the mean is between σ² and σ²/s, here (1 - (1 - s)²)/s = 2 - s times."""
    m, pool, rng = 16, 20, np.random.default_rng(6)
    squared = []
    for _ in range(6000):
        x = rng.standard_normal(pool)
        exchange = draw_exchange(range(pool), m, rng)
        one, other = (
            float((x[list(drawn)].sum() ** 2 - (x[list(drawn)] ** 2).sum()) / 2)
            for drawn in (exchange.one, exchange.other)
        )
        squared.append(exchange.deviation(one, other) ** 2)
    kept = (12 * 11) / (16 * 15)  # chance that neither place of a pair was exchanged
    expected = m * (m - 1) / 2 * (1 - kept) / exchange.share
    assert abs(np.mean(squared) - expected) / (np.std(squared) / math.sqrt(len(squared))) < 4


def test_drawings_have_as_few_in_common_as_there_are_requests_for() -> None:
    rng = np.random.default_rng(1)
    for pool, common in ((64, 0), (32, 0), (24, 8), (17, 15)):
        exchange = draw_exchange(range(100, 100 + pool), 16, rng)
        assert len(set(exchange.one)) == len(set(exchange.other)) == 16
        assert len(set(exchange.one) & set(exchange.other)) == common
        same = sum(a == b for a, b in zip(exchange.one, exchange.other, strict=True))
        assert same == common
        assert set(exchange.one) | set(exchange.other) <= set(range(100, 100 + pool))
    places = {
        tuple(np.nonzero(np.array(e.one) != np.array(e.other))[0])
        for e in (draw_exchange(range(17), 16, rng) for _ in range(40))
    }
    assert len(places) > 10


@pytest.mark.parametrize("m", [8, 32])
def test_a_sample_adds_what_its_requests_leave_open(m: int) -> None:
    """Additive requests and an order of its own in every measurement: the mean of n against one batch of m.

    20,000 trials within 4 standard errors; the formula is ``ratedist.validate.suite.noise.sample_factor``.
    """
    n, order, rng = 8, 0.7, np.random.default_rng(8)
    by_request = 1 / m  # the variance of a mean of m
    batch = rng.standard_normal(20000) * math.sqrt(by_request) + rng.standard_normal(20000) * math.sqrt(order)
    sample = rng.standard_normal((20000, n)).mean(axis=1)  # over all orders, so without one
    squared = (batch - sample) ** 2
    expected = sample_factor(n, m, by_request + order, order) ** 2 * (by_request + order)
    assert abs(squared.mean() - expected) / (squared.std() / math.sqrt(20000)) < 4


def test_a_sample_factor_lies_between_order_alone_and_requests_alone() -> None:
    assert sample_factor(16, 16, 2.0, 0.0) == pytest.approx(math.sqrt(2))
    assert sample_factor(16, 64, 2.0, 0.0) == pytest.approx(math.sqrt(5))
    assert sample_factor(16, 64, 2.0, 5.0) == sample_factor(16, 64, 0.0, 0.0) == 1.0
    assert 1 < sample_factor(16, 64, 2.0, 1.0) < math.sqrt(5)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"m = 16: .*needs more than m to draw from; there are 16"):
        draw_exchange(range(16), 16, np.random.default_rng(0))
    with pytest.raises(InputError, match="m = 0"):
        draw_exchange(range(16), 0, np.random.default_rng(0))
    with pytest.raises(InputError, match="deviations"):
        noise_floor([])
    assert Exchange((0,), (1,), 0.5).deviation(1.0, 3.0) == 2.0
    with pytest.raises(InputError, match="n = 0: must be at least 1"):
        sample_factor(0, 16, 1.0, 0.0)
    with pytest.raises(InputError, match=r"order_variance = -1\.0: must be at least 0"):
        sample_factor(16, 16, 1.0, -1.0)
