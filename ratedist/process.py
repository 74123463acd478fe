"""The exceedances one block meets: a Poisson process of scores, its mixed and marked forms, and thinning.

A block meets N representatives. The scores of its exceedances are a Poisson process on (−1, 1] with mean
measure Λ(s) = N·F̄(s) above s. Mixing multiplies the whole measure by a random popularity of mean 1 (a Cox
process); a recall curve q thins it to the exceedances that a hash search finds, Λ(s) = N·∫_s^1 q dF; marks
give every pair of positions its own law. Everything else follows from Λ:

- void probability P(no score > s) = E[exp(−R·Λ(s))], R the popularity (R = 1 without mixing);
- best match M: P(M <= s) is the same number;
- number of exceedances: Poisson given R·Λ(s).

docs/theory.md derives these; fusion turns them into kept blocks (``ratedist.fusion``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, whole_number
from ratedist.errors import InputError
from ratedist.similarity.base import SimilarityLaw

__all__ = [
    "EmpiricalMixing",
    "GammaMixing",
    "HashRecall",
    "MarkedProcess",
    "MatchProcess",
    "Mixing",
    "NoMixing",
]

FloatArray = NDArray[np.float64]


class Mixing(ABC):
    """Law of the popularity R of a block: R >= 0 of mean 1, a factor on all of its exceedances."""

    @abstractmethod
    def void(self, rate: ArrayLike) -> FloatArray:
        """E[exp(−R·rate)], of the shape of ``rate``."""

    @abstractmethod
    def pmf(self, count: ArrayLike, rate: ArrayLike) -> FloatArray:
        """P(count exceedances), mixed Poisson, broadcast over ``count`` and ``rate``."""

    @property
    @abstractmethod
    def variance(self) -> float:
        """Var R; a mixed Poisson number has variance rate + Var R·rate²."""

    @abstractmethod
    def rvs(self, size: int, rng: np.random.Generator) -> FloatArray:
        """Draw popularities, (size,)."""


class NoMixing(Mixing):
    """R = 1: the homogeneous process."""

    def void(self, rate: ArrayLike) -> FloatArray:
        return np.exp(-np.asarray(rate, dtype=np.float64))[()]

    def pmf(self, count: ArrayLike, rate: ArrayLike) -> FloatArray:
        return scipy.stats.poisson.pmf(count, rate)

    @property
    def variance(self) -> float:
        return 0.0

    def rvs(self, size: int, rng: np.random.Generator) -> FloatArray:
        return np.ones(size)


class GammaMixing(Mixing):
    """R gamma of mean 1 and the given shape: void (1 + Λ/k)^(−k), counts negative binomial.

    The smaller the shape, the more a few popular blocks take. Its void tends to 0 with growing Λ: blocks
    that never match have to be set apart (``EmpiricalMixing`` with a popularity of 0).
    Test: tests/ratedist/test_process.py::test_mixed_void_and_counts_against_samples.

    Raises InputError where the shape is not above 0.
    """

    def __init__(self, shape: float) -> None:
        self.shape = float(as_numbers("shape", shape, low=0.0, low_open=True))

    def void(self, rate: ArrayLike) -> FloatArray:
        return np.exp(-self.shape * np.log1p(np.asarray(rate, dtype=np.float64) / self.shape))[()]

    def pmf(self, count: ArrayLike, rate: ArrayLike) -> FloatArray:
        rate = np.asarray(rate, dtype=np.float64)
        return scipy.stats.nbinom.pmf(count, self.shape, self.shape / (self.shape + rate))

    @property
    def variance(self) -> float:
        return 1 / self.shape

    def rvs(self, size: int, rng: np.random.Generator) -> FloatArray:
        return rng.gamma(self.shape, 1 / self.shape, size)


class EmpiricalMixing(Mixing):
    """R uniform over a sample of popularities, scaled to mean 1; zeros are blocks that never match.

    A block's popularity is not its own share of exceedances in a small sample: that share also varies by
    chance, and plugging it in mixes too much.

    Raises InputError on an empty sample, a negative popularity, or where all are 0.
    """

    def __init__(self, popularities: ArrayLike) -> None:
        sample = np.ravel(as_numbers("popularities", popularities, low=0.0))
        if sample.size == 0:
            raise InputError("popularities", "an empty sample", "needs at least one popularity")
        if sample.max() == 0:
            raise InputError("popularities", 0.0, "must hold at least one number above 0")
        self.popularities = sample / sample.mean()

    def void(self, rate: ArrayLike) -> FloatArray:
        rate = np.asarray(rate, dtype=np.float64)
        return np.exp(-rate[..., None] * self.popularities).mean(axis=-1)[()]

    def pmf(self, count: ArrayLike, rate: ArrayLike) -> FloatArray:
        count, rate = np.asarray(count)[..., None], np.asarray(rate, dtype=np.float64)[..., None]
        return scipy.stats.poisson.pmf(count, rate * self.popularities).mean(axis=-1)

    @property
    def variance(self) -> float:
        return float(self.popularities.var())

    def rvs(self, size: int, rng: np.random.Generator) -> FloatArray:
        return rng.choice(self.popularities, size)


@dataclass(frozen=True)
class HashRecall:
    """Chance that random-hyperplane hashing finds a pair of score s: 1 − (1 − (1 − arccos(s)/π)^bits)^tables.

    Averaged over draws of the hyperplanes. One draw serves all pairs and deviates from it by a few hundredths
    where blocks share a mean: centre them before hashing, and read s as the centred score.
    Test: tests/ratedist/test_process.py::test_recall_of_hashed_directions.

    Attributes:
        tables: hash tables; a pair is found where any of them agrees.
        bits: hyperplanes per table; a table agrees where all of its bits do.
    """

    tables: int
    bits: int

    def __post_init__(self) -> None:
        whole_number("tables", self.tables, low=1)
        whole_number("bits", self.bits, low=1)

    def __call__(self, score: ArrayLike) -> FloatArray:
        """Recall at ``score``, of its shape."""
        s = as_numbers("score", score, low=-1.0, high=1.0)
        same = (1 - np.arccos(s) / np.pi) ** self.bits
        # log1p(−1) at score 1: every table agrees there.
        with np.errstate(divide="ignore"):
            return -np.expm1(self.tables * np.log1p(-same))


class MatchProcess:
    """Exceedances of one block against N representatives drawn from a law of similarity.

    Args:
        law: law of the score of a random pair.
        representatives: N, at least 0; need not be whole.
        mixing: popularity of the block.
        recall: chance to find a pair of a given score, called on arrays; all are found by default.

    Tests: tests/ratedist/test_process.py.

    Raises:
        InputError: a number of representatives below 0.
    """

    def __init__(
        self,
        law: SimilarityLaw,
        representatives: float,
        *,
        mixing: Mixing | None = None,
        recall: Callable[[FloatArray], ArrayLike] | None = None,
    ) -> None:
        self.law = law
        self.representatives = float(as_numbers("representatives", representatives, low=0.0))
        self.mixing = NoMixing() if mixing is None else mixing
        self.recall = recall

    def intensity(self, score: ArrayLike) -> FloatArray:
        """N·f(s)·q(s), expected exceedances per unit of score at ``score``; without the atom at 1."""
        density = self.representatives * self.law.pdf(score)
        return density if self.recall is None else density * np.asarray(self.recall(np.asarray(score)))

    def rate(self, score: ArrayLike) -> FloatArray:
        """Λ(s), expected exceedances of ``score``, of its shape."""
        if self.recall is None:
            return self.representatives * self.law.sf(score)
        scores = as_numbers("score", score)
        found = [self.law.expect(self.recall, above=float(s)) for s in scores.ravel()]
        return self.representatives * np.array(found).reshape(scores.shape)[()]

    def void(self, score: ArrayLike) -> FloatArray:
        """P(no score above ``score``): the block is kept where that is the threshold."""
        return self.mixing.void(self.rate(score))

    def best_match_cdf(self, score: ArrayLike) -> FloatArray:
        """P(M <= s) of the best match M; the mass at −∞ is the chance to meet nobody, so it is the void."""
        return self.void(score)

    def exceedance_pmf(self, count: ArrayLike, score: ArrayLike) -> FloatArray:
        """P(``count`` scores above ``score``), broadcast over both; counts are whole, at least 0."""
        return self.mixing.pmf(_counts(count), self.rate(score))

    def exceedance_variance(self, score: ArrayLike) -> FloatArray:
        """Variance of the number of scores above ``score``: Λ + Var R·Λ²."""
        rate = self.rate(score)
        return rate + self.mixing.variance * rate**2

    def best_match_mean(self, function: Callable[[FloatArray], FloatArray], threshold: float) -> float:
        """E[f(M) | M > τ] for smooth f, NaN where no match above the threshold can be.

        By the trapezium rule over a table of 2,000 scores, even in ln F̄ but denser near the threshold.
        Test: tests/ratedist/test_process.py::test_best_match_mean.

        Raises:
            InputError: a threshold outside [-1, 1].
        """
        tau = float(as_numbers("threshold", threshold, low=-1.0, high=1.0))
        scores, above = self._match_table(tau)
        if above[0] <= 0:
            return float("nan")
        middle = 0.5 * (np.asarray(function(scores[1:])) + np.asarray(function(scores[:-1])))
        mass = above[:-1] - above[1:]
        # What is left at the end of the table stands at 1: exact duplicates.
        total = float((mass * middle).sum() + above[-1] * np.asarray(function(np.ones(1)))[0])
        return total / float(above[0])

    def _match_table(self, tau: float) -> tuple[FloatArray, FloatArray]:
        """Scores from τ to just below 1 and P(M > score) there."""
        tail = float(self.law.sf(tau))
        if tail <= 0 or self.representatives == 0:
            return np.array([tau]), np.zeros(1)
        levels = tail * np.exp(-(np.linspace(0.0, 1.0, _TABLE) ** 1.5) * _REACH)
        scores = np.clip(np.append(self.law.isf(np.maximum(levels, self.law.atom)), 1.0), tau, 1.0)
        scores[0] = tau
        scores = np.unique(scores)
        rate = self.representatives * np.where(scores < 1, self.law.sf(scores), self.law.atom)
        if self.recall is not None:
            at = np.asarray(self.recall(scores), dtype=np.float64)
            piece = 0.5 * (at[1:] + at[:-1]) * (rate[:-1] - rate[1:])
            rate = np.append(np.cumsum(piece[::-1])[::-1], 0.0) + rate[-1] * at[-1]
        return scores, 1 - self.mixing.void(rate) if rate[0] > 1e-6 else rate


class MarkedProcess:
    """Exceedances of a block at each position against n_j representatives at position j.

    Args:
        exceedance: P(S > s) by position for a score: (positions, positions), new block by kept block.
        representatives: (positions,) n_j, at least 0.
        mixing: popularity of the blocks, the same law at all positions.

    Raises:
        InputError: representatives below 0.
    """

    def __init__(
        self,
        exceedance: Callable[[float], ArrayLike],
        representatives: ArrayLike,
        *,
        mixing: Mixing | None = None,
    ) -> None:
        self.exceedance = exceedance
        self.representatives = np.atleast_1d(as_numbers("representatives", representatives, low=0.0))
        self.mixing = NoMixing() if mixing is None else mixing

    def rate(self, score: float) -> FloatArray:
        """(positions,) Λ_i(s) = Σ_j n_j·P_ij(s).

        Raises InputError where the exceedances do not fit the representatives or are not chances.
        """
        chance = as_numbers("exceedance", self.exceedance(score), low=0.0, high=1.0)
        size = self.representatives.size
        if chance.shape != (size, size):
            raise InputError(
                "exceedance", f"shape {chance.shape}", f"must be ({size}, {size}) like the representatives"
            )
        return chance @ self.representatives

    def void(self, score: float) -> FloatArray:
        """(positions,) chance that no score exceeds ``score``."""
        return self.mixing.void(self.rate(score))

    def exceedance_pmf(self, count: ArrayLike, score: float) -> FloatArray:
        """(positions, …) P(``count`` scores above ``score``), counts on the last axes."""
        counts = _counts(count)
        rate = self.rate(score).reshape((-1,) + (1,) * counts.ndim)
        return self.mixing.pmf(counts[None], rate)


# Points of the table of the best match, and how far out in −ln F̄ it goes.
_TABLE = 2000
_REACH = 40.0


def _counts(count: ArrayLike) -> NDArray[np.int64]:
    array = as_numbers("count", count, low=0.0)
    if (array != np.floor(array)).any():
        raise InputError("count", float(array[array != np.floor(array)].flat[0]), "must be a whole number")
    return array.astype(np.int64)
