"""Where does the tail of the scores begin? The four standard diagnostics of peaks over threshold, with bands.

Each returns arrays that a figure draws and a test checks. Their bands take the scores as independent; scores
of pairs that share blocks are not, so that the true uncertainty is somewhat larger
(``ratedist.poisson_check`` says how clumped they are). Coles, *An Introduction to Statistical Modeling of
Extreme Values* (2001), chapter 4, is the reference for all four.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import finite, sample_of, share
from ratedist.similarity.generalised_pareto import (
    NEEDED,
    excess_isf,
    excess_sf,
    fit_generalised_pareto,
)

__all__ = [
    "MeanResidualLife",
    "ParameterStability",
    "QuantileQuantile",
    "ReturnLevel",
    "mean_residual_life",
    "parameter_stability",
    "quantile_quantile",
    "return_level",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class MeanResidualLife:
    """Mean excess above each threshold (all arrays (T,)), with a band of confidence ``level``."""

    thresholds: FloatArray
    counts: IntArray
    mean_excess: FloatArray
    low: FloatArray
    high: FloatArray
    level: float


@dataclass(frozen=True)
class ParameterStability:
    """Generalised Pareto parameters fitted above each threshold (all arrays (T,)), with bands.

    ``modified_scale`` is scale − shape·threshold, which does not depend on the threshold where the law holds.
    Bands are NaN where the shape is at or below −1/2.
    """

    thresholds: FloatArray
    counts: IntArray
    shape: FloatArray
    shape_low: FloatArray
    shape_high: FloatArray
    modified_scale: FloatArray
    modified_scale_low: FloatArray
    modified_scale_high: FloatArray
    level: float


@dataclass(frozen=True)
class QuantileQuantile:
    """Scores above the threshold, in order, against the quantiles of the fitted tail (all arrays (k,)).

    The band is pointwise; ``outside`` is the share of points beyond it, near 1 − level where the law holds.
    """

    threshold: float
    fitted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray
    level: float

    @property
    def outside(self) -> float:
        """Share of the points outside the band."""
        return float(np.mean((self.observed < self.low) | (self.observed > self.high)))


@dataclass(frozen=True)
class ReturnLevel:
    """Score that one pair in ``pairs`` exceeds (all arrays (M,)), with a band.

    ``observed`` is the sample's own quantile where the sample is large enough to have one, NaN beyond.
    """

    threshold: float
    pairs: FloatArray
    score: FloatArray
    low: FloatArray
    high: FloatArray
    observed: FloatArray
    level: float


def mean_residual_life(
    sample: ArrayLike, thresholds: ArrayLike | None = None, *, level: float = 0.9
) -> MeanResidualLife:
    """Mean of the excesses above each threshold.

    Where the tail is a generalised Pareto law it is linear in the threshold, with slope shape/(1 − shape).
    Without ``thresholds``, 40 of them from the median up to the score that 25 exceed. Normal bands.
    Test: tests/ratedist/test_threshold_diagnostics.py::test_mean_residual_life_is_linear_on_pareto_tails.

    Raises InputError where the sample cannot be used (as the fits of laws), thresholds do not increase
    strictly or leave fewer than 25 scores above them, or ``level`` is not in (0, 1).
    """
    scores = sample_of(sample, needed=2 * NEEDED, duplicates=False, purpose="for threshold diagnostics")
    us = _thresholds(scores, thresholds)
    z = _normal_quantile(level)
    counts, means, errors = [], [], []
    for u in us:
        excess = scores[scores > u] - u
        counts.append(excess.size)
        means.append(excess.mean())
        errors.append(excess.std(ddof=1) / np.sqrt(excess.size))
    mean, error = np.array(means), np.array(errors)
    return MeanResidualLife(us, np.array(counts), mean, mean - z * error, mean + z * error, level)


def parameter_stability(
    sample: ArrayLike, thresholds: ArrayLike | None = None, *, level: float = 0.9
) -> ParameterStability:
    """Fit the generalised Pareto law above each threshold: its parameters settle where the tail begins.

    The shape's band is that of its profile likelihood, the modified scale's follows from the observed
    information by the delta method. Thresholds and errors as ``mean_residual_life``.
    Test: tests/ratedist/test_threshold_diagnostics.py::test_parameters_are_stable_on_pareto_tails.
    """
    scores = sample_of(sample, needed=2 * NEEDED, duplicates=False, purpose="for threshold diagnostics")
    us = _thresholds(scores, thresholds)
    z = _normal_quantile(level)
    rows = []
    for u in us:
        fitted = fit_generalised_pareto(scores[scores > u] - u)
        regular = np.isfinite(fitted.covariance).all()
        ends = fitted.shape_interval(level) if regular else (np.nan, np.nan)
        gradient = np.array([-u, 1.0])
        error = np.sqrt(gradient @ fitted.covariance @ gradient)
        modified = fitted.scale - fitted.shape * u
        rows.append([fitted.count, fitted.shape, *ends, modified, modified - z * error, modified + z * error])
    counts, shape, low, high, scale, scale_low, scale_high = np.array(rows, dtype=np.float64).T
    return ParameterStability(
        thresholds=us,
        counts=counts.astype(np.int64),
        shape=shape,
        shape_low=low,
        shape_high=high,
        modified_scale=scale,
        modified_scale_low=scale_low,
        modified_scale_high=scale_high,
        level=level,
    )


def quantile_quantile(
    sample: ArrayLike,
    threshold: float,
    *,
    level: float = 0.9,
    draws: int = 200,
    rng: np.random.Generator | int = 0,
) -> QuantileQuantile:
    """Order statistics of the scores above ``threshold`` against the fitted tail's quantiles.

    The band comes from ``draws`` samples of the fitted law, each fitted again, so that it knows that the
    parameters were estimated: without that it is too wide near the bulk.
    Test: tests/ratedist/test_threshold_diagnostics.py::test_quantile_band_covers.

    Raises InputError where the sample cannot be used, fewer than 25 scores exceed the threshold, or ``draws``
    is below 20.
    """
    scores = sample_of(sample, needed=NEEDED, duplicates=False, purpose="for threshold diagnostics")
    threshold = finite("threshold", threshold)
    _normal_quantile(level)
    if draws < 20:
        raise InputError("draws", draws, "must be at least 20 for a band")
    excess = _above(scores, threshold)
    fitted = fit_generalised_pareto(excess)
    rng = np.random.default_rng(rng)
    places = np.empty((draws, excess.size))
    for draw in range(draws):
        again = np.sort(excess_isf(1 - rng.random(excess.size), fitted.shape, fitted.scale))
        refit = fit_generalised_pareto(np.maximum(again, np.finfo(np.float64).tiny))
        places[draw] = excess_sf(again, refit.shape, refit.scale)
    low, high = np.quantile(places, [0.5 + level / 2, 0.5 - level / 2], axis=0)
    middle = 1 - (np.arange(1, excess.size + 1) - 0.5) / excess.size

    def score(q: FloatArray) -> FloatArray:
        return threshold + excess_isf(q, fitted.shape, fitted.scale)

    observed = threshold + np.sort(excess)
    return QuantileQuantile(threshold, score(middle), observed, score(low), score(high), level)


def return_level(
    sample: ArrayLike, threshold: float, pairs: ArrayLike | None = None, *, level: float = 0.9
) -> ReturnLevel:
    """Score that one pair in m exceeds: x_m = u + scale·((m·ζ)^shape − 1)/shape, ζ the share above u.

    Without ``pairs``, 60 values of m from 1/ζ to a hundred times the sample. Bands by the delta method from
    the observed information and the binomial variance of ζ. No score is above 1: where x_m is, the tail does
    not fit.
    Test: tests/ratedist/test_threshold_diagnostics.py::test_return_level_band_covers.

    Raises InputError where the sample cannot be used, fewer than 25 scores exceed the threshold, or a value
    of ``pairs`` is below 1/ζ (its score lies under the threshold).
    """
    scores = sample_of(sample, needed=NEEDED, duplicates=False, purpose="for threshold diagnostics")
    threshold = finite("threshold", threshold)
    z = _normal_quantile(level)
    excess = _above(scores, threshold)
    fitted = fit_generalised_pareto(excess)
    rate = excess.size / scores.size
    if pairs is None:
        ms = np.geomspace(1 / rate, 100 * scores.size, 60)
    else:
        ms = np.atleast_1d(np.asarray(pairs, dtype=np.float64))
        if not (np.isfinite(ms).all() and ms.size and ms.min() >= 1 / rate * (1 - 1e-12)):
            raise InputError(
                "pairs", pairs, f"must be at least {1 / rate:.6g}, where the threshold itself lies"
            )
    depth = np.log(ms * rate)
    score = threshold + excess_isf(np.exp(-depth), fitted.shape, fitted.scale)
    step = 1e-5
    to_shape = (
        excess_isf(np.exp(-depth), fitted.shape + step, fitted.scale)
        - excess_isf(np.exp(-depth), fitted.shape - step, fitted.scale)
    ) / (2 * step)
    to_scale = (score - threshold) / fitted.scale
    to_rate = fitted.scale * np.exp(fitted.shape * depth) / rate
    gradient = np.stack([to_rate, to_shape, to_scale])
    covariance = np.zeros((3, 3))
    covariance[0, 0] = rate * (1 - rate) / scores.size
    covariance[1:, 1:] = fitted.covariance
    error = np.sqrt(np.einsum("im,ij,jm->m", gradient, covariance, gradient))
    observed = np.where(ms <= scores.size, np.quantile(scores, np.clip(1 - 1 / ms, 0, 1)), np.nan)
    return ReturnLevel(threshold, ms, score, score - z * error, score + z * error, observed, level)


def _normal_quantile(level: float) -> float:
    level = share("level", level, zero=False, one=False)
    return float(scipy.special.ndtri(0.5 + level / 2))


def _above(scores: FloatArray, threshold: float) -> FloatArray:
    excess = scores[scores > threshold] - threshold
    if excess.size < NEEDED:
        raise InputError(
            "threshold",
            threshold,
            f"{excess.size} of {scores.size} scores exceed it; at least {NEEDED} are needed: lower it",
        )
    return excess


def _thresholds(scores: FloatArray, thresholds: ArrayLike | None) -> FloatArray:
    ordered = np.sort(scores)
    if thresholds is None:
        # The score that exactly NEEDED others exceed is the last that can serve.
        levels = 1 - np.geomspace(0.5, (NEEDED + 1) / scores.size, 40)
        us = np.unique(np.quantile(ordered, levels))
        return us[np.searchsorted(ordered, us, side="right") <= scores.size - NEEDED]
    us = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if us.size == 0 or not np.isfinite(us).all() or not np.all(np.diff(us) > 0):
        raise InputError("thresholds", us.tolist()[:5], "must be finite and increase strictly")
    _above(scores, float(us[-1]))
    return us
