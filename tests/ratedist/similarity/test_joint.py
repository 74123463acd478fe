"""Joint law of the scores of keys and values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from ratedist.errors import InputError
from ratedist.similarity import Gaussian, Joint, Spherical, TruncatedGaussian, law_from_dict
from ratedist.similarity.joint import Minimum, bivariate_normal_sf

JOINT = Joint(TruncatedGaussian(0.6, 0.08), TruncatedGaussian(0.2, 0.1), 0.6, 0.05)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 0.99, 0.9999, -0.4, -0.9])
@pytest.mark.parametrize(
    ("x", "y"), [(0.0, 0.0), (1.0, 2.0), (3.0, 3.0), (6.0, 5.0), (-2.0, 1.0), (-3.0, -4.0)]
)
def test_bivariate_normal_against_quadrature(correlation: float, x: float, y: float) -> None:
    """``bivariate_normal_sf`` keeps relative accuracy in the tails, for either sign of the correlation."""
    spread = math.sqrt(1 - correlation**2)

    def integrand(t: float) -> float:
        return scipy.stats.norm.pdf(t) * scipy.stats.norm.sf((y - correlation * t) / spread)

    cuts = sorted({x, x + 1, x + 4, x + 14, *([y / correlation] if correlation else [])})
    cuts = [cut for cut in cuts if x <= cut <= x + 14]
    reference = sum(
        scipy.integrate.quad(integrand, low, high, epsabs=0, epsrel=1e-10, limit=200)[0]
        for low, high in itertools.pairwise(cuts)
    )
    assert bivariate_normal_sf(x, y, correlation) == pytest.approx(reference, rel=1e-7, abs=1e-250)


def test_bivariate_normal_at_infinity() -> None:
    assert bivariate_normal_sf(-np.inf, 1.0, 0.5) == pytest.approx(scipy.stats.norm.sf(1.0))
    assert bivariate_normal_sf(np.inf, 1.0, 0.5) == 0
    assert bivariate_normal_sf(-np.inf, -np.inf, -0.5) == 1


def test_survival_against_scipy() -> None:
    """``Joint.sf`` with Gaussian marginals is the bivariate normal orthant."""
    joint = Joint(Gaussian(0.5, 0.1), Gaussian(0.2, 0.05), 0.7)
    reference = scipy.stats.multivariate_normal([-0.5, -0.2], [[0.01, 0.0035], [0.0035, 0.0025]])
    for keys, values in ((0.5, 0.2), (0.7, 0.3), (0.4, 0.28)):
        assert joint.sf(keys, values) == pytest.approx(reference.cdf([-keys, -values]), rel=1e-5)


def test_survival_against_simulation() -> None:
    keys, values = JOINT.rvs(100_000, np.random.default_rng(0))
    for a, b in ((0.6, 0.2), (0.7, 0.3), (0.5, 0.4), (0.99, 0.99)):
        truth = float(JOINT.sf(a, b))
        error = math.sqrt(truth * (1 - truth) / 100_000)
        assert abs(np.mean((keys > a) & (values > b)) - truth) < 4 * error
    assert JOINT.sf(1.0, 0.2) == 0


def test_marginals() -> None:
    """Far below in one score, the joint survival is the other's."""
    s = np.linspace(0.1, 0.95, 12)
    np.testing.assert_allclose(JOINT.sf(s, -1.0), JOINT.marginal_keys().sf(s), atol=1e-12)
    np.testing.assert_allclose(JOINT.sf(-1.0, s), JOINT.marginal_values().sf(s), atol=1e-12)
    plain = Joint(Gaussian(0.5, 0.1), Gaussian(0.2, 0.05), 0.7)
    assert plain.marginal_keys() is plain.keys


@pytest.mark.parametrize("given", [0.5, 0.62, 0.75])
def test_conditional_expectation_against_simulation(given: float) -> None:
    """``Joint.expect_values`` and ``values_sf``: a thin slice of S_K, with z-scores."""
    keys, values = JOINT.rvs(400_000, np.random.default_rng(1))
    slice_ = values[np.abs(keys - given) < 0.002]
    error = slice_.std() / math.sqrt(slice_.size)
    assert abs(slice_.mean() - JOINT.expect_values(lambda s: s, given)) < 4 * error
    truth = float(JOINT.values_sf(0.25, given))
    assert abs(np.mean(slice_ > 0.25) - truth) < 4 * math.sqrt(truth * (1 - truth) / slice_.size)


def test_conditional_expectation_of_gaussians() -> None:
    """For normal marginals it is the regression line: mean + ρ·(σ_V/σ_K)·(s − μ_K)."""
    joint = Joint(Gaussian(0.4, 0.05), Gaussian(0.1, 0.1), -0.5)
    given = np.array([[0.3, 0.4], [0.45, 0.5]])
    expected = 0.1 - 0.5 * 2 * (given - 0.4)
    np.testing.assert_allclose(joint.expect_values(lambda s: s, given), expected, atol=1e-12)
    square = joint.expect_values(lambda s: s * s, given) - expected**2
    np.testing.assert_allclose(square, 0.75 * 0.01, rtol=1e-7)


def test_duplicates_are_given_at_one() -> None:
    assert JOINT.expect_values(lambda s: 2 - 2 * s, 1.0) == 0
    assert JOINT.values_sf(0.999, 1.0) == 1
    assert JOINT.values_sf(1.0, 1.0) == 0
    without = Joint(JOINT.keys, JOINT.values, 0.6)
    assert 0.3 < without.expect_values(lambda s: s, 1.0) < 1


def test_minimum_of_independent_scores() -> None:
    law = Joint(Spherical(20), Gaussian(0.1, 0.2), 0.0).minimum()
    s = np.linspace(-0.8, 0.9, 15)
    np.testing.assert_allclose(law.sf(s), Spherical(20).sf(s) * Gaussian(0.1, 0.2).sf(s), rtol=1e-10)


def test_fit_recovers_the_correlation() -> None:
    """``Joint.fit``: z-scores of correlation and duplicates over 40 samples have mean 0 and variance 1."""
    rng = np.random.default_rng(3)
    z = []
    for _ in range(40):
        fitted = Joint.fit(*JOINT.rvs(1000, rng))
        errors = fitted.standard_errors
        z.append(
            [
                (fitted.law.correlation - 0.6) / errors["correlation"],
                (fitted.law.duplicates - 0.05) / errors["duplicates"],
            ]
        )
    scores = np.array(z)
    assert np.all(np.abs(scores.mean(axis=0)) < 4 / math.sqrt(40))
    assert np.all(np.abs(scores.var(axis=0) - 1) < 4 * math.sqrt(2 / 40))


def test_fitted_minimum() -> None:
    """``Minimum.fit`` follows the sample's own minimum, with copula and marginals fitted."""
    keys, values = JOINT.rvs(5000, np.random.default_rng(4))
    fitted = Minimum.fit(np.stack([keys, values]))
    for s in (0.1, 0.2, 0.35):
        share = np.mean(np.minimum(keys, values) > s)
        assert abs(fitted.law.sf(s) - share) < 4 * math.sqrt(share * (1 - share) / 5000)
    again = law_from_dict(fitted.law.to_dict())
    assert again == fitted.law
    assert again.joint == fitted.law.joint
    assert hash(again.joint) == hash(fitted.law.joint)


def test_bad_input() -> None:
    law = Gaussian(0.5, 0.1)
    with pytest.raises(InputError, match=r"keys = 'gaussian': must be a law of similarity"):
        Joint("gaussian", law, 0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"values = None: must be a law of similarity"):
        Joint(law, None, 0.5)  # type: ignore[arg-type]
    for correlation in (1.0, -1.0, 2.0):
        with pytest.raises(InputError, match=r"correlation = .*: must lie strictly between -1 and 1"):
            Joint(law, law, correlation)
    with pytest.raises(InputError, match=r"correlation = nan: must be a finite number"):
        Joint(law, law, math.nan)
    with pytest.raises(InputError, match=r"duplicates = 1\.0: must be a share in \[0, 1\)"):
        Joint(law, law, 0.5, 1.0)
    with pytest.raises(InputError, match=r"keys = nan: must not hold NaN"):
        JOINT.sf(math.nan, 0.1)
    with pytest.raises(InputError, match=r"values = '3 scores': must be one for each of 2 keys"):
        Joint.fit([0.1, 0.2], [0.1, 0.2, 0.3])
    scores = np.linspace(0.1, 0.6, 40)
    with pytest.raises(InputError, match=r"values = nan: must be finite"):
        Joint.fit(scores, np.where(scores > 0.5, np.nan, scores))
    with pytest.raises(InputError, match=r"values = 0\.3: is constant"):
        Joint.fit(scores, np.full(40, 0.3))
    with pytest.raises(
        InputError, match=r"keys = '40 pairs, 35 of them exact duplicates': too few: at least 10"
    ):
        Joint.fit(np.where(np.arange(40) < 35, 1.0, scores), np.where(np.arange(40) < 35, 1.0, scores))
    with pytest.raises(InputError, match=r"sample = 'shape \(40,\)': must be \(2, n\)"):
        Minimum.fit(scores)
