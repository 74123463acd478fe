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


@dataclass(frozen=True)
class PitmanYor:
    """After n draws of K kinds the next is new with chance (θ + dK)/(θ + n), else of kind k by n_k − d.

    d in [0, 1): K grows as n^d (d > 0) or θ·ln n (d = 0). With d < 0 and θ = −d·M there are M kinds in all.
    Source: J. Pitman and M. Yor, Annals of Probability 25 (1997) 855; the partition's probability is the
    exchangeable one of J. Pitman, Probability Theory and Related Fields 102 (1995) 145.

    Attributes:
        discount: d.
        strength: θ > −d.
    """

    discount: float
    strength: float

    def new(self, draws: int, kinds: int) -> float:
        """Chance that the next draw is of a new kind."""
        if draws == 0:
            return 1.0
        return min(1.0, max(0.0, (self.strength + self.discount * kinds) / (self.strength + draws)))

    def log_likelihood(self, sizes: ArrayLike) -> float:
        """Log probability of a partition into groups of these sizes.

        Test: tests/sim/test_popularity.py::test_likelihood_is_the_product_of_the_draws.
        """
        one = (np.array([self.discount]), np.array([self.strength]))
        return float(_log_likelihood(np.asarray(sizes, dtype=np.float64), *one)[0])


@dataclass(frozen=True)
class Succession:
    """What follows a context: some decide it, some leave it free, the others draw by a Pitman-Yor process.

    Attributes:
        sure: chance that a context always has the same successor.
        free: chance that it never has the same one twice.
        law: successors of the other contexts.
    """

    sure: float
    free: float
    law: PitmanYor

    def new(self, draws: int, kinds: int) -> float:
        """Chance that the next successor is none of the ``kinds`` seen in ``draws`` after this context.

        By Bayes' rule over what the context can still be.
        Test: tests/sim/test_popularity.py::test_succession_is_consistent.
        """
        if draws == 0:
            return 1.0
        if 1 < kinds < draws:
            return self.law.new(draws, kinds)
        sure = self.sure if kinds == 1 else 0.0
        free = self.free if kinds == draws else 0.0
        sizes = [draws] if kinds == 1 else [1] * draws
        mixed = (1 - self.sure - self.free) * float(np.exp(self.law.log_likelihood(sizes)))
        total = sure + free + mixed
        if total <= 0:
            return self.law.new(draws, kinds)
        return (free + mixed * self.law.new(draws, kinds)) / total


def fit_pitman_yor(partitions: Sequence[Sequence[int]]) -> PitmanYor:
    """Maximum likelihood from partitions (group sizes each) that share d and θ.

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
    discount, strength = _candidates(max(sum(sizes) for sizes in kinds), max(len(sizes) for sizes in kinds))
    sure, free = chances[:, :1], chances[:, 1:]
    total = np.zeros((len(chances), discount.size))
    for sizes, times in kinds.items():
        chance = np.exp(_log_likelihood(np.array(sizes, dtype=np.float64), discount, strength))
        mixed = (1 - sure - free) * chance + sure * (len(sizes) == 1) + free * (len(sizes) == sum(sizes))
        total += times * np.log(np.maximum(mixed, 1e-300))
    at_chances, at = np.unravel_index(int(total.argmax()), total.shape)
    return Succession(
        *(float(x) for x in chances[at_chances]), PitmanYor(float(discount[at]), float(strength[at]))
    )


def _candidates(draws: int, kinds: int) -> tuple[FloatArray, FloatArray]:
    discounts = np.array([*np.arange(0.0, 1.0, 0.05), 0.98, 0.999])
    strengths = np.geomspace(1e-3, 100.0 * draws, 41)
    open_d, open_t = (grid.ravel() for grid in np.meshgrid(discounts, strengths))
    libraries = np.unique(np.round(kinds * np.geomspace(1, 30, 40)))
    shares, sizes = (grid.ravel() for grid in np.meshgrid([0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0], libraries))
    return np.concatenate([open_d, -shares]), np.concatenate([open_t - open_d, shares * sizes])


def _log_likelihood(sizes: FloatArray, discount: FloatArray, strength: FloatArray) -> FloatArray:
    """(candidates,) log probability of one partition under each (discount, strength)."""
    gammaln = scipy.special.gammaln
    kinds = np.arange(1, sizes.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        opened = np.log(np.maximum(strength[:, None] + discount[:, None] * kinds, 0)).sum(axis=1)
    closed = gammaln(strength + sizes.sum()) - gammaln(strength + 1)
    values, times = np.unique(sizes, return_counts=True)
    grown = (times * (gammaln(values - discount[:, None]) - gammaln(1 - discount[:, None]))).sum(axis=1)
    return np.asarray(opened - closed + grown)
