"""Spherical law: far tails, its Gaussian limit, and real directions."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.similarity import Gaussian, Spherical


def exact_log_survival(dim: float, s: float) -> float:
    with mpmath.workdps(40):
        value = mpmath.betainc((dim - 1) / mpmath.mpf(2), 0.5, 0, 1 - mpmath.mpf(s) ** 2, regularized=True)
        return float(mpmath.log(value / 2))


@pytest.mark.parametrize("dim", [1.01, 2, 3, 8, 64, 777.7, 3072, 1e5])
@pytest.mark.parametrize("s", [1e-9, 0.003, 0.05, 0.2, 0.5, 0.75, 0.95, 0.999])
def test_tail_against_mpmath(dim: float, s: float) -> None:
    """F̄(s) = ½·I_{1−s²}((dim−1)/2, ½) (``Spherical.sf`` and ``logsf``), also where it underflows."""
    law = Spherical(dim)
    exact = exact_log_survival(dim, s)
    assert law.logsf(s) == pytest.approx(exact, rel=3e-13, abs=3e-13)
    assert law.sf(s) == pytest.approx(math.exp(exact), rel=1e-12 * (1 - exact))
    assert law.sf(-s) == pytest.approx(1 - math.exp(exact), rel=1e-14)


def test_quantiles_next_to_the_median() -> None:
    """s = (½ − q)/f(0) to first order, down to the last digits of ½ − q."""
    for dim in (3, 64, 3072):
        law = Spherical(dim)
        assert law.isf(0.5 - 1e-9) == pytest.approx(1e-9 / law.pdf(0), rel=1e-6)
        assert law.isf(0.5) == 0


def test_density_at_dimension_three_is_uniform() -> None:
    """Archimedes: the height of a uniform point on the ordinary sphere is uniform."""
    np.testing.assert_allclose(Spherical(3).pdf([-1, -0.4, 0.9, 1]), 0.5, rtol=1e-14)
    np.testing.assert_allclose(Spherical(3).sf([-0.5, 0, 0.5]), [0.75, 0.5, 0.25], rtol=1e-14)


def test_limit_of_large_dimension_is_gaussian() -> None:
    """√dim·S → N(0, 1): the largest difference of distributions falls as 1/dim."""
    z = np.linspace(-4, 4, 81)
    gaps = []
    for dim in (50, 500, 5000, 500000):
        std = 1 / math.sqrt(dim)
        gaps.append(np.abs(Spherical(dim).cdf(z * std) - Gaussian(0, std).cdf(z * std)).max() * dim)
    assert gaps[0] < 0.5
    np.testing.assert_allclose(gaps, gaps[-1], rtol=0.05)


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_directions_follow_the_law(dim: int) -> None:
    rng = np.random.default_rng(dim)
    x, y = rng.standard_normal((2, 5000, dim))
    cosine = np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert scipy.stats.kstest(cosine, Spherical(dim).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dim", [1, 0.5, -3, math.inf, math.nan, "wide", None])
def test_dimension_outside_its_domain(dim: object) -> None:
    with pytest.raises(
        InputError, match=r"dim = .*(must be above 1|must be a finite number|must be a number)"
    ):
        Spherical(dim)  # type: ignore[arg-type]


def test_tail_is_generalised_pareto_with_its_end_at_one() -> None:
    """Near 1, F̄(u + y)/F̄(u) → (1 − y/(1 − u))^((dim−1)/2): shape −2/(dim − 1)."""
    law, u = Spherical(12), 0.99
    y = np.linspace(0, 0.0095, 20)
    ratio = law.sf(u + y) / law.sf(u)
    np.testing.assert_allclose(ratio, (1 - y / (1 - u)) ** 5.5, rtol=0.03)


def test_grids_beyond_one_piece() -> None:
    """``sf`` of a large grid, which is done in pieces, is that of its rows."""
    law = Spherical(20)
    grid = np.linspace(-0.9, 0.9, 30_000).reshape(100, 300)
    np.testing.assert_array_equal(law.sf(grid), np.stack([law.sf(row) for row in grid]))
    assert law.sf(np.empty((0, 3))).shape == (0, 3)
