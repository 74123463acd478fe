"""The generalised Pareto functions and their fit, against scipy and against repeated samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.similarity.generalised_pareto import (
    _covariance,
    excess_isf,
    excess_pdf,
    excess_sf,
    fit_generalised_pareto,
)

SHAPES = [-0.9, -0.3, -1e-9, 0.0, 1e-9, 0.2, 1.5]


@pytest.mark.parametrize("shape", SHAPES)
def test_functions_against_scipy(shape: float) -> None:
    """``excess_sf``, ``excess_pdf`` and ``excess_isf``."""
    scale = 0.07
    reference = scipy.stats.genpareto(0.0 if abs(shape) < 1e-6 else shape, scale=scale)
    y = np.array([-0.1, 0.0, 0.001, 0.03, 0.07, 0.2, 0.9])
    np.testing.assert_allclose(excess_sf(y, shape, scale), reference.sf(y), rtol=1e-7, atol=1e-300)
    np.testing.assert_allclose(excess_pdf(y, shape, scale), reference.pdf(y), rtol=1e-7, atol=1e-300)
    q = np.array([1.0, 0.5, 1e-3, 1e-8])
    np.testing.assert_allclose(excess_isf(q, shape, scale), reference.isf(q), rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("shape", [-0.7, -0.3, -0.05, 0.0, 0.1, 0.6])
def test_fit_against_scipy(shape: float) -> None:
    """``fit_generalised_pareto`` finds a likelihood at least as high as scipy's search does."""
    y = scipy.stats.genpareto(shape, scale=0.05).rvs(400, random_state=3)
    fitted = fit_generalised_pareto(y)
    reference = scipy.stats.genpareto.fit(y, floc=0, f0=None)
    best = scipy.stats.genpareto.logpdf(y, reference[0], 0, reference[2]).sum()
    mine = scipy.stats.genpareto.logpdf(y, fitted.shape, 0, fitted.scale).sum()
    assert fitted.log_likelihood == pytest.approx(mine, abs=1e-6)
    assert mine >= best - 1e-4
    assert abs(fitted.shape - shape) < 0.25


@pytest.mark.parametrize("shape", [-0.3, 2e-4, 0.25])
def test_observed_information_is_the_curvature(shape: float) -> None:
    """Standard errors of ``GeneralisedParetoFit`` against second differences of the log-likelihood."""
    y = scipy.stats.genpareto(shape, scale=1.0).rvs(2000, random_state=5)
    fitted = fit_generalised_pareto(y)

    def likelihood(x: float, z: float) -> float:
        return float(scipy.stats.genpareto.logpdf(y, fitted.shape + x, 0, fitted.scale + z).sum())

    h = 1e-4
    here = likelihood(0, 0)
    xx = (likelihood(h, 0) - 2 * here + likelihood(-h, 0)) / h**2
    zz = (likelihood(0, h) - 2 * here + likelihood(0, -h)) / h**2
    xz = (likelihood(h, h) - likelihood(h, -h) - likelihood(-h, h) + likelihood(-h, -h)) / (4 * h * h)
    covariance = np.linalg.inv(-np.array([[xx, xz], [xz, zz]]))
    np.testing.assert_allclose(fitted.covariance, covariance, rtol=1e-3)
    assert fitted.shape_error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-3)
    assert fitted.scale_error == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-3)


def test_expansion_of_the_information_joins_its_closed_form() -> None:
    y = scipy.stats.genpareto(0.0).rvs(3000, random_state=2)
    below, above = _covariance(y, 0.999e-3, 1.0), _covariance(y, 1.001e-3, 1.0)
    np.testing.assert_allclose(below, above, rtol=3e-4)


def test_standard_errors_are_honest() -> None:
    """(estimate − truth)/error has mean near 0 and variance near 1 over repeated samples."""
    rng = np.random.default_rng(17)
    scores = []
    for _ in range(150):
        fitted = fit_generalised_pareto(excess_isf(rng.random(800), -0.2, 0.05))
        scores.append([(fitted.shape + 0.2) / fitted.shape_error, (fitted.scale - 0.05) / fitted.scale_error])
    z = np.array(scores)
    # The maximum-likelihood bias is about 0.15 standard errors here; 0.08 is the error of a mean of 150.
    assert np.all(np.abs(z.mean(axis=0)) < 0.15 + 4 / math.sqrt(150))
    assert np.all(np.abs(z.var(axis=0) - 1) < 4 * math.sqrt(2 / 150))


def test_profile_interval_covers() -> None:
    """``GeneralisedParetoFit.shape_interval`` at 90 % on 60 excesses: 200 samples, 4 binomial errors."""
    rng = np.random.default_rng(23)
    inside = 0
    for _ in range(200):
        low, high = fit_generalised_pareto(excess_isf(rng.random(60), -0.1, 1.0)).shape_interval(0.9)
        assert low < high
        inside += low <= -0.1 <= high
    assert abs(inside / 200 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 200)


def test_interval_ends_lie_on_the_profile() -> None:
    y = scipy.stats.genpareto(0.1).rvs(300, random_state=1)
    fitted = fit_generalised_pareto(y)
    for shape in fitted.shape_interval(0.95):
        best = scipy.optimize.minimize_scalar(
            lambda z, shape=shape: -scipy.stats.genpareto.logpdf(y, shape, 0, math.exp(z)).sum(),
            bounds=(-0.5, 0.5),
            method="bounded",
        )
        assert fitted.log_likelihood + best.fun == pytest.approx(3.841459 / 2, abs=2e-3)


def test_density_that_grows_to_its_end_stops_at_shape_minus_one() -> None:
    """Likelihood unbounded below −1: the fit stays there, and claims no standard error."""
    y = np.random.default_rng(0).random(200) ** 0.2
    fitted = fit_generalised_pareto(y)
    assert -1 <= fitted.shape < -0.5
    assert np.isnan(fitted.covariance).all()
    assert fitted.end >= y.max()


def test_bad_excesses() -> None:
    good = np.linspace(0.01, 1, 30)
    with pytest.raises(InputError, match=r"excesses = '24 values': too few: at least 25 are needed"):
        fit_generalised_pareto(good[:24])
    with pytest.raises(InputError, match=r"excesses = nan: must be finite"):
        fit_generalised_pareto(np.append(good, np.nan))
    with pytest.raises(InputError, match=r"excesses = 0\.0: must be above 0"):
        fit_generalised_pareto(np.append(good, 0.0))
    with pytest.raises(InputError, match=r"excesses = 0\.2: are constant"):
        fit_generalised_pareto(np.full(30, 0.2))
    with pytest.raises(InputError, match=r"level = 1\.0: must be a share in \(0, 1\)"):
        fit_generalised_pareto(good).shape_interval(1.0)
