"""The Gaussian law of the paper."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.similarity._checks import finite, points, positive, probabilities, sample_of
from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.registry import register

__all__ = ["Gaussian"]

FloatArray = NDArray[np.float64]


@register
class Gaussian(SimilarityLaw):
    """S = min(X, 1) with X normal: the paper's law, kept within S <= 1.

    Kampeas and Haleva (arXiv 2601.03067) take similarities as normal, and a normal variable can exceed 1,
    which no score does. Every score counts as min(score, 1), so the mass of X beyond 1 becomes an atom at 1:
    ``sf`` below 1 is then exactly the paper's, at every threshold, and errors computed from S stay
    non-negative. Where that atom is not negligible the law does not fit; ``TruncatedGaussian`` renormalises
    instead. The mass below −1 stays where it is: no threshold reaches it.

    ``mean`` and ``std`` of the constructor are those of X (attributes ``location`` and ``scale``); the
    methods ``mean()`` and ``var()`` are those of S.

    Raises InputError where ``mean`` is not finite or ``std`` is not above 0.
    """

    name: ClassVar[str] = "gaussian"

    def __init__(self, mean: float, std: float) -> None:
        self.location = finite("mean", mean)
        self.scale = positive("std", std)

    @property
    def atom(self) -> float:
        """Mass that the normal variable has beyond 1."""
        return float(scipy.special.ndtr(-(1 - self.location) / self.scale))

    @property
    def support(self) -> tuple[float, float]:
        return (-math.inf, 1.0)

    def _standard(self, s: FloatArray) -> FloatArray:
        return (s - self.location) / self.scale

    def pdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        density = np.exp(-0.5 * self._standard(s) ** 2) / (self.scale * math.sqrt(2 * math.pi))
        return np.where(s <= 1, density, 0.0)[()]

    def cdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        return np.where(s < 1, scipy.special.ndtr(self._standard(s)), 1.0)[()]

    def sf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        return np.where(s < 1, scipy.special.ndtr(-self._standard(s)), 0.0)[()]

    def logsf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        return np.where(s < 1, scipy.special.log_ndtr(-self._standard(s)), -np.inf)[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        return np.minimum(self.location + self.scale * scipy.special.ndtri(q), 1.0)[()]

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        return np.minimum(self.location - self.scale * scipy.special.ndtri(q), 1.0)[()]

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        return np.minimum(rng.normal(self.location, self.scale, size), 1.0)

    def _gap(self) -> tuple[float, float, float]:
        """m, Φ(m/σ) and φ(m/σ) with m = 1 − location: what the moments of 1 − S are made of."""
        gap = 1 - self.location
        z = gap / self.scale
        return gap, float(scipy.special.ndtr(z)), math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    def mean(self) -> float:
        """E[S] = 1 − mΦ(m/σ) − σφ(m/σ), m = 1 − location."""
        gap, below, density = self._gap()
        return 1 - gap * below - self.scale * density

    def var(self) -> float:
        """Var[S] = σ²Φ + m²Φ(1−Φ) + mσφ(1−2Φ) − σ²φ², all at m/σ."""
        gap, below, density = self._gap()
        return (
            self.scale**2 * (below - density**2)
            + gap**2 * below * (1 - below)
            + gap * self.scale * density * (1 - 2 * below)
        )

    @classmethod
    def fit(cls, sample: ArrayLike) -> Fit[Self]:
        """The sample's mean and standard deviation, exact duplicates included, as the paper does it.

        The standard error of ``std`` uses the sample's fourth moment, so that it stays honest where the
        scores are not normal: √((m₄ − s⁴)/n)/(2s).
        """
        scores = sample_of(sample, needed=2)
        mean = float(scores.mean())
        centred = scores - mean
        variance = float(np.mean(centred**2))
        fourth = float(np.mean(centred**4))
        errors = {
            "mean": math.sqrt(variance / scores.size),
            "std": math.sqrt(max(fourth - variance**2, 0.0) / scores.size) / (2 * math.sqrt(variance)),
        }
        return Fit(cls(mean, math.sqrt(variance)), errors, scores.size)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "mean": self.location, "std": self.scale}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data["mean"], data["std"])
