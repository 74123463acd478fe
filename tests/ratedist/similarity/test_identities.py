"""What must hold for every law of similarity, whatever its formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.similarity import SimilarityLaw, law_from_dict

NODES, WEIGHTS = np.polynomial.legendre.leggauss(10)
POINTS = np.array([-0.9, -0.3, 0.0, 0.12, 0.31, 0.5, 0.55, 0.64, 0.77, 0.9, 0.97])


def integral(
    law: SimilarityLaw, g: Callable[[np.ndarray], np.ndarray], low: float = -4.0, high: float = 1.0
) -> float:
    """∫ g·pdf by quadrature in the score, independent of the law's quantiles.

    Within [−1, 1] over the angle arcsin s, in which even the density of Spherical(2) is bounded; between the
    law's own kinks, where it says it has any.
    """
    total = 0.0
    kinks = law._kinks()
    if low < -1:
        edges = np.linspace(low, min(high, -1.0), 400)
        half = 0.5 * np.diff(edges)[:, None]
        s = edges[:-1, None] + half * (1 + NODES)
        total += float(np.sum(half * WEIGHTS * g(s) * law.pdf(s)))
    if high > -1:
        cuts = np.concatenate([[max(low, -1.0), high], kinks, [law.support[1]]])
        cuts = np.arcsin(cuts[(cuts >= max(low, -1.0)) & (cuts <= high)])
        edges = np.unique(np.concatenate([np.linspace(cuts.min(), cuts.max(), 700), cuts]))
        half = 0.5 * np.diff(edges)[:, None]
        angle = edges[:-1, None] + half * (1 + NODES)
        s = np.sin(angle)
        total += float(np.sum(half * WEIGHTS * g(s) * law.pdf(s) * np.cos(angle)))
    return total


def one(s: np.ndarray) -> np.ndarray:
    return np.ones_like(s)


def test_density_and_atom_sum_to_one(law: SimilarityLaw) -> None:
    assert integral(law, one) + law.atom == pytest.approx(1, abs=2e-8)


def test_distribution_is_the_integral_of_the_density(law: SimilarityLaw) -> None:
    for s in POINTS:
        assert law.cdf(s) == pytest.approx(integral(law, one, high=s), abs=2e-8)
        # Relative: the tail itself, not one minus the rest.
        assert law.sf(s) == pytest.approx(integral(law, one, low=s) + law.atom, rel=1e-7, abs=1e-200)


def test_density_is_the_slope_of_the_distribution(law: SimilarityLaw) -> None:
    step = 1e-6
    inside = POINTS[np.abs(POINTS[:, None] - law._kinks()).min(axis=1, initial=1.0) > 2 * step]
    slope = (law.cdf(inside + step) - law.cdf(inside - step)) / (2 * step)
    np.testing.assert_allclose(law.pdf(inside), slope, rtol=1e-4, atol=1e-7)


def test_distribution_and_survival_sum_to_one(law: SimilarityLaw) -> None:
    s = np.concatenate([np.linspace(-1.5, 1.5, 301), [-1.0, 1.0]])
    np.testing.assert_allclose(law.cdf(s) + law.sf(s), 1, atol=2e-15)


def test_monotone_between_zero_and_one(law: SimilarityLaw) -> None:
    s = np.linspace(-1.2, 1.2, 4001)
    for values in (law.cdf(s), 1 - law.cdf(s)[::-1], -law.sf(s)):
        assert np.all(np.diff(values) >= -1e-15)
    assert law.cdf(s).min() >= 0
    assert law.sf(s).max() <= 1
    assert law.pdf(s).min() >= 0


def test_edges(law: SimilarityLaw) -> None:
    low, high = law.support
    assert law.sf(1) == 0
    assert law.cdf(1) == 1
    assert law.sf(1.5) == 0
    assert law.pdf(1.5) == 0
    assert high <= 1
    assert law.cdf(-50) == 0
    assert law.sf(-50) == pytest.approx(1, abs=1e-15)
    assert law.sf(np.nextafter(1.0, 0.0)) == pytest.approx(law.atom, abs=1e-7)
    if low >= -1:
        assert law.cdf(np.nextafter(-1.0, -2.0)) == 0
        assert law.pdf(-1.5) == 0
        assert law.ppf(0) == pytest.approx(low, abs=1e-9)
        assert law.isf(1) == pytest.approx(low, abs=1e-9)
    assert law.isf(0) == pytest.approx(high, abs=1e-9)
    assert law.ppf(1) == pytest.approx(high, abs=1e-9)


def test_quantiles_invert_the_distribution(law: SimilarityLaw) -> None:
    q = np.array([1e-9, 1e-4, 0.01, 0.2, 0.5, 0.77, 0.93])
    continuous = q < (1 - law.atom) * (1 - 1e-9)
    error = np.abs(law.cdf(law.ppf(q)) / q - 1)
    assert np.all((error < _resolution(law, law.ppf(q), q))[continuous])
    q = np.array([1e-9, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.9])
    continuous = q > law.atom * (1 + 1e-9)
    error = np.abs(law.sf(law.isf(q)) / q - 1)
    assert np.all((error < _resolution(law, law.isf(q), q))[continuous])
    # Inside the atom: the smallest score with cdf >= q is 1.
    if law.atom > 0:
        assert law.ppf(1 - 0.5 * law.atom) == 1
        assert law.isf(0.5 * law.atom) == 1


def _resolution(law: SimilarityLaw, s: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Relative error of a tail probability q at the score s: doubles near ±1 are 1e-16 apart."""
    steepness = np.maximum(law.pdf(s), law.pdf(s * (1 - 4e-16)))
    return 1e-8 + 4 * np.nan_to_num(steepness * 2.3e-16 / q, posinf=1.0)


def test_moments(law: SimilarityLaw) -> None:
    mean = integral(law, lambda s: s) + law.atom
    var = integral(law, lambda s: (s - mean) ** 2) + law.atom * (1 - mean) ** 2
    assert law.mean() == pytest.approx(mean, abs=1e-8)
    assert law.var() == pytest.approx(var, rel=1e-6, abs=1e-12)
    assert law.std() == pytest.approx(math.sqrt(max(var, 0)), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("above", [-math.inf, -0.2, 0.4, 0.8])
def test_expect_is_the_integral(law: SimilarityLaw, above: float) -> None:
    """``SimilarityLaw.expect``, with the own-norm error 2 − 2s and a power as g."""
    for g in (lambda s: 2 - 2 * s, lambda s: s**4):
        reference = integral(law, g, low=max(above, -4.0)) + law.atom * float(g(np.ones(1))[0])
        assert law.expect(g, above=above) == pytest.approx(reference, rel=1e-6, abs=1e-11)
    assert law.expect(one, above=1.0) == 0


def test_expect_keeps_relative_accuracy_in_the_tail(law: SimilarityLaw) -> None:
    above = float(law.isf(min(max(1e-7, 2 * law.atom), 1.0)))
    if -math.inf < above < 1:
        mass = law.expect(one, above=above)
        assert mass == pytest.approx(float(law.sf(above)), rel=1e-7)
        middle = law.expect(lambda s: s, above=above) / mass
        assert above <= middle <= 1


def test_samples_follow_the_law(law: SimilarityLaw) -> None:
    """Kolmogorov-Smirnov on the continuous part, and a z-score on the atom; false alarms at 1e-4."""
    size = 4000
    sample = law.rvs(size, np.random.default_rng(11))
    assert sample.shape == (size,)
    assert sample.max() <= 1
    rest = sample[sample < 1]
    atom = law.atom
    error = math.sqrt(max(atom * (1 - atom), 1e-12) / size)
    assert abs((size - rest.size) / size - atom) < 4 * error + 1e-9
    if rest.size:
        assert scipy.stats.kstest(rest, lambda s: law.cdf(s) / (1 - atom)).pvalue > 1e-4
    assert law.rvs((3, 5), np.random.default_rng(0)).shape == (3, 5)
    np.testing.assert_array_equal(law.rvs(8, np.random.default_rng(3)), law.rvs(8, np.random.default_rng(3)))


@pytest.mark.parametrize("method", ["pdf", "cdf", "sf", "logsf", "ppf", "isf"])
def test_scalars_and_arrays_agree(law: SimilarityLaw, method: str) -> None:
    function = getattr(law, method)
    values = np.array([[0.1, 0.35, 0.6], [0.72, 0.9, 0.31]])
    result = function(values)
    assert result.shape == values.shape
    assert result.dtype == np.float64
    for where in np.ndindex(values.shape):
        assert np.ndim(function(values[where])) == 0
        assert float(function(float(values[where]))) == pytest.approx(result[where], rel=1e-13, abs=1e-300)
    np.testing.assert_array_equal(function(values.tolist()), result)
    np.testing.assert_allclose(function(values.astype(np.float32)), result, rtol=1e-3, atol=1e-5)


def test_log_of_the_survival(law: SimilarityLaw) -> None:
    s = np.linspace(-0.9, 0.95, 50)
    tail = law.sf(s)
    np.testing.assert_allclose(np.exp(law.logsf(s)), tail, rtol=1e-10, atol=1e-300)
    assert law.logsf(1.0) == -math.inf


def test_description_round_trip(law: SimilarityLaw) -> None:
    again = law_from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
    assert again == law
    assert hash(again) == hash(law)
    s = np.linspace(-0.95, 0.99, 40)
    np.testing.assert_array_equal(again.sf(s), law.sf(s))
    assert type(law).__name__ in repr(law)


def test_arguments_are_checked(law: SimilarityLaw) -> None:
    for method in ("pdf", "cdf", "sf", "logsf"):
        with pytest.raises(InputError, match=r"s = nan: must not hold NaN"):
            getattr(law, method)([0.1, math.nan])
        with pytest.raises(InputError, match=r"s = 'high': must be a number or an array of numbers"):
            getattr(law, method)("high")
    for method in ("ppf", "isf"):
        with pytest.raises(InputError, match=r"q = 1\.5: must lie in \[0, 1\]"):
            getattr(law, method)([0.2, 1.5])
        with pytest.raises(InputError, match=r"q = nan: must lie in \[0, 1\]"):
            getattr(law, method)(math.nan)
    with pytest.raises(InputError, match=r"above = nan: must be a number"):
        law.expect(one, above=math.nan)
