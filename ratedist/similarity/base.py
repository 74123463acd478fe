"""The interface of every law of similarity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Fit", "SimilarityLaw"]

FloatArray = NDArray[np.float64]
LawT = TypeVar("LawT", bound="SimilarityLaw")


@dataclass(frozen=True)
class Fit(Generic[LawT]):
    """A fitted law with the standard error of each parameter and the size of the sample it came from."""

    law: LawT
    standard_errors: dict[str, float]
    sample_size: int


class SimilarityLaw(ABC):
    """Distribution of the score S of a random candidate pair of blocks; S is at most 1.

    Every method takes scalars or arrays and returns float64 arrays of the same shape. A law may hold
    an atom at 1 (exact duplicates): then ``pdf`` is the density of the continuous part, which
    integrates to ``1 - atom``, and ``cdf`` jumps at 1.
    """

    name: ClassVar[str]

    @property
    def atom(self) -> float:
        """P(S = 1)."""
        return 0.0

    @abstractmethod
    def pdf(self, s: ArrayLike) -> FloatArray:
        """Density of the continuous part at ``s``."""

    @abstractmethod
    def cdf(self, s: ArrayLike) -> FloatArray:
        """P(S <= s)."""

    @abstractmethod
    def sf(self, s: ArrayLike) -> FloatArray:
        """P(S > s), accurate where it is small."""

    @abstractmethod
    def ppf(self, q: ArrayLike) -> FloatArray:
        """Quantile: the smallest s with cdf(s) >= q."""

    @abstractmethod
    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        """Draw a sample."""

    @abstractmethod
    def mean(self) -> float:
        """E[S]."""

    @abstractmethod
    def var(self) -> float:
        """Var[S]."""

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
