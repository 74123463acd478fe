"""How often the next draw is of a kind never drawn before: Pitman-Yor processes, and contexts that decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

__all__ = ["PitmanYor", "Succession", "fit_pitman_yor", "fit_succession"]

FloatArray = NDArray[np.float64]

_CHANCES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.999])
_HOLD = 0.05
_UNIQUE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class PitmanYor:
    """Draws of kinds: a share is unique, the others follow a Pitman-Yor process.

    After n draws of K kinds the process's next is new with chance (θ + dK)/(θ + n), else of kind k by
    n_k − d. d in [0, 1): K grows as n^d (d > 0) or θ·ln n (d = 0). With d < 0 and θ = −d·M there are M kinds
    in all. A unique draw is of a kind that never comes again: without it everything would be met sooner or
    later. Source: J. Pitman and M. Yor, Annals of Probability 25 (1997) 855; the partition's probability is
    the exchangeable one of J. Pitman, Probability Theory and Related Fields 102 (1995) 145, summed over which
    of the kinds seen once are unique.

    Attributes:
        discount: d.
        strength: θ > −d.
        unique: share of unique draws.
    """

    discount: float
    strength: float
    unique: float = 0.0

    def new(self, sizes: ArrayLike) -> float:
        """Chance that the next draw is of a new kind, after draws with these counts by kind.

        Test: tests/sim/test_popularity.py::test_likelihood_is_the_product_of_the_draws.
        """
        return self._next(np.asarray(sizes, dtype=np.float64))[0]

    def weights(self, sizes: ArrayLike) -> FloatArray:
        """(kinds,) weights of the kinds, given that the next draw is of one of them."""
        counts = np.asarray(sizes, dtype=np.float64)
        _, once, several = self._next(counts)
        return np.where(counts == 1, once, several) * (counts - self.discount)

    def log_likelihood(self, sizes: ArrayLike) -> float:
        """Log probability of a partition into groups of these sizes.

        Test: tests/sim/test_popularity.py::test_likelihood_is_the_product_of_the_draws.
        """
        one = (np.array([x]) for x in (self.discount, self.strength, self.unique))
        return float(_log_likelihood(np.asarray(sizes, dtype=np.float64), *one)[0])

    def _next(self, sizes: FloatArray) -> tuple[float, float, float]:
        """Chance that the next draw is new, and factors on n_k − d: of kinds seen once, of others."""
        draws, kinds, once = sizes.sum(), sizes.size, int((sizes == 1).sum())
        if draws == 0:
            return 1.0, 1.0, 1.0
        if self.unique == 0:
            new = (self.strength + self.discount * kinds) / (self.strength + draws)
            return min(1.0, max(0.0, new)), 1.0, 1.0
        # Posterior of how many of the kinds seen once are unique.
        gone = np.arange(once + 1)
        one = (np.array([x]) for x in (self.discount, self.strength, self.unique))
        terms = _terms(sizes, *one)[0]
        if not np.isfinite(terms).any():
            return self.unique, 1.0, 1.0  # more kinds than the library holds: no other is left
        weight = np.exp(terms - terms.max())
        weight /= weight.sum()
        rest = draws - gone
        total = np.where(rest > 0, self.strength + rest, 1.0)
        fresh = np.where(
            rest > 0, np.clip((self.strength + self.discount * (kinds - gone)) / total, 0, 1), 1.0
        )
        known = weight / total * (rest > 0)
        new = self.unique + (1 - self.unique) * float(weight @ fresh)
        return new, float(known @ (1 - gone / max(once, 1))), float(known.sum())


@dataclass(frozen=True)
class Succession:
    """What follows a context: some decide it, some leave it free, the others draw by one law.

    Attributes:
        sure: chance that a context always has the same successor.
        free: chance that it never has the same one twice.
        law: successors of the other contexts.
    """

    sure: float
    free: float
    law: PitmanYor

    def new(self, sizes: ArrayLike) -> float:
        """Chance that the next successor is none of those seen after this context so often.

        By Bayes' rule over what the context can still be.
        Test: tests/sim/test_popularity.py::test_succession_is_consistent.
        """
        counts = np.asarray(sizes, dtype=np.float64)
        draws, kinds = counts.sum(), counts.size
        if draws == 0:
            return 1.0
        by_law = self.law.new(counts)
        if 1 < kinds < draws:
            return by_law
        sure = self.sure if kinds == 1 else 0.0
        free = self.free if kinds == draws else 0.0
        mixed = (1 - self.sure - self.free) * float(np.exp(self.law.log_likelihood(counts)))
        total = sure + free + mixed
        return by_law if total <= 0 else (free + mixed * by_law) / total


def fit_pitman_yor(partitions: Sequence[Sequence[int]]) -> PitmanYor:
    """Maximum likelihood from partitions (group sizes each) that share their parameters.

    A grid (libraries of finite size included): the likelihood is smooth and the data are few, so more digits
    would mean nothing. Partitions of one draw say nothing; without others every draw is taken to be new.
    Test: tests/sim/test_popularity.py::test_fit_recovers_the_growth.
    """
    return _fit(partitions, np.zeros((1, 2))).law


def fit_succession(partitions: Sequence[Sequence[int]]) -> Succession:
    """Maximum likelihood from the successors' counts after each context; see ``fit_pitman_yor``."""
    pairs = np.stack(np.meshgrid(_CHANCES, _CHANCES, indexing="ij"), axis=-1).reshape(-1, 2)
    return _fit(partitions, pairs[pairs.sum(axis=1) < 1])


def _fit(partitions: Sequence[Sequence[int]], chances: FloatArray) -> Succession:
    """The best of the given (sure, free) and of the candidates for the law."""
    kinds = Counter(tuple(sorted(sizes)) for sizes in partitions if sum(sizes) > 1)
    if not kinds:
        return Succession(0.0, 0.0, PitmanYor(0.999, 1.0))
    candidates = _candidates(max(sum(sizes) for sizes in kinds), max(len(sizes) for sizes in kinds))
    sure, free = chances[:, :1], chances[:, 1:]
    total = np.zeros((len(chances), candidates[0].size))
    for sizes, times in kinds.items():
        log_chance = _log_likelihood(np.array(sizes, dtype=np.float64), *candidates)
        # Where contexts that decide and free ones explain everything, nothing else would hold the law.
        total += _HOLD * times * np.maximum(log_chance, -1e3)
        if len(sizes) > 1 and len(sizes) < sum(sizes):
            total += times * (np.log(1 - sure - free) + log_chance)
            continue
        mixed = (1 - sure - free) * np.exp(log_chance)
        mixed = mixed + sure * (len(sizes) == 1) + free * (len(sizes) == sum(sizes))
        total += times * np.log(np.maximum(mixed, 1e-300))
    at_chances, at = np.unravel_index(int(total.argmax()), total.shape)
    law = PitmanYor(*(float(values[at]) for values in candidates))
    return Succession(float(sure[at_chances, 0]), float(free[at_chances, 0]), law)


def _candidates(draws: int, kinds: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(candidates,) each of discount, strength and share of unique draws."""
    discounts = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 0.999])
    strengths = np.geomspace(1e-2, 30.0 * draws, 30)
    open_d, open_t = (grid.ravel() for grid in np.meshgrid(discounts, strengths))
    libraries = np.unique(np.round(kinds * np.geomspace(1 / kinds, 20, 40)))
    shares, sizes = (grid.ravel() for grid in np.meshgrid([0.2, 0.5, 1.0, 2.0, 5.0, 100.0], libraries))
    pairs = np.concatenate([open_d, -shares]), np.concatenate([open_t - open_d, shares * sizes])
    unique = np.repeat(_UNIQUE, pairs[0].size)
    return np.tile(pairs[0], len(_UNIQUE)), np.tile(pairs[1], len(_UNIQUE)), unique


def _log_likelihood(
    sizes: FloatArray, discount: FloatArray, strength: FloatArray, unique: FloatArray
) -> FloatArray:
    """(candidates,) log probability of one partition."""
    return np.asarray(scipy.special.logsumexp(_terms(sizes, discount, strength, unique), axis=1))


def _terms(sizes: FloatArray, discount: FloatArray, strength: FloatArray, unique: FloatArray) -> FloatArray:
    """(candidates, 1 + kinds seen once): logs of its parts, by how many of those are unique."""
    gammaln = scipy.special.gammaln
    draws, kinds, once = sizes.sum(), sizes.size, int((sizes == 1).sum())
    gone = np.arange(once + 1)
    several, times = np.unique(sizes[sizes > 1], return_counts=True)
    grown = (times * (gammaln(several - discount[:, None]) - gammaln(1 - discount[:, None]))).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log(np.maximum(strength[:, None] + discount[:, None] * np.arange(1, kinds), 0))
        # Columns: no kind, one kind, two kinds …
        opened = np.concatenate([np.zeros((discount.size, 2)), np.cumsum(steps, axis=1)], axis=1)
        rest = draws - gone
        closed = gammaln(strength[:, None] + rest) - gammaln(strength[:, None] + 1)
        process = np.where(rest > 0, opened[:, kinds - gone] - closed, 0.0)
        chosen = gammaln(once + 1) - gammaln(gone + 1) - gammaln(once - gone + 1)
        log_unique = np.where(gone > 0, gone * np.log(unique)[:, None], 0.0)
        return chosen + log_unique + rest * np.log1p(-unique)[:, None] + process + grown[:, None]
