"""What one request shows: the best match of a few of its blocks, and what absorbing them would cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError

__all__ = ["Observation", "error_curve"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """Probes of one request, a uniform draw from its full blocks whether they were absorbed or not.

    Only so is the error known *below* the threshold in force, where no block is absorbed: the law of an error
    given its score moves with the workload, and absorbed blocks show that law above the threshold alone.

    Attributes:
        scores: (probes,) score of each one's best match; 1 where it shares a byte-equal block, at most 1.
            Where there was nobody to match, −1.
        errors: (probes,) squared relative error that reading it from that match has or would have; at least
            0.
        realised: mean squared relative error over all full blocks of the request under the threshold in
            force, kept ones counting 0; None where the request was only looked at.

    Raises:
        InputError: not the same number of scores and errors, none at all, or a value outside what is listed.
    """

    scores: FloatArray
    errors: FloatArray
    realised: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", as_numbers("scores", self.scores, low=-1.0, high=1.0).reshape(-1))
        object.__setattr__(self, "errors", as_numbers("errors", self.errors, low=0.0).reshape(-1))
        if len(self.scores) == 0 or len(self.scores) != len(self.errors):
            raise InputError(
                "scores",
                f"{len(self.scores)} scores, {len(self.errors)} errors",
                "needs one score and one error per probe, and at least one probe",
            )
        if self.realised is not None:
            object.__setattr__(self, "realised", float(as_numbers("realised", self.realised, low=0.0)))


def error_curve(observation: Observation, thresholds: ArrayLike) -> FloatArray:
    """(thresholds,) mean over probes of e²·1{S > τ}: the error of the request at every threshold, unbiased.

    Test: tests/ratedist/adaptive/test_observation.py::test_curve_is_the_mean_of_what_would_be_absorbed.

    Args:
        observation: a request's probes.
        thresholds: sorted from low to high.
    """
    grid = np.asarray(thresholds, dtype=np.float64)
    # A block is absorbed at the thresholds strictly below its score: those before this index.
    below = np.searchsorted(grid, observation.scores, side="left")
    mass = np.bincount(below, weights=observation.errors, minlength=len(grid) + 1)
    return np.cumsum(mass[:0:-1])[::-1] / len(observation.scores)
