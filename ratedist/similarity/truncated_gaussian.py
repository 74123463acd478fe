"""A normal law conditioned on being a score."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import finite, points, positive, probabilities, sample_of
from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.registry import register

__all__ = ["TruncatedGaussian"]

FloatArray = NDArray[np.float64]


@register
class TruncatedGaussian(SimilarityLaw):
    """X normal given −1 <= X <= 1: the Gaussian that keeps within the range of scores without an atom.

    ``mean`` and ``std`` of the constructor are those of X before truncation (attributes ``location`` and
    ``scale``); ``location`` may lie outside [−1, 1], where the density then is a boundary layer.

    Raises InputError where ``mean`` is not finite, ``std`` is not above 0, or X has no mass in [−1, 1] that
    double precision could hold.
    """

    name: ClassVar[str] = "truncated-gaussian"

    def __init__(self, mean: float, std: float) -> None:
        self.location = finite("mean", mean)
        self.scale = positive("std", std)
        self._log_mass = float(_log_interval(*self._standard(np.array([-1.0, 1.0]))))
        if not math.isfinite(self._log_mass) or abs(self.location) > 1 + 100 * self.scale:
            raise InputError("mean", mean, f"leaves no mass in [-1, 1] at std = {std!r}; move it nearer")

    def _standard(self, s: FloatArray) -> FloatArray:
        return (s - self.location) / self.scale

    def pdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        log_density = -0.5 * self._standard(s) ** 2 - self._log_mass - 0.5 * math.log(2 * math.pi)
        inside = np.abs(s) <= 1
        return np.where(inside, np.exp(np.where(inside, log_density, 0.0)) / self.scale, 0.0)[()]

    def cdf(self, s: ArrayLike) -> FloatArray:
        z = self._standard(np.clip(points(s), -1.0, 1.0))
        low = self._standard(np.array(-1.0))
        return np.exp(np.minimum(_log_interval(low, z) - self._log_mass, 0.0))[()]

    def sf(self, s: ArrayLike) -> FloatArray:
        return np.exp(self.logsf(s))

    def logsf(self, s: ArrayLike) -> FloatArray:
        z = self._standard(np.clip(points(s), -1.0, 1.0))
        high = self._standard(np.array(1.0))
        return np.minimum(_log_interval(z, high) - self._log_mass, 0.0)[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        with np.errstate(divide="ignore"):
            return self._quantile(np.log(q), np.log1p(-q))

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        with np.errstate(divide="ignore"):
            return self._quantile(np.log1p(-q), np.log(q))

    def _quantile(self, log_below: FloatArray, log_above: FloatArray) -> FloatArray:
        """s with those shares below and above it, from the side on which X's own tail is the smaller."""
        low, high = self._standard(np.array([-1.0, 1.0]))
        below = np.logaddexp(scipy.special.log_ndtr(low), log_below + self._log_mass)
        above = np.logaddexp(scipy.special.log_ndtr(-high), log_above + self._log_mass)
        from_below = scipy.special.ndtri_exp(np.minimum(below, 0.0))
        from_above = -scipy.special.ndtri_exp(np.minimum(above, 0.0))
        z = np.where(above < below, from_above, from_below)
        return np.clip(self.location + self.scale * z, -1.0, 1.0)[()]

    def mean(self) -> float:
        """E[S] = location + scale·(φ(a) − φ(b))/(Φ(b) − Φ(a)), with a, b the standardised ends."""
        return self.location + self.scale * self._end_moment(0)

    def var(self) -> float:
        """Var[S] = scale²·(1 + (aφ(a) − bφ(b))/(Φ(b) − Φ(a)) − ((φ(a) − φ(b))/(Φ(b) − Φ(a)))²)."""
        if max(abs(self.location), 1.0) > 3 * self.scale and abs(self.location) <= 1:
            return self.scale**2 * (1 + self._end_moment(1) - self._end_moment(0) ** 2)
        # Nearly uniform, or a boundary layer: the terms above cancel, an integral does not.
        centre = self.mean()
        return self.expect(lambda s: (s - centre) ** 2)

    def _end_moment(self, power: int) -> float:
        a, b = (float(z) for z in self._standard(np.array([-1.0, 1.0])))
        log_norm = self._log_mass + 0.5 * math.log(2 * math.pi)
        return a**power * math.exp(-0.5 * a * a - log_norm) - b**power * math.exp(-0.5 * b * b - log_norm)

    @classmethod
    def fit(cls, sample: ArrayLike) -> Fit[Self]:
        """Maximum likelihood by Newton's method in the natural parameters, in which it is concave.

        Standard errors from the information, carried to (mean, std) by the delta method.
        Test: tests/ratedist/similarity/test_fits.py::test_fits_recover_their_law.

        Raises InputError as every fit, where the sample holds exact duplicates, and where the scores vary so
        much that no normal law truncated to [−1, 1] gives their variance.
        """
        scores = sample_of(sample, needed=3, duplicates=False)
        centre = float(scores.mean())
        target = np.array([0.0, float(np.mean((scores - centre) ** 2))])
        natural = np.array([0.0, -0.5 / target[1]])
        covariance = np.eye(2)
        for _ in range(100):
            law = cls(centre - 0.5 * natural[0] / natural[1], math.sqrt(-0.5 / natural[1]))
            moments = np.array([_moment(law, centre, power) for power in range(1, 5)])
            covariance = np.array(
                [
                    [moments[1] - moments[0] ** 2, moments[2] - moments[0] * moments[1]],
                    [moments[2] - moments[0] * moments[1], moments[3] - moments[1] ** 2],
                ]
            )
            step = np.linalg.solve(covariance, target - moments[:2])
            shrink = 1.0
            while natural[1] + shrink * step[1] > 0.2 * natural[1]:  # keep the variance finite
                shrink *= 0.5
            natural = natural + shrink * step
            if -0.5 / natural[1] > 1e4:
                raise InputError(
                    "sample",
                    f"{scores.size} scores with standard deviation {math.sqrt(target[1]):.3g}",
                    "varies too much for a normal law truncated to [-1, 1]; fit 'empirical' or 'mixture'",
                )
            if np.max(np.abs(step) / np.array([math.sqrt(-natural[1]), -natural[1]])) < 1e-10:
                break
        law = cls(centre - 0.5 * natural[0] / natural[1], math.sqrt(-0.5 / natural[1]))
        jacobian = np.array(
            [
                [-0.5 / natural[1], 0.5 * natural[0] / natural[1] ** 2],
                [0.0, 0.5 * law.scale / -natural[1]],
            ]
        )
        errors = np.sqrt(np.diag(jacobian @ np.linalg.inv(covariance * scores.size) @ jacobian.T))
        return Fit(law, {"mean": float(errors[0]), "std": float(errors[1])}, scores.size)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "mean": self.location, "std": self.scale}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data["mean"], data["std"])


def _moment(law: SimilarityLaw, centre: float, power: int) -> float:
    return law.expect(lambda s: (s - centre) ** power)


def _log_interval(a: FloatArray, b: FloatArray) -> FloatArray:
    """log(Φ(b) − Φ(a)) for a <= b, from the side on which both are small; -inf where a = b."""
    a, b = np.broadcast_arrays(a, b)
    flip = a + b > 0
    low, high = np.where(flip, -b, a), np.where(flip, -a, b)
    upper = scipy.special.log_ndtr(high)
    with np.errstate(divide="ignore"):
        return upper + np.log(-np.expm1(scipy.special.log_ndtr(low) - upper))
