"""ratedist/fusion/components.py against enumeration and simulated graphs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse

from ratedist.errors import InputError
from ratedist.fusion import batch_units, components
from ratedist.fusion.components import _exact, _limits
from ratedist.montecarlo.graph import simulate_components
from ratedist.similarity import Spherical


def enumerated(n: int, chance: float) -> tuple[float, float]:
    """Mean and variance of the components over all graphs on n vertices."""
    pairs = list(itertools.combinations(range(n), 2))
    first = second = 0.0
    for present in itertools.product([False, True], repeat=len(pairs)):
        edges = [pair for pair, here in zip(pairs, present, strict=True) if here]
        row, column = zip(*edges, strict=True) if edges else ((), ())
        graph = scipy.sparse.coo_matrix((np.ones(len(edges)), (row, column)), shape=(n, n))
        count = scipy.sparse.csgraph.connected_components(graph, directed=False)[0]
        weight = chance ** len(edges) * (1 - chance) ** (len(pairs) - len(edges))
        first, second = first + weight * count, second + weight * count**2
    return first, second - first**2


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.8])
def test_exact_sums_against_enumeration(chance: float) -> None:
    mean, variance = _exact(5, np.array([chance]))
    expected = enumerated(5, chance)
    assert mean[0] == pytest.approx(expected[0], rel=1e-10)
    assert variance[0] == pytest.approx(expected[1], rel=1e-8)


@pytest.mark.parametrize("degree", [0.3, 0.9, 1.2, 2.0, 5.0])
def test_limits_meet_the_exact_sums(degree: float) -> None:
    chance = np.array([degree / 255])
    exact, exact_variance = _exact(256, chance)
    limit, variance = _limits(256, chance)
    # Near one exceedance per block the number of order 1 still grows a little with n.
    assert limit[0] == pytest.approx(exact[0], abs=0.25)
    assert variance[0] == pytest.approx(exact_variance[0], rel=0.1)


@pytest.mark.parametrize(
    ("units", "degree"), [([30] * 20, 0.8), ([30] * 20, 1.6), ([200, 10, 40, 90, 5], 3.0), ([2] * 30, 1.0)]
)
def test_agrees_with_simulated_graphs(units: list[int], degree: float) -> None:
    law = Spherical(20)
    tau = float(law.isf(degree / sum(units)))
    sample = simulate_components(law, units, tau, runs=800, rng=np.random.default_rng(7))
    result = components(law, units, [tau])
    assert abs(sample.mean_kept().z_score(result.kept[0])) < 4
    assert result.kept_std[0] == pytest.approx(sample.std_kept(), rel=0.15)


def test_giant_component() -> None:
    law, units = Spherical(16), batch_units(1000, 10)
    degree = np.array([0.5, 1.5, 3.0])
    result = components(law, units, law.isf(degree[::-1] / 10_000))
    share = result.giant_share[::-1]
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 1 - np.exp(-degree[1:] * share[1:]), rtol=2e-3)


def test_limits() -> None:
    law = Spherical(8)
    ends = components(law, batch_units(40, 20), [-1.0, 1.0])
    np.testing.assert_allclose(ends.kept, [1, 800])
    assert components(law, [9], [0.3]).kept[0] == pytest.approx(9)
    tau = np.linspace(-0.9, 0.99, 60)
    for units in (batch_units(6, 5), batch_units(60, 20)):
        assert (np.diff(components(law, units, tau).kept) >= -0.1).all()


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"units = 0"):
        components(Spherical(8), [2, 0], [0.5])
    with pytest.raises(InputError, match=r"thresholds = 0.5: is given twice"):
        components(Spherical(8), [2, 2], [0.5, 0.5])
