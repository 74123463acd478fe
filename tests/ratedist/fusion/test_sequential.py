"""ratedist/fusion/sequential.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import HardCore, matern_share, sequential_share
from ratedist.montecarlo.chains import simulate_leader
from ratedist.montecarlo.directions import simulate_directions
from ratedist.montecarlo.graph import simulate_matern
from ratedist.similarity import Spherical


def test_share_against_simulated_arrivals() -> None:
    """The closed form is the limit of many blocks: the count differs by a number of order 1."""
    law, count, chance = Spherical(20), 3000, 0.002
    sample = simulate_leader(
        law, [1] * count, law.isf(chance), runs=300, rng=np.random.default_rng(0), scores=False
    )
    kept = sample.mean_kept()
    predicted = count * float(sequential_share(count * chance))
    assert abs(kept.mean - predicted) < 4 * kept.standard_error + 1


def test_share_against_directions() -> None:
    """With the transitivity of the sphere, against real vectors that arrive one by one."""
    dim, count, tau = 5, 400, 0.85
    law = Spherical(dim)
    kept = simulate_directions(
        dim, [1] * count, tau, variant="leader", runs=60, rng=np.random.default_rng(0)
    ).mean_kept()
    rate = count * float(law.sf(tau))
    core = HardCore.spherical(dim, [tau])
    repelling = count * float(sequential_share(rate, transitivity=core.transitivity[0]))
    plain = count * float(sequential_share(rate))
    assert repelling == pytest.approx(kept.mean, rel=0.04)
    assert abs(repelling - kept.mean) < 0.5 * abs(plain - kept.mean)


def test_matern_against_simulated_arrivals() -> None:
    count, chance = 2000, 0.001
    kept = simulate_matern(chance, count, runs=400, rng=np.random.default_rng(0)).mean_kept()
    assert abs(kept.z_score(count * float(matern_share(count * chance)))) < 4


@given(st.floats(0.0, 1e6), st.floats(0.0, 1.0))
def test_order(rate: float, closeness: float) -> None:
    """Fusion keeps at least as many as Matérn's process, and fewer where exceedances are transitive."""
    share = float(sequential_share(rate, transitivity=closeness))
    assert float(matern_share(rate)) * (1 - 1e-9) <= share
    assert share <= float(sequential_share(rate)) * (1 + 1e-9) <= 1 + 1e-8


def test_limits() -> None:
    assert sequential_share(0.0) == matern_share(0.0) == 1.0
    assert sequential_share(1e-9) == pytest.approx(1 - 0.5e-9, abs=1e-15)
    rate = np.geomspace(0.01, 100, 9)
    np.testing.assert_allclose(sequential_share(rate, transitivity=1.0), matern_share(rate))
    np.testing.assert_allclose(sequential_share(rate), np.log1p(rate) / rate)
    near = sequential_share(rate, transitivity=1 - 1e-7)
    np.testing.assert_allclose(near, matern_share(rate), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequential_share(-1.0), r"rate = -1.0: .*at least 0"),
        (lambda: sequential_share(float("nan")), r"rate = nan"),
        (lambda: sequential_share(1.0, transitivity=1.1), r"transitivity = 1.1"),
        (lambda: matern_share(-0.5), r"rate = -0.5"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
