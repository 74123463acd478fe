"""Threshold diagnostics on tails that are known, most of them scipy's generalised Pareto."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from ratedist.errors import InputError
from ratedist.similarity.generalised_pareto import excess_sf, fit_generalised_pareto
from ratedist.threshold_diagnostics import (
    mean_residual_life,
    parameter_stability,
    quantile_quantile,
    return_level,
)

SHAPE, SCALE, START = -0.2, 0.05, 0.5


def pareto_above_a_uniform(size: int, rng: np.random.Generator) -> np.ndarray:
    """Four in five uniform on (0.1, 0.5), one in five generalised Pareto above 0.5."""
    tail = scipy.stats.genpareto(SHAPE, loc=START, scale=SCALE).rvs(size // 5, random_state=rng)
    return rng.permutation(np.concatenate([rng.uniform(0.1, START, size - size // 5), tail]))


SAMPLE = pareto_above_a_uniform(20_000, np.random.default_rng(0))


def test_mean_residual_life_is_linear_on_pareto_tails() -> None:
    """Mean excess (scale + shape·(u − u₀))/(1 − shape) (``mean_residual_life``): z-scores at 8 thresholds."""
    us = np.linspace(START, 0.6, 8)
    found = mean_residual_life(SAMPLE, us, level=0.9)
    truth = (SCALE + SHAPE * (us - START)) / (1 - SHAPE)
    error = (found.high - found.mean_excess) / 1.6448536
    assert np.all(np.abs(found.mean_excess - truth) < 4 * error)
    np.testing.assert_allclose(found.mean_excess - found.low, found.high - found.mean_excess)
    for u, count, mean in zip(us, found.counts, found.mean_excess, strict=True):
        assert count == np.sum(u < SAMPLE)
        assert mean == pytest.approx(np.mean(SAMPLE[u < SAMPLE]) - u)


def test_mean_residual_life_band_covers() -> None:
    """Over 200 samples the 90 % band holds the truth in 90 %, give or take 4 binomial errors."""
    rng = np.random.default_rng(1)
    inside = np.zeros(2)
    for _ in range(200):
        found = mean_residual_life(pareto_above_a_uniform(2000, rng), [0.5, 0.55])
        truth = (SCALE + SHAPE * np.array([0.0, 0.05])) / (1 - SHAPE)
        inside += (found.low <= truth) & (truth <= found.high)
    assert np.all(np.abs(inside / 200 - 0.9) < 4 * math.sqrt(0.09 / 200))


def test_parameters_are_stable_on_pareto_tails() -> None:
    """Shape and modified scale (``parameter_stability``) near the truth above 0.5, away from it below."""
    found = parameter_stability(SAMPLE, [0.35, 0.5, 0.53, 0.56])
    shape_error = (found.shape_high - found.shape_low) / (2 * 1.6448536)
    assert np.all(np.abs(found.shape - SHAPE)[1:] < 4 * shape_error[1:])
    modified = SCALE - SHAPE * START
    scale_error = (found.modified_scale_high - found.modified_scale) / 1.6448536
    assert np.all(np.abs(found.modified_scale - modified)[1:] < 4 * scale_error[1:])
    # Below the start the body is no Pareto tail.
    assert abs(found.shape[0] - SHAPE) > 0.1
    reference = scipy.stats.genpareto.fit(SAMPLE[SAMPLE > 0.53] - 0.53, floc=0)
    assert found.shape[2] == pytest.approx(reference[0], abs=2e-3)
    assert found.counts[2] == np.sum(SAMPLE > 0.53)


def test_parameter_band_covers() -> None:
    rng = np.random.default_rng(2)
    inside = np.zeros(2)
    for _ in range(150):
        found = parameter_stability(pareto_above_a_uniform(2000, rng), [0.5])
        inside += [
            found.shape_low[0] <= SHAPE <= found.shape_high[0],
            found.modified_scale_low[0] <= SCALE - SHAPE * START <= found.modified_scale_high[0],
        ]
    assert np.all(np.abs(inside / 150 - 0.9) < 4 * math.sqrt(0.09 / 150))


def test_default_thresholds() -> None:
    for found in (mean_residual_life(SAMPLE), parameter_stability(SAMPLE[:2000])):
        assert np.all(np.diff(found.thresholds) > 0)
        assert found.counts[-1] >= 25
        assert found.counts[-1] < 40
        assert np.all(np.isfinite(found.thresholds))
    assert mean_residual_life(SAMPLE).counts[0] == pytest.approx(10_000, abs=1)


def test_irregular_shapes_have_no_band() -> None:
    """Uniform scores: shape −1 above every threshold, where the likelihood gives no standard error."""
    found = parameter_stability(np.linspace(0, 0.9, 500), [0.5])
    assert found.shape[0] <= -0.5
    assert math.isnan(found.shape_low[0])
    assert math.isnan(found.modified_scale_high[0])


def test_quantile_band_covers() -> None:
    """``quantile_quantile`` on Pareto tails: the share of points outside a 90 % band averages a tenth."""
    rng = np.random.default_rng(3)
    outside = [
        quantile_quantile(pareto_above_a_uniform(500, rng), START, draws=60, rng=rng).outside
        for _ in range(25)
    ]
    assert np.mean(outside) == pytest.approx(0.1, abs=4 * np.std(outside) / math.sqrt(25) + 0.015)


def test_quantile_plot_sees_a_tail_that_is_none() -> None:
    rng = np.random.default_rng(4)
    two_heaps = np.concatenate([rng.normal(0.55, 0.01, 200), rng.normal(0.8, 0.01, 200)])
    assert quantile_quantile(two_heaps, 0.5, draws=80).outside > 0.5


def test_quantile_band_knows_that_the_parameters_were_fitted() -> None:
    """In the bulk it is narrower than that of order statistics of a law known beforehand (beta laws)."""
    sample = pareto_above_a_uniform(1000, np.random.default_rng(6))
    found = quantile_quantile(sample, START, draws=200)
    fitted = fit_generalised_pareto(sample[sample > START] - START)
    ends = [excess_sf(side - START, fitted.shape, fitted.scale) for side in (found.low, found.high)]
    ranks = np.arange(1, 201)
    known = scipy.stats.beta(ranks, 201 - ranks)
    ratio = (ends[0] - ends[1]) / (known.ppf(0.95) - known.ppf(0.05))
    assert np.median(ratio) < 0.8


def test_quantile_plot_arrays() -> None:
    found = quantile_quantile(SAMPLE[:2000], START, draws=40, rng=1)
    above = np.sort(SAMPLE[:2000][SAMPLE[:2000] > START])
    np.testing.assert_allclose(found.observed, above)
    for array in (found.fitted, found.low, found.high):
        assert array.shape == above.shape
        assert np.all(np.diff(array) >= 0)
    assert np.all(found.low <= found.high)
    again = quantile_quantile(SAMPLE[:2000], START, draws=40, rng=1)
    np.testing.assert_array_equal(found.low, again.low)


def test_return_level_band_covers() -> None:
    """``return_level`` inside the sample and beyond: of 200 bands of 90 %, 90 % hold the truth."""
    rng = np.random.default_rng(5)
    pairs = np.array([5.0, 50.0, 1000.0])
    tail = scipy.stats.genpareto(SHAPE, loc=START, scale=SCALE)
    truth = np.append(START, tail.isf(5 / pairs[1:]))
    inside = np.zeros(3)
    for _ in range(200):
        # The share above the threshold varies as that of independent scores does.
        size = rng.binomial(4000, 0.2)
        sample = np.concatenate([rng.uniform(0.1, START, 4000 - size), tail.rvs(size, random_state=rng)])
        found = return_level(sample, START, np.maximum(pairs, 4000 / size))
        inside += (found.low <= truth) & (truth <= found.high)
    assert np.all(np.abs(inside[1:] / 200 - 0.9) < 4 * math.sqrt(0.09 / 200))


def test_return_levels_by_default() -> None:
    found = return_level(SAMPLE, START)
    # At the threshold itself only its share is uncertain.
    scale = fit_generalised_pareto(SAMPLE[SAMPLE > START] - START).scale
    error = scale * math.sqrt(0.8 / (0.2 * SAMPLE.size))
    assert found.high[0] - found.score[0] == pytest.approx(1.6448536 * error, rel=1e-6)
    assert found.pairs[0] == pytest.approx(5)
    assert found.score[0] == pytest.approx(START)
    assert np.all(np.diff(found.score) > 0)
    assert np.isnan(found.observed[found.pairs > SAMPLE.size]).all()
    seen = ~np.isnan(found.observed)
    inner = seen & (found.pairs < SAMPLE.size / 20)
    np.testing.assert_allclose(found.observed[inner], found.score[inner], atol=0.01)
    assert found.score[-1] < START - SCALE / SHAPE


def test_bad_input() -> None:
    for diagnose in (
        mean_residual_life,
        parameter_stability,
        lambda sample: quantile_quantile(sample, 0.3),
        lambda sample: return_level(sample, 0.3),
    ):
        with pytest.raises(InputError, match=r"sample = \[\]: is empty; at least \d+ scores are needed"):
            diagnose([])
        with pytest.raises(InputError, match=r"sample = nan: must be finite"):
            diagnose([0.1, math.nan] * 50)
        with pytest.raises(InputError, match=r"sample = 0\.4: is constant"):
            diagnose(np.full(100, 0.4))
        with pytest.raises(InputError, match=r"sample = '10 scores': too few"):
            diagnose(np.linspace(0, 0.5, 10))
        with pytest.raises(InputError, match=r"holds exact duplicates"):
            diagnose(np.append(np.linspace(0, 0.5, 100), 1.0))
    sample = np.linspace(0, 0.8, 200)
    for diagnose in (mean_residual_life, parameter_stability):
        for thresholds in ([0.3, 0.2], [0.3, 0.3], [], [math.nan]):
            with pytest.raises(InputError, match=r"thresholds = .*: must be finite and increase strictly"):
                diagnose(sample, thresholds)
        with pytest.raises(
            InputError, match=r"threshold = 0\.75: 13 of 200 scores exceed it; at least 25 are"
        ):
            diagnose(sample, [0.2, 0.75])
        with pytest.raises(InputError, match=r"level = 1: must be a share in \(0, 1\)"):
            diagnose(sample, [0.2], level=1)
    with pytest.raises(InputError, match=r"threshold = 0\.75: 13 of 200 scores exceed it"):
        quantile_quantile(sample, 0.75)
    with pytest.raises(InputError, match=r"draws = 3: must be at least 20 for a band"):
        quantile_quantile(sample, 0.3, draws=3)
    with pytest.raises(InputError, match=r"threshold = nan: must be a finite number"):
        return_level(sample, math.nan)
    with pytest.raises(
        InputError, match=r"pairs = .*: must be at least 1\.6, where the threshold itself lies"
    ):
        return_level(sample, 0.3, [1.5, 10])
