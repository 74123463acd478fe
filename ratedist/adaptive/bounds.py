"""Upper bounds of the mean error of the next requests, from a weighted sample of past ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.adaptive.forgetting import ForgettingCurve

__all__ = ["BOUNDS", "bernstein_upper", "student_upper"]

FloatArray = NDArray[np.float64]


def student_upper(
    curve: ForgettingCurve, ceiling: FloatArray, *, window: float, confidence: float
) -> FloatArray:
    """(thresholds,) bound of the mean over the next ``window`` requests.

    (Σw·x + c)/(Σw + 1) + t·s·√(1/n + 1/W), with n the effective number of requests and t the quantile of
    Student's law with n − 1 degrees of freedom.

    - The first term counts one more request, the next one, as bad as one can be. By itself it bounds the
      *expected* error of the next request at the lowest threshold at which it keeps to the promise, whatever
      the law, as long as requests are exchangeable (conformal risk control: Angelopoulos et al., arXiv
      2208.02814; with weights and drift, Farinhas et al., arXiv 2310.01262). It is what keeps a threshold
      from falling onto matches that are merely too rare to have been seen.
    - The second is the margin of a mean over W further requests against one over n past ones, which is exact
      for normal means and approximate for others.

    Test: tests/ratedist/adaptive/test_bounds.py::test_coverage.

    Args:
        curve: moments of past requests.
        ceiling: (thresholds,) largest error that a request can have.
        window: W, requests over which the promise is kept.
        confidence: chance that the mean stays below the bound.
    """
    if curve.effective <= 2:
        return np.full(len(ceiling), np.inf)
    worst = (curve.total + ceiling) / (curve.weight + 1)
    quantile = float(scipy.special.stdtrit(curve.effective - 1, confidence))
    return worst + quantile * np.sqrt(curve.variance * (1 / curve.effective + 1 / window))


def bernstein_upper(
    curve: ForgettingCurve, ceiling: FloatArray, *, window: float, confidence: float
) -> FloatArray:
    """As ``student_upper``, for every law on [0, c] and every sample size.

    Half of the allowed chance goes to the past, x̄ + √(2·s²·l/n) + 7·c·l/(3(n − 1)) with l = ln(4/δ) (Maurer
    and Pontil, COLT 2009, with n the effective number: for weighted means that is a convention and no
    theorem), half to the window, √(2·s²·l/W) + c·l/(3W) (Bernstein). It needs far more requests before it
    allows anything: see docs/adaptive.md.

    Test: tests/ratedist/adaptive/test_bounds.py::test_coverage.
    """
    n = curve.effective
    if n <= 2:
        return np.full(len(ceiling), np.inf)
    nats = math.log(4 / (1 - confidence))
    past = np.sqrt(2 * curve.variance * nats / n) + 7 * ceiling * nats / (3 * (n - 1))
    ahead = np.sqrt(2 * curve.variance * nats / window) + ceiling * nats / (3 * window)
    return curve.mean + past + ahead


BOUNDS: dict[str, Callable[..., FloatArray]] = {"student": student_upper, "bernstein": bernstein_upper}
"""Bounds by name."""
