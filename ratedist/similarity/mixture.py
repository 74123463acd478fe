"""Classes of pairs, each with its own law, and exact duplicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import DUPLICATE, floats, points, probabilities, sample_of, share
from ratedist.similarity.base import Fit, SimilarityLaw, invert
from ratedist.similarity.empirical import Empirical
from ratedist.similarity.registry import law_from_dict, register

__all__ = ["Mixture"]

FloatArray = NDArray[np.float64]


@register
class Mixture(SimilarityLaw):
    """With probability ``duplicates`` S is exactly 1, with probability weights[i] it follows laws[i].

    The classes are what the caller can tell apart: same or different topic, same or different position. An
    atom of a component adds to that of the mixture.

    Raises InputError where weights and laws differ in number, a weight or ``duplicates`` is outside [0, 1],
    or their sum is not 1 within 1e-9.
    """

    name: ClassVar[str] = "mixture"

    def __init__(
        self, weights: Sequence[float], laws: Sequence[SimilarityLaw], duplicates: float = 0.0
    ) -> None:
        self.laws = tuple(laws)
        self.weights = tuple(share("weights", weight) for weight in weights)
        self.duplicates = share("duplicates", duplicates)
        if len(self.weights) != len(self.laws):
            raise InputError("weights", list(weights), f"must be one for each of the {len(self.laws)} laws")
        for law in self.laws:
            if not isinstance(law, SimilarityLaw):
                raise InputError("laws", law, "must be laws of similarity of one pair")
        total = self.duplicates + sum(self.weights)
        if abs(total - 1) > 1e-9:
            raise InputError(
                "weights", list(weights), f"must sum to 1 with duplicates; they sum to {total:.12g}"
            )

    @property
    def atom(self) -> float:
        """P(S = 1): duplicates, and the atoms of the classes."""
        return self.duplicates + sum(w * law.atom for w, law in zip(self.weights, self.laws, strict=True))

    @property
    def support(self) -> tuple[float, float]:
        ends = [law.support for law in self.laws]
        low = min((end[0] for end in ends), default=1.0)
        high = 1.0 if self.duplicates > 0 or not ends else max(end[1] for end in ends)
        return (low, high)

    def _kinks(self) -> FloatArray:
        return np.unique(np.concatenate([np.empty(0), *(law._kinks() for law in self.laws)]))

    def _sum(self, values: Callable[[SimilarityLaw], ArrayLike], shape: tuple[int, ...]) -> FloatArray:
        total = np.zeros(shape)
        for weight, law in zip(self.weights, self.laws, strict=True):
            total += weight * np.asarray(values(law))
        return total

    def pdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        return self._sum(lambda law: law.pdf(s), s.shape)[()]

    def cdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        return np.where(s >= 1, 1.0, self._sum(lambda law: law.cdf(s), s.shape))[()]

    def sf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        return (self._sum(lambda law: law.sf(s), s.shape) + np.where(s < 1, self.duplicates, 0.0))[()]

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        if not self.laws:
            return np.where(q < 1, 1.0, self.support[0])[()]
        rest = np.clip((q - self.duplicates) / max(1 - self.duplicates, 1e-300), 0.0, 1.0)
        ends = np.array([law.isf(rest) for law in self.laws])
        return np.where(q < self.duplicates, 1.0, self._between(self.sf, q, ends))[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        if not self.laws:
            return np.where(q > 0, 1.0, self.support[0])[()]
        rest = np.clip(q / max(1 - self.duplicates, 1e-300), 0.0, 1.0)
        ends = np.array([law.ppf(rest) for law in self.laws])
        s = self._between(lambda x: -self.cdf(x), -q, ends)
        return np.where(q > 1 - self.duplicates, 1.0, s)[()]

    def _between(
        self, falling: Callable[[FloatArray], FloatArray], level: FloatArray, ends: FloatArray
    ) -> FloatArray:
        """Where ``falling`` reaches ``level``: between the classes' smallest and largest quantile."""
        low, high = ends.min(axis=0), ends.max(axis=0)
        infinite = np.isinf(low)
        found = invert(falling, level, np.where(infinite, -2.0, low), np.maximum(high, -2.0))
        return np.where(infinite & np.isinf(high), -np.inf, found)[()]

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        edges = np.cumsum(self.weights)
        which = np.searchsorted(edges, rng.random(size), side="right")
        drawn = np.ones(which.shape)
        for index, law in enumerate(self.laws):
            mine = which == index
            drawn[mine] = law.rvs(int(mine.sum()), rng)
        return drawn

    def mean(self) -> float:
        """E[S]."""
        return self.duplicates + sum(w * law.mean() for w, law in zip(self.weights, self.laws, strict=True))

    def var(self) -> float:
        """Var[S]: within the classes and between them."""
        centre = self.mean()
        spread = self.duplicates * (1 - centre) ** 2
        for weight, law in zip(self.weights, self.laws, strict=True):
            spread += weight * (law.var() + (law.mean() - centre) ** 2)
        return spread

    def expect(self, g: Callable[[FloatArray], ArrayLike], above: float = -math.inf) -> float:
        """E[g(S); S > above], class by class."""
        if math.isnan(above):
            raise InputError("above", above, "must be a number")
        total = sum(w * law.expect(g, above) for w, law in zip(self.weights, self.laws, strict=True))
        if self.duplicates > 0 and above < 1:
            total += self.duplicates * float(np.asarray(g(np.ones(1)))[0])
        return float(total)

    @classmethod
    def fit(
        cls,
        sample: ArrayLike,
        *,
        labels: ArrayLike | None = None,
        law: type[SimilarityLaw] = Empirical,
        duplicate_at: float = 1 - DUPLICATE,
    ) -> Fit[Self]:
        """Set exact duplicates apart, and fit ``law`` to each class of the rest.

        Duplicates are scores of at least ``duplicate_at``. ``labels`` (same shape as ``sample``) names the
        class of each pair; without it the rest is one class. The classes stand in the order of their sorted
        labels. Standard errors: ``duplicates`` and ``weights.i`` binomial, ``laws.i.parameter`` from the
        class's own fit.
        Test: tests/ratedist/similarity/test_fits.py::test_mixture_fit_recovers_classes.

        Raises InputError as every fit (a class that is constant or too small is named by its label), and
        where labels do not match the sample. A sample of nothing but duplicates is a law: duplicates = 1.
        """
        raw = floats(sample, "sample").ravel()
        if raw.size and np.all(raw == raw[0]) and raw[0] >= duplicate_at:
            return Fit(cls([], [], 1.0), {"duplicates": 0.0}, raw.size)
        scores = sample_of(sample, needed=2)
        names = np.zeros(scores.size, dtype=np.int64) if labels is None else np.asarray(labels).ravel()
        if names.size != scores.size:
            raise InputError(
                "labels", f"{names.size} labels", f"must be one for each of {scores.size} scores"
            )
        same = scores >= duplicate_at
        size = scores.size
        atom = float(same.mean())
        errors = {"duplicates": math.sqrt(atom * (1 - atom) / size)}
        weights, laws = [], []
        for index, label in enumerate(np.unique(names[~same])):
            mine = scores[~same & (names == label)]
            try:
                fitted = law.fit(mine)
            except InputError as error:
                where = "sample" if labels is None else f"sample[labels == {label.item()!r}]"
                raise InputError(where, error.value, error.remedy) from error
            weight = mine.size / size
            weights.append(weight)
            laws.append(fitted.law)
            errors[f"weights.{index}"] = math.sqrt(weight * (1 - weight) / size)
            errors |= {f"laws.{index}.{key}": value for key, value in fitted.standard_errors.items()}
        return Fit(cls(weights, laws, atom), errors, size)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": list(self.weights),
            "laws": [law.to_dict() for law in self.laws],
            "duplicates": self.duplicates,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        laws = [law_from_dict(law) for law in data["laws"]]
        return cls(data["weights"], laws, data["duplicates"])
