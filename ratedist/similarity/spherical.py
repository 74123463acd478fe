"""Similarity of independent uniform directions."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import finite, points, probabilities, sample_of
from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.registry import register

__all__ = ["Spherical"]

FloatArray = NDArray[np.float64]

# Terms of the expansion of the tail ratio: its error is below 1e-14 from dim 1.01 to 1e7
# (tests/ratedist/similarity/test_spherical.py::test_tail_against_mpmath).
_TERMS = 24
_PIECE = 8192


@register
class Spherical(SimilarityLaw):
    """Cosine of two independent directions, uniform on the unit sphere of R^dim.

    F̄(s) = ½·I_{1−s²}((dim−1)/2, ½) for s >= 0 and 1 − F̄(−s) below, with density
    (1−s²)^((dim−3)/2)/B((dim−1)/2, ½). ``dim`` may be any real number above 1: the *effective* dimension of
    centred blocks is rarely whole. The limit of large dim is N(0, 1/dim).

    The survival function is (1−s²)^((dim−1)/2) times a ratio that varies slowly, as Mills' ratio does; the
    ratio is expanded once per law in Chebyshev polynomials, so that ``sf`` and ``logsf`` are quick and keep
    their relative accuracy where F̄ underflows.
    Tests: tests/ratedist/similarity/test_spherical.py::test_tail_against_mpmath.

    Raises InputError where ``dim`` is not a finite number above 1.
    """

    name: ClassVar[str] = "spherical"

    def __init__(self, dim: float) -> None:
        self.dim = finite("dim", dim)
        if self.dim <= 1:
            raise InputError("dim", dim, "must be above 1 (the dimension of the blocks' directions)")
        self._half = 0.5 * (self.dim - 1)

    @cached_property
    def _log_density_at_zero(self) -> float:
        return -float(scipy.special.betaln(self._half, 0.5))

    @cached_property
    def _bend(self) -> float:
        # Maps [0, 1] to itself so that the ratio's scale 1/√dim becomes of order 1.
        return min(2.5 / math.sqrt(self.dim), 2.0)

    @cached_property
    def _ratio_coefficients(self) -> FloatArray:
        """Chebyshev coefficients of F̄(s)(1−s²)^{−(dim−1)/2}(1 + s√dim) in the bent variable."""
        nodes = np.cos(np.pi * (np.arange(_TERMS) + 0.5) / _TERMS)
        bent = 0.5 * (nodes + 1)
        s = self._bend * bent / (1 + self._bend - bent)
        direct = _survival(self._half, s)
        log_power = self._half * (np.log1p(-s) + np.log1p(s))
        usable = direct > 1e-250
        ratio = np.empty_like(s)
        ratio[usable] = direct[usable] / np.exp(log_power[usable])
        far = s[~usable]
        ratio[~usable] = 0.5 * far / self._half * math.exp(self._log_density_at_zero)
        ratio[~usable] *= _beta_fraction(self._half, (1 - far) * (1 + far))
        scaled = ratio * (1 + s * math.sqrt(self.dim))
        return np.asarray(np.polynomial.chebyshev.chebfit(nodes, scaled, _TERMS - 1), dtype=np.float64)

    def _ratio(self, s: FloatArray) -> FloatArray:
        bent = s * (1 + self._bend) / (s + self._bend)
        value = np.polynomial.chebyshev.chebval(2 * bent - 1, self._ratio_coefficients)
        return value / (1 + s * math.sqrt(self.dim))

    def _logsf_upper(self, s: FloatArray) -> FloatArray:
        """log F̄ for s in [0, 1]."""
        with np.errstate(divide="ignore"):
            return self._half * (np.log1p(-s) + np.log1p(s)) + np.log(self._ratio(s))

    def pdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        inside = np.abs(s) < 1
        size = np.where(inside, np.abs(s), 0.0)
        log_density = (self._half - 1) * (np.log1p(-size) + np.log1p(size)) + self._log_density_at_zero
        edge = np.inf if self.dim < 3 else math.exp(self._log_density_at_zero) if self.dim == 3 else 0.0
        return np.where(inside, np.exp(log_density), np.where(np.abs(s) == 1, edge, 0.0))[()]

    def sf(self, s: ArrayLike) -> FloatArray:
        s = np.clip(points(s), -1.0, 1.0)
        flat = s.ravel()
        tail = np.empty_like(flat)
        # A grid is done in pieces whose intermediate arrays stay in the cache.
        with np.errstate(divide="ignore"):
            for start in range(0, flat.size, _PIECE):
                piece = flat[start : start + _PIECE]
                size = np.abs(piece)
                upper = np.exp(self._half * (np.log1p(-size) + np.log1p(size))) * self._ratio(size)
                tail[start : start + _PIECE] = np.where(piece >= 0, upper, 1 - upper)
        return tail.reshape(s.shape)[()]

    def cdf(self, s: ArrayLike) -> FloatArray:
        return self.sf(-points(s))

    def logsf(self, s: ArrayLike) -> FloatArray:
        s = np.clip(points(s), -1.0, 1.0)
        upper = self._logsf_upper(np.abs(s))
        return np.where(s >= 0, upper, np.log1p(-np.exp(upper)))[()]

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        small = np.minimum(q, 1 - q)
        # Near the middle s² carries the digits, in the tail 1 − s² does.
        tail = np.sqrt(1 - scipy.special.betaincinv(self._half, 0.5, 2 * small))
        middle = np.sqrt(scipy.special.betaincinv(0.5, self._half, 1 - 2 * small))
        size = np.where(small < 0.1, tail, middle)
        return np.where(q <= 0.5, size, -size)[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        return -self.isf(q)

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        square = rng.beta(0.5, self._half, size)
        return np.where(rng.random(size) < 0.5, -1.0, 1.0) * np.sqrt(square)

    def mean(self) -> float:
        return 0.0

    def var(self) -> float:
        return 1 / self.dim

    @classmethod
    def fit(cls, sample: ArrayLike) -> Fit[Self]:
        """Effective dimension by maximum likelihood.

        Solves mean(log(1 − s²)) = ψ((r−1)/2) − ψ(r/2) for r; the standard error is the inverse root of the
        information n·(ψ′((r−1)/2) − ψ′(r/2))/4, which assumes independent scores.
        Test: tests/ratedist/similarity/test_fits.py::test_fits_recover_their_law.

        Raises InputError as every fit, and where the sample holds exact duplicates (fit a mixture) or
        scores of -1.
        """
        scores = sample_of(sample, needed=2, duplicates=False)
        if scores.min() <= -1:
            raise InputError(
                "sample", -1.0, "holds scores of -1, which independent directions never have; leave them out"
            )
        target = float(np.mean(np.log1p(-scores) + np.log1p(scores)))
        low, high = math.log1p(1e-9), 40.0
        log_dim = scipy.optimize.brentq(lambda x: _mean_log_gap(math.exp(x)) - target, low, high, xtol=1e-13)
        law = cls(math.exp(log_dim))
        error = 1 / math.sqrt(scores.size * _information(law.dim))
        return Fit(law, {"dim": error}, scores.size)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data["dim"])


def _survival(half: float, s: FloatArray) -> FloatArray:
    """½·I_{1−s²}(half, ½) for s in [0, 1], from the side on which the argument keeps its digits."""
    near = 0.5 * scipy.special.betaincc(0.5, half, s * s)
    far = 0.5 * scipy.special.betainc(half, 0.5, (1 - s) * (1 + s))
    return np.where(s * s < 0.5, near, far)


def _beta_fraction(half: float, x: FloatArray) -> FloatArray:
    """I_x(half, ½)·half·B(half, ½)/(x^half (1−x)^½): the continued fraction DLMF 8.17.22, far in the tail."""
    b = 0.5
    c = np.ones_like(x)
    d = 1 / (1 - (half + b) * x / (half + 1))
    value = d.copy()
    for m in range(1, 200):
        even = m * (b - m) * x / ((half + 2 * m - 1) * (half + 2 * m))
        odd = -(half + m) * (half + b + m) * x / ((half + 2 * m) * (half + 2 * m + 1))
        d = 1 / (1 + even * d)
        c = 1 + even / c
        value *= c * d
        d = 1 / (1 + odd * d)
        c = 1 + odd / c
        value *= c * d
        if np.all(np.abs(c * d - 1) < 1e-16):
            break
    return value


def _mean_log_gap(dim: float) -> float:
    """E[log(1 − S²)] under the spherical law."""
    if dim > 1e5:
        return -1 / dim - 1.5 / dim**2
    return float(scipy.special.psi(0.5 * (dim - 1)) - scipy.special.psi(0.5 * dim))


def _information(dim: float) -> float:
    """Fisher information of one score about the dimension."""
    if dim > 1e5:  # the difference below has lost its digits there
        return 0.5 / dim**2
    return 0.25 * float(scipy.special.polygamma(1, 0.5 * (dim - 1)) - scipy.special.polygamma(1, 0.5 * dim))
