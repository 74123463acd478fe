"""Laws of the number of exceedances per block, against scipy and against what they are made for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances, counts_by_law
from ratedist.exceedances.laws import LAWS


def exceedances(probability: np.ndarray, requests: int, seed: int) -> Exceedances:
    """Independent exceedances with the given probability (blocks, blocks) per pair of positions."""
    rng = np.random.default_rng(seed)
    size = len(probability)
    hits = rng.random((requests, size, requests, size)) < probability[:, None, :]
    return Exceedances.from_scores(hits)


def test_expected_counts_are_those_of_scipy_and_sum_to_blocks() -> None:
    """Bin by bin the probabilities of scipy's laws, summed over blocks; the last bin is open."""
    seen = exceedances(np.array([[0.3, 0.02], [0.02, 0.05]]), requests=30, seed=1)
    found = counts_by_law(seen, gaussian_rate=0.07)
    assert [law.name for law in found.laws] == list(LAWS)
    assert found.observed.sum() == seen.block_count
    assert found.low[0] == found.high[0] == 0
    assert (found.low[1:] == found.high[:-1] + 1).all()
    counts = seen.per_block
    assert found.observed[1] == np.sum(counts == 1)
    assert found.observed[3] == np.sum((counts >= 3) & (counts <= 4))
    means = {
        "gaussian": np.full(60, 0.07 * 58),
        "poisson": seen.expected_per_block("homogeneous"),
        "position-marked": seen.expected_per_block("positions"),
    }
    for law in found.laws:
        np.testing.assert_allclose(law.expected.sum(), seen.block_count)
        if law.name in means:
            cumulative = scipy.stats.poisson.cdf(found.high[:-1, None], means[law.name]).sum(1)
            np.testing.assert_allclose(np.cumsum(law.expected)[:-1], cumulative, atol=1e-9)
            assert law.mean == pytest.approx(means[law.name].mean())
            assert law.spread == 0
        assert law.distance == pytest.approx(0.5 * np.abs(law.expected - found.observed).sum() / 60)


def test_rates_that_differ_within_a_position_are_a_negative_binomial() -> None:
    """Blocks whose own rate is gamma-distributed: the fitted spread is theirs, and only that law fits."""
    rng = np.random.default_rng(3)
    requests, rate, size = 400, 0.02, 0.8
    # Even requests meet odd ones, and the rate of a pair is that of the even one.
    own = rate * rng.gamma(size, 1 / size, requests)
    hits = rng.random((requests, requests)) < np.where(np.arange(requests)[None] % 2, own[:, None], 0.0)
    hits[1::2] = False
    first, second = np.nonzero(hits)
    zeros = np.zeros(len(first), np.int64)
    seen = Exceedances.from_pairs(first, zeros, second, zeros, blocks=np.ones(requests, np.int64))
    found = {law.name: law for law in counts_by_law(seen, 0.5).laws}
    assert 0.15 < found["heterogeneous"].spread < 1.5
    assert found["heterogeneous"].distance < 0.6 * found["position-marked"].distance
    assert found["gaussian"].distance > 0.9
    mean, k = found["heterogeneous"].mean, 1 / found["heterogeneous"].spread
    none = scipy.stats.nbinom.pmf(0, k, k / (k + mean)) * requests
    assert found["heterogeneous"].expected[0] == pytest.approx(none, rel=1e-6)


def test_positions_explain_what_one_rate_cannot() -> None:
    probability = np.diag([0.5, 0.01, 0.0])
    found = {law.name: law for law in counts_by_law(exceedances(probability, 40, 5), 0.1).laws}
    assert found["position-marked"].distance < 0.5 * found["poisson"].distance
    assert found["position-marked"].mean == pytest.approx(found["poisson"].mean)


def test_nothing_exceeds() -> None:
    found = counts_by_law(exceedances(np.zeros((2, 2)), 5, 0), 0.0)
    assert found.observed.tolist() == [10, 0, 0, 0, 0]
    assert [law.distance for law in found.laws] == [0.0] * 4


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_refuses_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(InputError, match=r"gaussian_rate = .*: must lie in \[0, 1\]"):
        counts_by_law(exceedances(np.zeros((1, 1)), 3, 0), rate)
