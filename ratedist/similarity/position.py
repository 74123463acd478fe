"""A law for every pair of positions within the requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import DUPLICATE, floats, points, probabilities
from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.empirical import NEEDED, Empirical
from ratedist.similarity.mixture import Mixture
from ratedist.similarity.registry import law_from_dict, register

__all__ = ["PositionMarked"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@register
class PositionMarked:
    """S between a block at position i and a block at position j of another request follows a law of (i, j).

    ``laws`` are the distinct laws and ``index`` (P, P) says which of them belongs to each pair of positions;
    the classmethods build both from a matrix of laws or from a law per difference of positions. The methods
    are those of ``SimilarityLaw``; their results gain two trailing axes (P, P): ``sf(s)`` of thresholds (T,)
    is (T, P, P). Each distinct law is evaluated once.

    Raises InputError where ``index`` is not a square matrix of indices into ``laws``.
    """

    name: ClassVar[str] = "position-marked"

    def __init__(self, laws: Sequence[SimilarityLaw], index: ArrayLike) -> None:
        self.laws = tuple(laws)
        numbers = np.asarray(index)
        if numbers.ndim != 2 or numbers.shape[0] != numbers.shape[1] or numbers.size == 0:
            raise InputError(
                "index", f"shape {numbers.shape}", "must be a square matrix (positions, positions)"
            )
        if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= len(self.laws):
            raise InputError(
                "index",
                f"values {numbers.min()} to {numbers.max()}",
                f"must be whole numbers below {len(self.laws)}, the number of laws",
            )
        for law in self.laws:
            if not isinstance(law, SimilarityLaw):
                raise InputError("laws", law, "must be laws of similarity of one pair")
        self.index: IntArray = numbers.astype(np.int64)

    @classmethod
    def from_matrix(cls, laws: Sequence[Sequence[SimilarityLaw]]) -> Self:
        """From laws[i][j] for every pair of positions; equal objects are evaluated once."""
        size = len(laws)
        if size == 0 or any(len(row) != size for row in laws):
            raise InputError("laws", [len(row) for row in laws], "must be a square matrix of laws")
        distinct: dict[int, int] = {}
        flat = [law for row in laws for law in row]
        index = [distinct.setdefault(id(law), len(distinct)) for law in flat]
        by_id = {id(law): law for law in flat}
        return cls([by_id[key] for key in distinct], np.array(index).reshape(size, size))

    @classmethod
    def from_differences(cls, laws: Sequence[SimilarityLaw]) -> Self:
        """From laws[m] for |i − j| = m; as many positions as laws."""
        if len(laws) == 0:
            raise InputError("laws", [], "must hold a law for every difference of positions, 0 first")
        positions = np.arange(len(laws))
        return cls(laws, np.abs(positions[:, None] - positions[None, :]))

    @property
    def positions(self) -> int:
        """P."""
        return int(self.index.shape[0])

    @property
    def atom(self) -> FloatArray:
        """P(S = 1) of every pair of positions (P, P)."""
        return np.array([law.atom for law in self.laws])[self.index]

    @property
    def support(self) -> tuple[float, float]:
        """Smallest interval that holds every S."""
        ends = [law.support for law in self.laws]
        return (min(end[0] for end in ends), max(end[1] for end in ends))

    def cell(self, i: int, j: int) -> SimilarityLaw:
        """The law of positions i and j."""
        return self.laws[self.index[i, j]]

    def _spread(self, value: Callable[[SimilarityLaw], ArrayLike], shape: tuple[int, ...]) -> FloatArray:
        each = np.empty((*shape, len(self.laws)))
        for number, law in enumerate(self.laws):
            each[..., number] = value(law)
        return each[..., self.index]

    def pdf(self, s: ArrayLike) -> FloatArray:
        """Density of every pair of positions at ``s`` (...): (..., P, P)."""
        s = points(s)
        return self._spread(lambda law: law.pdf(s), s.shape)

    def cdf(self, s: ArrayLike) -> FloatArray:
        """P(S <= s) of every pair of positions: (..., P, P)."""
        s = points(s)
        return self._spread(lambda law: law.cdf(s), s.shape)

    def sf(self, s: ArrayLike) -> FloatArray:
        """P(S > s) of every pair of positions: (..., P, P)."""
        s = points(s)
        return self._spread(lambda law: law.sf(s), s.shape)

    def logsf(self, s: ArrayLike) -> FloatArray:
        """Natural logarithm of ``sf``: (..., P, P)."""
        s = points(s)
        return self._spread(lambda law: law.logsf(s), s.shape)

    def ppf(self, q: ArrayLike) -> FloatArray:
        """Quantile of every pair of positions: (..., P, P)."""
        q = probabilities(q)
        return self._spread(lambda law: law.ppf(q), q.shape)

    def isf(self, q: ArrayLike) -> FloatArray:
        """Upper quantile of every pair of positions: (..., P, P)."""
        q = probabilities(q)
        return self._spread(lambda law: law.isf(q), q.shape)

    def rvs(self, size: int | tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        """Independent scores of every pair of positions: size + (P, P)."""
        shape = (size,) if isinstance(size, int) else tuple(size)
        drawn = np.empty((*shape, *self.index.shape))
        for number, law in enumerate(self.laws):
            mine = self.index == number
            drawn[..., mine] = law.rvs((*shape, int(mine.sum())), rng)
        return drawn

    def mean(self) -> FloatArray:
        """E[S] of every pair of positions (P, P)."""
        return self._spread(lambda law: law.mean(), ())

    def var(self) -> FloatArray:
        """Var[S] of every pair of positions (P, P)."""
        return self._spread(lambda law: law.var(), ())

    def expect(self, g: Callable[[FloatArray], ArrayLike], above: float = -math.inf) -> FloatArray:
        """E[g(S); S > above] of every pair of positions (P, P)."""
        return self._spread(lambda law: law.expect(g, above), ())

    def marginal(self) -> Mixture:
        """Law of S for positions drawn at random: what is left when positions are not told apart."""
        counts = np.bincount(self.index.ravel(), minlength=len(self.laws)) / self.index.size
        used = np.flatnonzero(counts)
        return Mixture([float(counts[k]) for k in used], [self.laws[k] for k in used])

    @classmethod
    def fit(
        cls,
        sample: ArrayLike,
        *,
        by: str = "pair",
        law: type[SimilarityLaw] = Empirical,
        duplicate_at: float = 1 - DUPLICATE,
    ) -> Fit[Self]:
        """Fit a law to the scores of every pair of positions, or of every difference of positions.

        ``sample`` (n, P, P): sample[k, i, j] is the score of position i of one request and position j of
        another, for n pairs of requests; (i, j) and (j, i) are pooled, as the order of the requests means
        nothing. ``by`` is "pair" (a law per {i, j}) or "difference" (a law per |i − j|). Exact duplicates are
        set apart in each cell (its law then is a mixture). A cell whose remaining scores are too few or
        constant takes its continuous part from all cells of the same difference, or else from all cells; its
        share of duplicates stays its own. Standard errors are named "laws.k.parameter", k as in ``laws``.
        Test: tests/ratedist/similarity/test_position.py::test_fit_recovers_the_laws.

        Raises InputError where ``sample`` has another shape, holds NaN or infinity, ``by`` is unknown, or all
        cells together cannot be fitted.
        """
        scores = floats(sample, "sample")
        if scores.ndim != 3 or scores.shape[1] != scores.shape[2] or scores.size == 0:
            raise InputError(
                "sample", f"shape {scores.shape}", "must be (pairs of requests, positions, positions)"
            )
        if not np.isfinite(scores).all():
            where = tuple(int(x) for x in np.argwhere(~np.isfinite(scores))[0])
            raise InputError(
                "sample", float(scores[where]), f"must be finite; the first that is not stands at {where}"
            )
        if by not in ("pair", "difference"):
            raise InputError("by", by, "must be 'pair' or 'difference'")
        size = scores.shape[1]
        row, column = np.indices((size, size))
        difference = np.abs(row - column)
        if by == "difference":
            index = difference
        else:
            low, high = np.minimum(row, column), np.maximum(row, column)
            index = np.unique(low * size + high, return_inverse=True)[1].reshape(size, size)
        pools: dict[str, dict[int, SimilarityLaw]] = {"difference": {}, "all": {}}

        def rest(mine: NDArray[np.bool_]) -> FloatArray:
            values = scores[:, mine].ravel()
            return values[values < duplicate_at]

        def enough(values: FloatArray) -> bool:
            return values.size >= NEEDED and np.unique(values).size > NEEDED // 2

        def pooled(lag: int) -> SimilarityLaw:
            values = rest(difference == lag)
            kind, key = ("difference", lag) if enough(values) else ("all", 0)
            if key not in pools[kind]:
                values = values if kind == "difference" else rest(difference >= 0)
                pools[kind][key] = law.fit(values).law
            return pools[kind][key]

        laws: list[SimilarityLaw] = []
        errors: dict[str, float] = {}
        for number in range(int(index.max()) + 1):
            mine = index == number
            count = scores.shape[0] * int(mine.sum())
            values = rest(mine)
            duplicates = 1 - values.size / count
            if duplicates == 1:
                laws.append(Mixture([], [], 1.0))
                continue
            if enough(values):
                fitted = law.fit(values)
                continuous = fitted.law
                errors |= {f"laws.{number}.{key}": value for key, value in fitted.standard_errors.items()}
            else:
                continuous = pooled(int(difference[mine][0]))
            if duplicates > 0:
                laws.append(Mixture([1 - duplicates], [continuous], duplicates))
                errors[f"laws.{number}.duplicates"] = math.sqrt(duplicates * (1 - duplicates) / count)
            else:
                laws.append(continuous)
        return Fit(cls(laws, index), errors, scores.shape[0])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, read back by ``law_from_dict``."""
        return {
            "name": self.name,
            "laws": [law.to_dict() for law in self.laws],
            "index": self.index.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``."""
        return cls([law_from_dict(law) for law in data["laws"]], data["index"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositionMarked) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self), self.index.tobytes()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(positions={self.positions}, laws={len(self.laws)})"
