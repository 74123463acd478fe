"""The sample's own law, with a smooth tail where the sample ends."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.similarity._checks import points, positive, probabilities, sample_of, share
from ratedist.similarity._piecewise import PiecewiseLinear
from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.registry import register

__all__ = ["Empirical"]

FloatArray = NDArray[np.float64]

NEEDED = 10


@register
class Empirical(SimilarityLaw):
    """Quantiles of a sample joined by lines, and a power of the distance to 1 beyond the last of them.

    Body: a distribution function through the points (``values``, ``levels``), where ``levels`` run from 0
    to 1 *within the body*; it ends at u = values[−1], above which lies the share ``tail_share``. Tail:
    F̄(s) = tail_share·((1 − s)/(1 − u))^tail_index, the law of excesses near a finite end of the support (the
    generalised Pareto law of shape −1/tail_index whose end is 1): it reaches 0 exactly at 1, and the
    spherical law has this tail with index (r − 1)/2.

    Raises InputError where knots or levels do not increase, ``tail_share`` is not in (0, 1) or
    ``tail_index`` is not above 0.
    """

    name: ClassVar[str] = "empirical"

    def __init__(self, values: ArrayLike, levels: ArrayLike, tail_share: float, tail_index: float) -> None:
        self.body = PiecewiseLinear(np.asarray(values), np.asarray(levels))
        self.tail_share = share("tail_share", tail_share, zero=False, one=False)
        self.tail_index = positive("tail_index", tail_index)
        self.threshold = float(self.body.values[-1])

    @property
    def support(self) -> tuple[float, float]:
        return (float(self.body.values[0]), 1.0)

    def _remaining(self, s: FloatArray) -> FloatArray:
        """(1 − s)/(1 − u), 1 below u."""
        return np.clip((1 - s) / (1 - self.threshold), 0.0, 1.0)

    def pdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        body = (1 - self.tail_share) * self.body.pdf(s)
        inside = (s >= self.threshold) & (s < 1)
        left = np.where(inside, self._remaining(s), 1.0)
        tail = self.tail_share * self.tail_index / (1 - self.threshold) * left ** (self.tail_index - 1)
        return np.where(s < self.threshold, body, np.where(inside, tail, 0.0))[()]

    def sf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        body = self.tail_share + (1 - self.tail_share) * self.body.sf(s)
        tail = self.tail_share * self._remaining(s) ** self.tail_index
        return np.where(s < self.threshold, body, tail)[()]

    def logsf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        with np.errstate(divide="ignore"):
            tail = math.log(self.tail_share) + self.tail_index * np.log(self._remaining(s))
        return np.where(s < self.threshold, np.log(np.maximum(self.sf(s), self.tail_share)), tail)[()]

    def cdf(self, s: ArrayLike) -> FloatArray:
        s = points(s)
        body = (1 - self.tail_share) * self.body.cdf(s)
        return np.where(s < self.threshold, body, 1 - self.sf(s))[()]

    def isf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        tail = 1 - (1 - self.threshold) * (np.minimum(q / self.tail_share, 1.0)) ** (1 / self.tail_index)
        within = np.clip((1 - q) / (1 - self.tail_share), 0.0, 1.0)
        return np.where(q <= self.tail_share, tail, self.body.ppf(within))[()]

    def ppf(self, q: ArrayLike) -> FloatArray:
        q = probabilities(q)
        body = self.body.ppf(np.minimum(q / (1 - self.tail_share), 1.0))
        return np.where(q <= 1 - self.tail_share, body, self.isf(1 - q))[()]

    def _kinks(self) -> FloatArray:
        return self.body.values

    def mean(self) -> float:
        """E[S], exactly: the body's trapezoids and u + (1 − u)/(index + 1) in the tail."""
        tail = 1 - (1 - self.threshold) * self.tail_index / (self.tail_index + 1)
        return (1 - self.tail_share) * self.body.moment(0.0, 1) + self.tail_share * tail

    def var(self) -> float:
        """Var[S], exactly."""
        centre, index, room = self.mean(), self.tail_index, 1 - self.threshold
        gap = 1 - centre
        tail = gap * gap - 2 * gap * room * index / (index + 1) + room * room * index / (index + 2)
        return (1 - self.tail_share) * self.body.moment(centre, 2) + self.tail_share * tail

    @classmethod
    def fit(cls, sample: ArrayLike, *, tail_count: int | None = None, knots: int = 256) -> Fit[Self]:
        """The sample's quantiles, and the index of its last ``tail_count`` scores by maximum likelihood.

        With k scores above u, index = k/Σ log((1 − u)/(1 − sᵢ)), standard error index/√k. By default k is a
        tenth of the sample, at most 50: the law follows the data as far as they go. ``knots`` bounds the
        body's knots in the middle; beyond the median they are denser, 40 to a decade of tail probability.
        Test: tests/ratedist/similarity/test_fits.py::test_empirical_follows_its_sample.

        Raises InputError as every fit, with fewer than 10 scores, with exact duplicates in the sample, with
        fewer than 2 scores beyond ``tail_count`` or below it, and where these do not vary.
        """
        scores = np.sort(sample_of(sample, needed=NEEDED, duplicates=False))
        size = scores.size
        if tail_count is None:
            tail_count = max(2, min(50, size // 10))
        if not 2 <= tail_count <= size - 3:
            raise InputError("tail_count", tail_count, f"must lie between 2 and {size - 3} for {size} scores")
        threshold = scores[size - tail_count - 1]
        # Where scores tie with the threshold the tail is what lies strictly above it.
        tail = scores[scores > threshold]
        below = scores[scores <= threshold]
        if tail.size < 2 or below[0] == below[-1]:
            raise InputError(
                "sample",
                f"{np.unique(scores).size} distinct scores among {size}",
                "too few distinct scores below and above the tail's threshold; give more scores or another "
                "tail_count",
            )
        index = tail.size / float(np.sum(np.log((1 - threshold) / (1 - tail))))
        deepest = max(tail.size / below.size, 1e-9)
        fine = np.empty(0)
        if deepest < 0.5:
            fine = np.geomspace(0.5, deepest, max(2, int(40 * math.log10(0.5 / deepest))))
        levels = np.unique(np.concatenate([np.linspace(0, 1, min(knots, below.size)), 1 - fine]))
        body = PiecewiseLinear.through(below, levels)
        law = cls(body.values, body.levels, tail.size / size, index)
        return Fit(law, {"tail_index": index / math.sqrt(tail.size)}, size)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "values": self.body.values.tolist(),
            "levels": self.body.levels.tolist(),
            "tail_share": self.tail_share,
            "tail_index": self.tail_index,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(data["values"], data["levels"], data["tail_share"], data["tail_index"])
