"""Moments that leader and tree share: chance to stay, its spread, and the law of the best match."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, as_thresholds
from ratedist.errors import InputError
from ratedist.fusion._panels import Panels, panels
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.result import FusionResult, Matches, prediction_band
from ratedist.fusion.units import as_units
from ratedist.similarity.base import SimilarityLaw

__all__ = ["MOST_SLOPE", "Problem", "Void", "log_void_rate"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# A block that is certain to match leaves this chance, so that exponents stay finite.
_CERTAIN = 1 - 1e-12
# A block that stays leaves at least e^−2 of what was uncovered, or what it leaves without a hard core.
MOST_SLOPE = 2.0
# Success of the binomial that stands in for a Poisson number; it changes the log by half of that, relatively.
_POISSON = 1e-9


def log_void_rate(chance: FloatArray, binomial: FloatArray) -> FloatArray:
    """ln(1 − πx)/π, the log of E[(1 − x)^N] per expected representative, N binomial with success π.

    π = 1 is a certain number of representatives, π near 0 a Poisson one, π < 0 a negative binomial.
    """
    safe = np.where(np.abs(binomial) < _POISSON, _POISSON, binomial)
    return np.log1p(-safe * chance) / safe


@dataclass(frozen=True)
class Void:
    """Chance that a block stays, given the mean state of the representatives it meets.

    Attributes:
        mean: E[v], v the uncovered share.
        hit: 1 − E[v], with its digits where that is small.
        square: E[v²].
        slope: growth of ℓ = −ln v with the next representative, at the mean.
        steepening: how fast the slope grows with ℓ.
        moved: how far ℓ stands from its mean per representative above the mean.
        covariance: Cov(N, v), not above 0.
        binomial: π of the uncertain part of the number of representatives.
        uncertain: mean of that part.
        logarithm: −ln v at the mean.
        weight: chance that a block inside an uncovered cap stays, over that of any block.
    """

    mean: FloatArray
    hit: FloatArray
    square: FloatArray
    slope: FloatArray
    steepening: FloatArray
    moved: FloatArray
    covariance: FloatArray
    binomial: FloatArray
    uncertain: FloatArray
    logarithm: FloatArray
    weight: FloatArray


class Problem:
    """Checked arguments, the quadrature and the closure (docs/theory.md, "Recursions").

    The number N of representatives enters by mean and variance: a certain part plus a binomial one, without
    skewness unless its variance is above half its mean (then it starts at what the first unit keeps for
    certain). The uncovered share
    is v = exp(−ℓ), where ℓ grows by the slope with every representative and moves with N; without a hard core
    the slope is −ln(1 − F̄(τ)) and v = (1 − F̄(τ))^N.
    """

    def __init__(
        self,
        law: SimilarityLaw,
        units: IntArray,
        thresholds: ArrayLike,
        hard_core: HardCore | bool,
        baseline: float | None,
    ) -> None:
        self.units = as_units("units", units)
        self.thresholds = as_thresholds("thresholds", thresholds)
        self.blocks = int(self.units.sum())
        count = self.thresholds.size
        self.chance = np.clip(law.sf(self.thresholds), 0.0, _CERTAIN)
        self.core = _hard_core(law, self.thresholds, hard_core)
        self.has_core = bool(self.core.transitivity.any())
        largest = float(self.units.max())
        most = self.chance * np.minimum(self.blocks, largest + 20 / np.maximum(self.chance, 1e-18))
        self.panels: Panels = panels(law, self.thresholds, most)
        self.tail = np.minimum(law.sf(self.panels.scores), self.chance)
        # What a block near z covers of the small cap of its better matches: C·√(F̄(s)/F̄(τ)), docs/theory.md.
        share = np.divide(self.tail, self.chance, out=np.zeros_like(self.tail), where=self.chance > 0)
        self.tail_transitivity = self.core.transitivity * np.sqrt(share)
        self.tail_crowding = self.core.crowding * share
        self.baseline = float(law.mean()) if baseline is None else float(as_numbers("baseline", baseline))
        if not -1 <= self.baseline < 1:
            raise InputError("baseline", self.baseline, "must be within [-1, 1)")
        variance = min(float(law.var()) / (1 - self.baseline) ** 2, 0.5)
        self.scatter = variance / (1 - variance)
        self.plain_slope = -np.log1p(-self.chance)
        self.most_weight = np.log(np.maximum(MOST_SLOPE / np.maximum(self.plain_slope, 1e-300), 1.0))
        self.plain_tail_slope = -np.log1p(-np.minimum(self.tail, _CERTAIN))
        self.count = count

    def void(
        self,
        mean: FloatArray,
        variance: FloatArray,
        covariance: FloatArray,
        logarithm: FloatArray,
        least: FloatArray,
    ) -> Void:
        """Moments of the uncovered share, (…, T).

        Args:
            mean, variance: of the number N of representatives.
            covariance: Cov(N, ℓ).
            logarithm: E ℓ, ℓ = −ln v.
            least: the number that is kept for certain.
        """
        more = mean - least
        binomial = 1 - np.divide(variance, more, out=np.zeros_like(mean), where=more > 1e-12)
        binomial = np.minimum(binomial, 0.5)
        uncertain = variance / (1 - binomial)
        if self.has_core:
            weight = self.weight(logarithm)
            slope = self.plain_slope * weight
            core = self.core
            steepening = np.where(
                weight > 1, slope * (core.transitivity - 2 * core.crowding * logarithm), 0.0
            )
            moved = np.divide(covariance, variance, out=slope.copy(), where=variance > 1e-12)
            moved = np.clip(moved, 0.0, 4 * np.maximum(slope, MOST_SLOPE))
            chance = -np.expm1(-moved)
        else:
            chance = np.broadcast_to(self.chance, mean.shape)
            slope = moved = np.broadcast_to(self.plain_slope, mean.shape)
            weight, steepening = np.ones_like(mean), np.zeros_like(mean)
        log_share = np.minimum(uncertain * (moved + log_void_rate(chance, binomial)) - logarithm, 0.0)
        share = np.exp(log_share)
        twice = chance * (2 - chance)
        square = np.exp(
            np.minimum(uncertain * (2 * moved + log_void_rate(twice, binomial)) - 2 * logarithm, 0.0)
        )
        return Void(
            mean=share,
            hit=-np.expm1(log_share),
            square=np.clip(square, share**2, share),
            slope=slope,
            steepening=steepening,
            moved=moved,
            covariance=-variance * share * chance / (1 - binomial * chance),
            binomial=binomial,
            uncertain=uncertain,
            logarithm=logarithm,
            weight=weight,
        )

    def weight(self, logarithm: FloatArray) -> FloatArray:
        """w: chance that a block inside an uncovered cap stays over that of any block, given −ln v."""
        closeness = np.maximum(self.core.transitivity - self.core.crowding * logarithm, 0.0)
        return np.exp(np.minimum(logarithm * closeness, self.most_weight))

    def tail_slope(self, logarithm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Growth of ℓ by score per representative, (K, …, T), and the chance it stands for."""
        extra = (1,) * (logarithm.ndim - 1)
        spread = (self.tail.shape[0], *extra, self.count)
        tail = self.tail.reshape(spread)
        if not self.has_core:
            return self.plain_tail_slope.reshape(spread), tail
        work = self.tail_crowding.reshape(spread) * logarithm
        np.subtract(self.tail_transitivity.reshape(spread), work, out=work)
        np.maximum(work, 0.0, out=work)
        work *= logarithm
        np.minimum(work, self.most_weight, out=work)
        np.exp(work, out=work)
        work *= self.plain_tail_slope.reshape(spread)
        chance = np.expm1(-work)
        return work, np.negative(chance, out=chance)

    def matched(
        self, void: Void, tail_logarithm: FloatArray, slope: FloatArray, chance: FloatArray
    ) -> FloatArray:
        """P(best match > s) at the nodes, (K, …, T)."""
        exponent = slope + log_void_rate(chance, void.binomial)
        exponent *= void.uncertain
        exponent -= tail_logarithm
        np.minimum(exponent, 0.0, out=exponent)
        np.expm1(exponent, out=exponent)
        return np.negative(exponent, out=exponent)

    def similarity(self, absorbed: FloatArray, matched: FloatArray) -> tuple[FloatArray, FloatArray]:
        """E[c; absorbed] and E[c²; absorbed], c = (s − baseline)/(1 − baseline), by integration by parts."""
        scale = 1 - self.baseline
        at_threshold = (self.thresholds - self.baseline) / scale
        score = (self.panels.scores - self.baseline) / scale
        first = at_threshold * absorbed + self.panels.integrate(matched) / scale
        if matched.ndim > 2:
            score = score[:, None, :]
        second = at_threshold**2 * absorbed + self.panels.integrate(2 * score * matched) / scale
        return first, second

    def result(
        self,
        variant: str,
        kept: FloatArray,
        variance: FloatArray,
        absorbed: FloatArray,
        matched: FloatArray,
        final: tuple[FloatArray, FloatArray] | None,
    ) -> FusionResult:
        """Assemble the result from sums over all absorbed blocks.

        Args:
            absorbed: (T,) their expected number.
            matched: (K, T) those with a best match above each node.
            final: Σ c and Σ c² against the final representative; None where it is the direct one.
        """
        low, high = float(self.units[0]), float(self.blocks)  # the first unit meets nobody and stays whole
        kept = np.clip(kept, low, high)
        std = np.sqrt(np.maximum(variance, 0.0))
        band = prediction_band(kept, std, low=low, high=high)
        first, second = self.similarity(absorbed, matched)
        direct = self._moments(absorbed, first, second)
        against_final = direct if final is None else self._moments(absorbed, *final)
        weights = self.panels.by_parts(matched)
        matches = Matches(
            np.concatenate([self.thresholds[None], self.panels.scores]),
            np.concatenate([absorbed[None], weights]),
        )
        return FusionResult(
            variant,
            self.thresholds,
            self.blocks,
            int(low),
            kept,
            std,
            *band,
            matches,
            *direct,
            *against_final,
        )

    def _moments(
        self, absorbed: FloatArray, first: FloatArray, second: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        some = absorbed > 0
        c, c2 = (
            np.divide(sums, absorbed, out=np.full_like(sums, np.nan), where=some) for sums in (first, second)
        )
        base, scale = self.baseline, 1 - self.baseline
        return base + scale * c, base**2 + 2 * base * scale * c + scale**2 * c2


def _hard_core(law: SimilarityLaw, thresholds: FloatArray, hard_core: HardCore | bool) -> HardCore:
    if isinstance(hard_core, HardCore):
        if hard_core.transitivity.shape != thresholds.shape:
            raise InputError(
                "hard_core",
                f"{hard_core.transitivity.size} thresholds",
                f"must be made for the {thresholds.size} thresholds that are given",
            )
        return hard_core
    dim = getattr(law, "dim", None)
    if hard_core and dim is not None:
        return HardCore.spherical(dim, thresholds)
    return HardCore.none(thresholds.size)
