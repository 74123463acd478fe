"""Counts against the Poisson and the negative binomial law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.exceedances import fit_counts


def test_fit_recovers_its_law() -> None:
    """``fit_counts`` on negative binomial counts: its size, and expected frequencies as scipy's."""
    mean, size = 1.5, 0.8
    counts = np.random.default_rng(0).negative_binomial(size, size / (size + mean), 5000)
    found = fit_counts(counts)
    assert found.mean == pytest.approx(counts.mean())
    assert found.size == pytest.approx(size, rel=0.15)
    assert found.aic_gain > 500
    assert found.poisson_p < 1e-6
    assert found.compound_p > 1e-3
    law = scipy.stats.nbinom(found.size, found.size / (found.size + found.mean))
    np.testing.assert_allclose(found.compound[:-1], 5000 * law.pmf(found.values[:-1]), rtol=1e-9)
    assert found.compound[-1] == pytest.approx(5000 * law.sf(found.values[-1] - 1), rel=1e-6)
    likelihood = [
        scipy.stats.nbinom(k, k / (k + mean_)).logpmf(counts).sum()
        for mean_ in [found.mean]
        for k in (found.size, found.size * 1.01, found.size / 1.01)
    ]
    assert likelihood[0] >= max(likelihood[1:])
    poisson = scipy.stats.poisson(found.mean).logpmf(counts).sum()
    assert found.aic_gain == pytest.approx(2 * (likelihood[0] - poisson) - 2, abs=1e-6)


def test_poisson_counts_need_no_compound_law() -> None:
    """Of 200 Poisson samples 5 % have p-values below 5 %, and the compound law rarely pays."""
    rng = np.random.default_rng(1)
    fits = [fit_counts(rng.poisson(1.2, 400)) for _ in range(200)]
    rejected = np.mean([fitted.poisson_p < 0.05 for fitted in fits])
    assert abs(rejected - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 200)
    # AIC pays when the likelihood ratio, half of the time 0 and else χ²₁, is above 2 + 2.
    assert np.mean([fitted.aic_gain > 2 for fitted in fits]) < 0.12
    one = fits[0]
    np.testing.assert_allclose(one.poisson[:-1], 400 * scipy.stats.poisson(one.mean).pmf(one.values[:-1]))
    for frequencies in (one.observed, one.poisson, one.compound):
        assert frequencies.sum() == pytest.approx(400)


def test_regular_counts_fall_back_to_poisson() -> None:
    found = fit_counts(np.tile([1, 2], 20))
    assert math.isinf(found.size)
    assert found.aic_gain == -2
    np.testing.assert_array_equal(found.poisson, found.compound)


def test_few_classes_give_no_p_value() -> None:
    assert math.isnan(fit_counts([1] + [0] * 20).poisson_p)


def test_bad_counts() -> None:
    with pytest.raises(
        InputError, match=r"counts = 'shape \(3,\)': must be one-dimensional, at least 10 counts"
    ):
        fit_counts([1, 2, 3])
    with pytest.raises(InputError, match=r"counts = .*-1.*: must be whole numbers of at least 0"):
        fit_counts([-1] + [0] * 20)
    with pytest.raises(InputError, match=r"must be whole numbers of at least 0"):
        fit_counts([0.5] + [0] * 20)
    with pytest.raises(InputError, match=r"counts = 0: are all 0; lower the threshold"):
        fit_counts([0] * 20)
