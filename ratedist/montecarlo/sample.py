"""Outcome of simulated runs, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "RunSample"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error; NaN where too few runs say anything."""

    mean: float
    standard_error: float

    def z_score(self, value: float) -> float:
        """How many standard errors ``value`` lies above the mean."""
        return (value - self.mean) / self.standard_error


@dataclass(frozen=True)
class RunSample:
    """Independent runs of one fusion.

    Attributes:
        blocks: candidate blocks in each run.
        kept: (runs,) kept blocks.
        direct_error2: (runs,) Σ e² over absorbed blocks against the block that absorbed them, own norm;
            None where scores were not drawn.
        final_error2: (runs,) the same against their final representative.
        merges: kept blocks that met representatives at a merge, in all runs.
    """

    blocks: int
    kept: FloatArray
    direct_error2: FloatArray | None = None
    final_error2: FloatArray | None = None
    merges: int = 0

    def mean_kept(self) -> Estimate:
        """E[kept]; the standard error is at least what one run that differs by one block would make it."""
        runs = self.kept.size
        error = max(float(self.kept.std(ddof=1) / np.sqrt(runs)), 1 / runs)
        return Estimate(float(self.kept.mean()), error)

    def std_kept(self) -> float:
        """Standard deviation of kept blocks over runs."""
        return float(self.kept.std(ddof=1))

    def coverage(self, low: float, high: float) -> float:
        """Share of runs whose kept blocks lie within [low, high]."""
        return float(((self.kept >= low) & (self.kept <= high)).mean())

    def mean_error2(self, which: str = "final") -> Estimate:
        """E[Σ e²]/E[absorbed], with the standard error of a ratio of means.

        Args:
            which: "direct" or "final".
        """
        sums = self.final_error2 if which == "final" else self.direct_error2
        absorbed = self.blocks - self.kept
        if sums is None or absorbed.mean() == 0:
            return Estimate(float("nan"), float("nan"))
        ratio = float(sums.mean() / absorbed.mean())
        residual = sums - ratio * absorbed
        return Estimate(ratio, float(residual.std(ddof=1) / np.sqrt(residual.size) / absorbed.mean()))
