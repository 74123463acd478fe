"""Counts of exceedances against the Poisson law and a compound one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["CountFit", "fit_counts"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class CountFit:
    """Observed frequencies of counts beside those that two laws expect.

    ``values`` (k,) are the counts, the last class holding all larger ones; ``observed``, ``poisson`` and
    ``compound`` (k,) say how often. ``size`` is the compound law's parameter, infinite where it is the
    Poisson law. ``poisson_p`` and ``compound_p`` are chi-squared p-values over classes with an expected
    frequency of at least 5, as if the counts were independent; NaN with too few classes. ``aic_gain`` is
    AIC(Poisson) − AIC(compound): above 2 the compound law describes the counts better than its parameter
    costs.
    """

    values: IntArray
    observed: FloatArray
    poisson: FloatArray
    compound: FloatArray
    mean: float
    size: float
    poisson_p: float
    compound_p: float
    aic_gain: float


def fit_counts(counts: ArrayLike) -> CountFit:
    """Fit the Poisson and the negative binomial law to counts by maximum likelihood.

    The negative binomial of mean m and size k is the compound Poisson law with k·log(1 + m/k) clumps of
    logarithmic size, and equally a Poisson law whose mean is gamma-distributed over blocks; dispersion 1 +
    m/k.
    Test: tests/ratedist/exceedances/test_counts.py::test_fit_recovers_its_law.

    Raises InputError where there are fewer than 10 counts, one is negative or no whole number, or all are 0.
    """
    array = np.asarray(counts)
    if array.ndim != 1 or array.size < 10:
        raise InputError("counts", f"shape {array.shape}", "must be one-dimensional, at least 10 counts")
    whole = array.astype(np.int64)
    if array.dtype.kind not in "iuf" or not np.array_equal(whole, array) or whole.min() < 0:
        raise InputError("counts", array.min(), "must be whole numbers of at least 0")
    if whole.max() == 0:
        raise InputError("counts", 0, "are all 0; lower the threshold or give more requests")
    values, times = np.unique(whole, return_counts=True)
    mean = float(whole.mean())

    def likelihood(log_size: float) -> float:
        return -float(np.sum(times * _log_negative_binomial(values, mean, math.exp(log_size))))

    poisson = float(np.sum(times * (values * math.log(mean) - mean - scipy.special.gammaln(values + 1))))
    size = math.inf
    gain = -2.0
    if whole.var() > mean:
        found = scipy.optimize.minimize_scalar(likelihood, bounds=(-12.0, 18.0), method="bounded")
        if -found.fun > poisson:
            size = math.exp(found.x)
            gain = 2 * (-float(found.fun) - poisson) - 2

    last = int(max(np.quantile(whole, 0.999), 1))
    classes = np.arange(last + 1)
    observed = np.bincount(np.minimum(whole, last), minlength=last + 1).astype(np.float64)
    expected_poisson = _frequencies(classes, mean, math.inf) * whole.size
    expected_compound = _frequencies(classes, mean, size) * whole.size
    return CountFit(
        classes,
        observed,
        expected_poisson,
        expected_compound,
        mean,
        size,
        _chi_squared(observed, expected_poisson, 1),
        _chi_squared(observed, expected_compound, 1 if math.isinf(size) else 2),
        gain,
    )


def _log_negative_binomial(values: IntArray, mean: float, size: float) -> FloatArray:
    return (
        scipy.special.gammaln(values + size)
        - scipy.special.gammaln(size)
        - scipy.special.gammaln(values + 1)
        - size * math.log1p(mean / size)
        + values * (math.log(mean) - math.log(size + mean))
    )


def _frequencies(classes: IntArray, mean: float, size: float) -> FloatArray:
    """Probabilities of the classes, the last one open."""
    if math.isinf(size):
        share = np.exp(classes * math.log(mean) - mean - scipy.special.gammaln(classes + 1))
    else:
        share = np.exp(_log_negative_binomial(classes, mean, size))
    share[-1] = max(1 - share[:-1].sum(), 0.0)
    return share


def _chi_squared(observed: FloatArray, expected: FloatArray, parameters: int) -> float:
    """p-value over classes merged from the right until each expects at least 5."""
    merged: list[list[float]] = []
    held = [0.0, 0.0]
    for o, e in zip(observed[::-1], expected[::-1], strict=True):
        held = [held[0] + o, held[1] + e]
        if held[1] >= 5:
            merged.append(held)
            held = [0.0, 0.0]
    if merged:
        merged[-1] = [merged[-1][0] + held[0], merged[-1][1] + held[1]]
    freedom = len(merged) - 1 - parameters
    if freedom < 1:
        return math.nan
    o, e = np.array(merged).T
    return float(scipy.special.chdtrc(freedom, np.sum((o - e) ** 2 / e)))
