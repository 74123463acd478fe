"""What a recursion returns: kept blocks with their band, and the law of the similarity of absorbed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError

__all__ = ["FusionResult", "KeptBlocks", "Matches", "prediction_band"]

FloatArray = NDArray[np.float64]

_RULES = ("own-norm", "raw", "projection")


@dataclass(frozen=True)
class Matches:
    """Law of the direct match of absorbed blocks, as a quadrature rule per threshold.

    Attributes:
        scores: (K, T) scores at least the threshold.
        weights: (K, T), so that Σ weights·f(scores) is the expected number of absorbed blocks times the mean
            of a smooth f; single weights may be negative.
    """

    scores: FloatArray
    weights: FloatArray

    def expected_sum(self, function: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """(T,) expected Σ f(score) over the absorbed blocks; f is called on arrays and must be smooth."""
        return (self.weights * function(self.scores)).sum(axis=0)


@dataclass(frozen=True)
class KeptBlocks:
    """Kept blocks after fusion of one set of units, over T thresholds.

    Attributes:
        variant: name of the recursion.
        thresholds: (T,).
        blocks: candidate blocks in all units.
        least: the fewest that can be kept: the first unit stays whole (of components, one).
        kept: (T,) expected kept blocks.
        kept_std: (T,) standard deviation of kept blocks.
        kept_low, kept_high: (T,) whole numbers that hold kept blocks with a chance near 90 %.
    """

    variant: str
    thresholds: FloatArray
    blocks: int
    least: int
    kept: FloatArray
    kept_std: FloatArray
    kept_low: FloatArray
    kept_high: FloatArray

    def band(self, level: float) -> tuple[FloatArray, FloatArray]:
        """(T,) each: whole numbers that hold kept blocks with a chance near ``level``, within (0, 1)."""
        return prediction_band(self.kept, self.kept_std, low=self.least, high=self.blocks, level=level)

    @property
    def absorbed(self) -> FloatArray:
        """(T,) expected absorbed blocks."""
        return self.blocks - self.kept

    @property
    def absorbed_share(self) -> FloatArray:
        """(T,) expected share of blocks that are absorbed."""
        return self.absorbed / self.blocks

    @property
    def compression(self) -> FloatArray:
        """(T,) blocks over expected kept blocks."""
        return self.blocks / self.kept


@dataclass(frozen=True)
class FusionResult(KeptBlocks):
    """Kept blocks, and the law of the similarity of absorbed ones.

    Attributes:
        matches: law of the score against the block that absorbed.
        direct_similarity, direct_similarity2: (T,) first and second moment of that score over absorbed
            blocks; NaN where none is expected.
        final_similarity, final_similarity2: (T,) the same for the similarity to the final representative.
    """

    matches: Matches
    direct_similarity: FloatArray
    direct_similarity2: FloatArray
    final_similarity: FloatArray
    final_similarity2: FloatArray

    @property
    def direct_error2(self) -> FloatArray:
        """(T,) mean e² of an absorbed block against the block that absorbed it, own norm."""
        return 2 - 2 * self.direct_similarity

    @property
    def final_error2(self) -> FloatArray:
        """(T,) mean e² of an absorbed block against its final representative, own norm."""
        return 2 - 2 * self.final_similarity

    def error2(
        self,
        rule: str = "own-norm",
        *,
        ratio: ArrayLike = 1.0,
        ratio2: ArrayLike | None = None,
        final: bool = True,
    ) -> FloatArray:
        """(T,) mean e² of an absorbed block under a scale rule (docs/theory.md lists the three).

        Args:
            rule: own-norm, raw or projection.
            ratio: E[ρ], ρ the norm of the representative over that of the block; raw only.
            ratio2: E[ρ²]; the square of ``ratio`` by default.
            final: against the final representative, else against the block that absorbed.

        Norms are taken as independent of similarities.
        Test: tests/ratedist/fusion/test_result.py::test_scale_rules_of_vectors.

        Raises:
            InputError: an unknown rule, or ratios that no norms have.
        """
        first = self.final_similarity if final else self.direct_similarity
        second = self.final_similarity2 if final else self.direct_similarity2
        if rule == "own-norm":
            return 2 - 2 * first
        if rule == "projection":
            return 1 - second
        if rule != "raw":
            raise InputError("rule", rule, f"must be one of {', '.join(_RULES)}")
        mean = as_numbers("ratio", ratio, low=0.0, low_open=True)
        square = mean**2 if ratio2 is None else as_numbers("ratio2", ratio2, low=0.0, low_open=True)
        if (square < mean**2 * (1 - 1e-12)).any():
            raise InputError("ratio2", float(np.min(square)), "must be at least the square of ratio")
        return 1 + square - 2 * mean * first


def prediction_band(
    mean: FloatArray, std: FloatArray, *, low: float, high: float, level: float = 0.9
) -> tuple[FloatArray, FloatArray]:
    """Whole numbers a <= b whose interval holds a normal count, rounded, with a chance nearest to ``level``.

    Each end is one of the two whole numbers around the normal quantile, so that counts of small spread are
    not covered too often; both ends lie within [low, high].
    Test: tests/ratedist/fusion/test_result.py::test_band_covers_counts.

    Args:
        mean, std: of the count, same shape.
        low, high: bounds that the count cannot leave.
        level: chance to aim at, within (0, 1).
    """
    if not 0 < level < 1:
        raise InputError("level", level, "must lie between 0 and 1")
    half = float(scipy.special.ndtri(0.5 + level / 2))
    spread = np.maximum(std, 1e-9)
    lows = np.floor(mean - half * std + 0.5) + np.array([0.0, 1.0])[:, None]
    highs = np.ceil(mean + half * std - 0.5) + np.array([0.0, -1.0])[:, None]
    best = np.full(mean.shape, np.inf)
    chosen = np.empty((2, *mean.shape))
    lows, highs = np.clip(lows, low, high), np.clip(highs, low, high)
    below = np.where(lows <= low, 0.0, scipy.special.ndtr((lows - 0.5 - mean) / spread))
    up_to = np.where(highs >= high, 1.0, scipy.special.ndtr((highs + 0.5 - mean) / spread))
    for a, lower in zip(lows, below, strict=True):
        for b, upper in zip(highs, up_to, strict=True):
            miss = np.where(a <= b, np.abs(upper - lower - level), 2.0)
            better = miss < best - 1e-12
            best = np.where(better, miss, best)
            chosen = np.where(better, [a, b], chosen)
    return chosen[0], chosen[1]
