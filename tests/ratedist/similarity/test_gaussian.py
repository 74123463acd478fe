"""Gaussian and truncated Gaussian against scipy's normal laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.similarity import Gaussian, TruncatedGaussian


def test_survival_below_one_is_the_papers() -> None:
    """``Gaussian.sf`` at every threshold below 1 is the plain normal tail, whatever lies beyond 1."""
    s = np.linspace(-1, 0.999, 50)
    np.testing.assert_allclose(Gaussian(0.9, 0.2).sf(s), scipy.stats.norm(0.9, 0.2).sf(s), rtol=1e-13)
    assert Gaussian(0.9, 0.2).atom == pytest.approx(scipy.stats.norm(0.9, 0.2).sf(1), rel=1e-13)
    assert Gaussian(0.5, 0.05).logsf(0.999) == pytest.approx(scipy.stats.norm(0.5, 0.05).logsf(0.999))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.08), (0.97, 0.3), (1.2, 0.1), (0.0, 1e-6)])
def test_moments_of_the_kept_variable(mean: float, std: float) -> None:
    """E and Var of min(X, 1) (``Gaussian.mean``, ``Gaussian.var``) against a sample, z-scored."""
    law = Gaussian(mean, std)
    sample = np.minimum(np.random.default_rng(1).normal(mean, std, 200_000), 1.0)
    assert abs(sample.mean() - law.mean()) < 4 * law.std() / math.sqrt(sample.size)
    spread = np.mean((sample - sample.mean()) ** 4) - sample.var() ** 2
    assert abs(sample.var() - law.var()) < 4 * math.sqrt(spread / sample.size)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.08), (0.97, 0.1), (1.5, 0.2), (-1.5, 0.2), (0.2, 4.0), (3.0, 0.4)]
)
def test_truncated_against_scipy(mean: float, std: float) -> None:
    law = TruncatedGaussian(mean, std)
    reference = scipy.stats.truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    s = np.linspace(-0.999, 0.999, 41)
    for method in ("pdf", "cdf", "logsf"):
        np.testing.assert_allclose(
            getattr(law, method)(s), getattr(reference, method)(s), rtol=1e-8, atol=1e-15
        )
    q = np.array([1e-6, 0.01, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(law.ppf(q), reference.ppf(q), rtol=1e-8, atol=1e-10)
    assert law.mean() == pytest.approx(reference.mean(), abs=1e-10)
    assert law.var() == pytest.approx(reference.var(), rel=1e-5)


def test_without_mass_at_the_edges_truncation_changes_nothing() -> None:
    s = np.linspace(0, 0.9, 30)
    np.testing.assert_allclose(TruncatedGaussian(0.4, 0.05).sf(s), Gaussian(0.4, 0.05).sf(s), rtol=1e-8)


@pytest.mark.parametrize("law", [Gaussian, TruncatedGaussian])
def test_parameters_outside_their_domain(law: type[Gaussian] | type[TruncatedGaussian]) -> None:
    with pytest.raises(InputError, match=r"mean = nan: must be a finite number"):
        law(math.nan, 0.1)
    for std in (0, -1, math.inf, math.nan):
        with pytest.raises(InputError, match=r"std = .*: must be a finite number above 0"):
            law(0.5, std)


def test_truncated_law_without_mass() -> None:
    with pytest.raises(InputError, match=r"mean = 50: leaves no mass in \[-1, 1\] at std = 0\.1"):
        TruncatedGaussian(50, 0.1)
