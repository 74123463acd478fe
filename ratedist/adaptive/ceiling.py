"""The largest error that a request can have at a threshold, by criterion and scale rule."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError

__all__ = ["error_ceiling"]

FloatArray = NDArray[np.float64]

_CRITERIA = ("keys", "both")
_SCALES = ("own-norm", "projection")


def error_ceiling(thresholds: ArrayLike, *, criterion: str = "keys", scale: str = "own-norm") -> FloatArray:
    """(thresholds,) bound of the mean of a block's squared relative errors of keys and of values.

    A side whose similarity exceeds τ has e² < 2 − 2τ (own norm) or < 1 − τ² for τ >= 0 (projection); a side
    that nothing constrains has e² <= 4 (two vectors of one norm lie at most twice that norm apart) or <= 1.
    At threshold 1 nothing is absorbed but byte-equal blocks, and the bound is 0.

    Test: tests/ratedist/adaptive/test_observation.py::test_ceiling_holds_for_vectors_and_is_reached.

    Args:
        thresholds: within [−1, 1].
        criterion: ``keys`` or ``both``.
        scale: ``own-norm`` or ``projection``; a raw representative may be any number of times too large.

    Raises:
        InputError: an argument outside what is listed.
    """
    tau = as_numbers("thresholds", thresholds, low=-1.0, high=1.0)
    if criterion not in _CRITERIA:
        raise InputError("criterion", criterion, f"must be one of {', '.join(_CRITERIA)}")
    if scale not in _SCALES:
        raise InputError("scale", scale, f"must be one of {', '.join(_SCALES)}: others bound no error")
    held = 2 - 2 * tau if scale == "own-norm" else 1 - np.maximum(tau, 0.0) ** 2
    free = 4.0 if scale == "own-norm" else 1.0
    return np.where(tau < 1, held if criterion == "both" else (held + free) / 2, 0.0)
