"""The interface of every law of similarity."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["Fit", "SimilarityLaw"]

FloatArray = NDArray[np.float64]
LawT = TypeVar("LawT")

# Ends of the panels that ``expect`` integrates over, in nats of tail probability.
PANELS = -np.array([0.0, 0.5, 1, 2, 3.5, 5.5, 8, 11, 15, 20, 26, 33, 42, 55])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


@dataclass(frozen=True)
class Fit(Generic[LawT]):
    """A fitted law with the standard error of each parameter and the size of the sample it came from.

    A standard error is NaN where the likelihood is not regular (a generalised Pareto with shape below -1/2).
    """

    law: LawT
    standard_errors: dict[str, float]
    sample_size: int


class SimilarityLaw(ABC):
    """Distribution of the score S of a random candidate pair of blocks; S is at most 1.

    Every method takes scalars or arrays and returns float64 of the same shape (a NumPy scalar for a
    scalar). A law may hold an atom at 1 (exact duplicates): then ``pdf`` is the density of the continuous
    part, which integrates to ``1 - atom``, and ``cdf`` jumps at 1. Arguments that hold NaN, and levels of
    quantiles outside [0, 1], raise InputError.
    """

    name: ClassVar[str]

    @property
    def atom(self) -> float:
        """P(S = 1)."""
        return 0.0

    @property
    def support(self) -> tuple[float, float]:
        """Smallest interval that holds S."""
        return (-1.0, 1.0)

    @abstractmethod
    def pdf(self, s: ArrayLike) -> FloatArray:
        """Density of the continuous part at ``s``."""

    @abstractmethod
    def cdf(self, s: ArrayLike) -> FloatArray:
        """P(S <= s)."""

    @abstractmethod
    def sf(self, s: ArrayLike) -> FloatArray:
        """P(S > s), accurate where it is small."""

    def logsf(self, s: ArrayLike) -> FloatArray:
        """Natural logarithm of ``sf``; -inf where that is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.sf(s))

    @abstractmethod
    def ppf(self, q: ArrayLike) -> FloatArray:
        """Quantile: the smallest s with cdf(s) >= q."""

    @abstractmethod
    def isf(self, q: ArrayLike) -> FloatArray:
        """Upper quantile: the smallest s with sf(s) <= q, accurate where q is small."""

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        """Draw a sample of the given shape."""
        return self.ppf(rng.random(size))

    @abstractmethod
    def mean(self) -> float:
        """E[S]."""

    @abstractmethod
    def var(self) -> float:
        """Var[S]."""

    def std(self) -> float:
        """Standard deviation of S."""
        return math.sqrt(self.var())

    def expect(self, g: Callable[[FloatArray], ArrayLike], above: float = -math.inf) -> float:
        """E[g(S); S > above] (not conditional), the atom at 1 included.

        By Gauss-Legendre quadrature over quantiles, on panels that are even in the logarithm of the tail
        probability: as accurate relative to ``sf(above)`` far out as in the middle, and indifferent to
        densities that are unbounded. ``g`` takes an array and must be smooth on the scale of S.
        Test: tests/ratedist/similarity/test_identities.py::test_expect_is_the_integral.
        """
        if math.isnan(above):
            raise InputError("above", above, "must be a number")
        mass = float(self.sf(above))
        upper = min(mass, 0.5)
        kinks = self._kinks()
        breaks = np.append(self.sf(kinks), self.atom)
        total = _over_levels(lambda q: g(self.isf(q)), 0.0, upper, breaks)
        if mass > 0.5:
            below = float(self.cdf(above)) if above > -math.inf else 0.0
            total += _over_levels(lambda p: g(self.ppf(p)), below, 0.5, self.cdf(kinks))
        return total

    def _kinks(self) -> FloatArray:
        """Scores inside the support at which the density is not smooth."""
        return np.empty(0)

    @classmethod
    @abstractmethod
    def fit(cls, sample: ArrayLike) -> Fit[Self]:
        """Fit to scores of pairs; raises InputError on an empty, constant or non-finite sample."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by ``law_from_dict``."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``."""

    def __repr__(self) -> str:
        described = ", ".join(
            f"{key}={value!r}"
            for key, value in self.to_dict().items()
            if key != "name" and np.ndim(value) == 0
        )
        return f"{type(self).__name__}({described})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))


def _over_levels(h: Callable[[FloatArray], ArrayLike], low: float, high: float, breaks: FloatArray) -> float:
    """∫ h(q) dq from ``low`` to ``high``, for h smooth in log q between the breaks."""
    if not high > low:
        return 0.0
    ends = np.concatenate([high * np.exp(PANELS), breaks, [low]])
    ends = np.log(np.unique(ends[(ends > 0) & (ends >= low) & (ends <= high)]))
    half = 0.5 * np.diff(ends)[:, None]
    levels = np.exp(ends[:-1, None] + half * (1 + _NODES))
    return float(np.sum(half * _WEIGHTS * levels * np.asarray(h(levels))))


def invert(
    decreasing: Callable[[FloatArray], FloatArray], level: FloatArray, low: FloatArray, high: FloatArray
) -> FloatArray:
    """Smallest s in [low, high] with ``decreasing(s) <= level``, elementwise, by bisection."""
    low = np.array(np.broadcast_to(low, level.shape), dtype=np.float64)
    high = np.array(np.broadcast_to(high, level.shape), dtype=np.float64)
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not np.any((middle > low) & (middle < high)):
            break
        under = decreasing(middle) <= level
        high = np.where(under, middle, high)
        low = np.where(under, low, middle)
    return high
