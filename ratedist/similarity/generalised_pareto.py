"""The generalised Pareto law of excesses above a high threshold, and its maximum-likelihood fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import share

__all__ = [
    "NEEDED",
    "GeneralisedParetoFit",
    "excess_isf",
    "excess_pdf",
    "excess_sf",
    "fit_generalised_pareto",
]

FloatArray = NDArray[np.float64]

# Fewest excesses that are fitted: below about 25 the estimate of the shape is noise, and the likelihood
# often has its maximum at the edge of its domain.
NEEDED = 25


def excess_sf(y: FloatArray, shape: float, scale: float) -> FloatArray:
    """P(excess > y) = (1 + shape·y/scale)^(−1/shape) for y >= 0; exp(−y/scale) at shape 0.

    0 beyond the end of the support, −scale/shape, of a negative shape.
    Test: tests/ratedist/similarity/test_generalised_pareto.py::test_functions_against_scipy.
    """
    return np.exp(-_hazard(np.maximum(y, 0.0) / scale, shape))


def excess_pdf(y: FloatArray, shape: float, scale: float) -> FloatArray:
    """Density of the excess: (1 + shape·y/scale)^(−1/shape − 1)/scale for y >= 0, else 0."""
    w = np.maximum(y, 0.0) / scale
    inside = (y >= 0) & (1 + shape * w > 0)
    w = np.where(inside, w, 0.0)
    return np.where(inside, np.exp(-_hazard(w, shape) - np.log1p(shape * w)) / scale, 0.0)


def excess_isf(q: FloatArray, shape: float, scale: float) -> FloatArray:
    """The excess that is exceeded with probability q: scale·(q^(−shape) − 1)/shape."""
    with np.errstate(divide="ignore"):
        depth = -np.log(q)
    if shape == 0:
        return scale * depth
    with np.errstate(over="ignore"):
        return scale * np.expm1(shape * depth) / shape


def _hazard(w: FloatArray, shape: float) -> FloatArray:
    """log1p(shape·w)/shape, w at shape 0, infinite beyond the end of the support."""
    if abs(shape) < 1e-12:
        return w
    inner = shape * w
    inside = inner > -1
    return np.where(inside, np.log1p(np.where(inside, inner, 0.0)) / shape, np.inf)


@dataclass(frozen=True)
class GeneralisedParetoFit:
    """Maximum-likelihood fit to excesses.

    ``covariance`` (2, 2) of (shape, scale) is the inverse of the observed information; it holds NaN where the
    likelihood is not regular (shape at or below −1/2). ``excesses`` are the data, for profiles.
    """

    shape: float
    scale: float
    covariance: FloatArray
    log_likelihood: float
    excesses: FloatArray

    @property
    def count(self) -> int:
        """Excesses fitted."""
        return int(self.excesses.size)

    @property
    def shape_error(self) -> float:
        """Standard error of the shape."""
        return math.sqrt(self.covariance[0, 0])

    @property
    def scale_error(self) -> float:
        """Standard error of the scale."""
        return math.sqrt(self.covariance[1, 1])

    @property
    def end(self) -> float:
        """Largest possible excess, infinite where the shape is not negative."""
        return -self.scale / self.shape if self.shape < 0 else math.inf

    @cached_property
    def _sorted(self) -> FloatArray:
        return np.sort(self.excesses)

    def shape_interval(self, level: float = 0.9) -> tuple[float, float]:
        """Confidence interval of the shape from its profile likelihood.

        All shapes whose likelihood, maximised over the scale, is within χ²₁(level)/2 of the maximum. It is
        skewed as the likelihood is, which the interval shape ± z·error is not: prefer it below a few hundred
        excesses. The lower end stops at −1, where the likelihood is unbounded.
        Test: tests/ratedist/similarity/test_generalised_pareto.py::test_profile_interval_covers.
        """
        level = share("level", level, zero=False, one=False)
        target = self.log_likelihood - 0.5 * float(scipy.special.chdtri(1, 1 - level))

        def short(shape: float) -> float:
            return _profile_over_scale(self.excesses, shape) - target

        step = 2.0 / math.sqrt(self.count)
        high = self.shape + step
        while short(high) > 0:
            high += step
        low = self.shape
        while low > -1 and short(low) > 0:
            low = max(low - step, -1.0)
        ends = [low, high]
        if short(low) < 0 and low < self.shape:
            ends[0] = scipy.optimize.brentq(short, low, self.shape, xtol=1e-6)
        ends[1] = scipy.optimize.brentq(short, self.shape, high, xtol=1e-6)
        return float(ends[0]), float(ends[1])


def fit_generalised_pareto(excesses: ArrayLike, *, needed: int = NEEDED) -> GeneralisedParetoFit:
    """Fit shape and scale to excesses above a threshold by maximum likelihood.

    At the maximum, shape = mean log(1 + θy) with θ = shape/scale, so that one search over θ suffices
    (Grimshaw, Technometrics 35, 1993). The shape is kept above −1, where the likelihood is unbounded.
    Tests: tests/ratedist/similarity/test_generalised_pareto.py::test_fit_against_scipy,
    ::test_standard_errors_are_honest.

    Raises InputError where there are fewer than ``needed`` excesses (the message says how many there are),
    one is not finite or not above 0, or they are constant.
    """
    y = np.asarray(excesses, dtype=np.float64).ravel()
    if y.size < needed:
        raise InputError(
            "excesses", f"{y.size} values", f"too few: at least {needed} are needed; lower the threshold"
        )
    if not np.isfinite(y).all():
        raise InputError("excesses", float(y[~np.isfinite(y)][0]), "must be finite")
    if (y <= 0).any():
        raise InputError("excesses", float(y.min()), "must be above 0 (scores minus the threshold)")
    if y.min() == y.max():
        raise InputError("excesses", float(y[0]), "are constant; they must vary")

    mean, largest = float(y.mean()), float(y.max())
    forbidden = 1e9  # worse than any likelihood, and finite, as the search interpolates

    def negative(x: float) -> float:
        """Profile likelihood at θ = expm1(x)/largest, per excess, where its shape is above −1."""
        theta = math.expm1(x) / largest
        if abs(x) < 1e-9:
            return math.log(mean) + 1
        shape = float(np.mean(np.log1p(theta * y)))
        return forbidden if shape <= -1 else math.log(shape / theta) + shape + 1

    grid = np.concatenate([-np.geomspace(1e-3, 20, 30)[::-1], [0.0], np.geomspace(1e-3, 12, 30)])
    heights = np.array([negative(x) for x in grid])
    best = int(np.argmin(heights))
    found = scipy.optimize.minimize_scalar(
        negative,
        bounds=(grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    x = float(found.x) if found.fun <= heights[best] else float(grid[best])
    if abs(x) < 1e-9:
        shape, scale = 0.0, mean
    else:
        theta = math.expm1(x) / largest
        shape = float(np.mean(np.log1p(theta * y)))
        scale = shape / theta
    likelihood = -y.size * (math.log(scale) + shape + 1)
    return GeneralisedParetoFit(shape, scale, _covariance(y, shape, scale), likelihood, y)


def _covariance(y: FloatArray, shape: float, scale: float) -> FloatArray:
    """Inverse observed information of (shape, scale), from that of (shape, log scale)."""
    if shape <= -0.5:
        return np.full((2, 2), np.nan)
    w = y / scale
    b = w / (1 + shape * w)
    if abs(shape) < 1e-3:  # the closed form below cancels; its expansion to first order does not
        bend = w**2 - 2 * w**3 / 3 + shape * (1.5 * w**4 - 2 * w**3)
    else:
        bend = -2 * np.log1p(shape * w) / shape**3 + 2 * b / shape**2 + (1 + 1 / shape) * b**2
    shape_shape = -float(np.sum(bend))
    shape_scale = -float(np.sum(b - (1 + shape) * b**2))
    scale_scale = float(np.sum((1 + shape) * b / (1 + shape * w)))
    information = np.array([[shape_shape, shape_scale], [shape_scale, scale_scale]])
    if not (np.linalg.det(information) > 0 and shape_shape > 0):
        return np.full((2, 2), np.nan)
    units = np.diag([1.0, scale])
    return units @ np.linalg.inv(information) @ units


def _profile_over_scale(y: FloatArray, shape: float) -> float:
    """Log-likelihood at ``shape``, maximised over the scale."""
    # The score in log scale, Σ((1 + shape)·w/(1 + shape·w) − 1) with w = y/scale, falls with the scale.
    low = math.log(max(y.mean() * 1e-3, -shape * y.max() * (1 + 1e-12)))
    high = math.log(y.max() * 1e3)

    def score(log_scale: float) -> float:
        w = y * math.exp(-log_scale)
        return float(np.sum((1 + shape) * w / (1 + shape * w) - 1))

    log_scale = low if score(low) <= 0 else scipy.optimize.brentq(score, low, high, xtol=1e-12)
    hazard = _hazard(y * math.exp(-log_scale), shape)
    return float(-y.size * log_scale - (1 + shape) * np.sum(hazard))
