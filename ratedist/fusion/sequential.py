"""One block at a time against all kept ones: closed forms, and how Matérn's process differs.

Blocks arrive one by one, m of them; Λ = m·F̄(τ) is the number of blocks that one exceeds against.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers

__all__ = ["matern_share", "sequential_share"]

FloatArray = NDArray[np.float64]


def sequential_share(rate: ArrayLike, *, transitivity: ArrayLike = 0.0) -> FloatArray:
    """Share of blocks that are kept: ln(1 + Λ)/Λ, where only *kept* blocks absorb.

    From dN/dm = exp(−F̄·N). With a hard core of transitivity C the uncovered share is (1 − C·F̄·N)^(1/C), and
    the share kept is [1 − (1 + (1 − C)Λ)^(−C/(1−C))]/(CΛ); C → 0 gives the logarithm, and C → 1, where
    exceedance is an equivalence, (1 − e^−Λ)/Λ. The limit of many blocks: at m blocks the count differs by
    a number of order 1.
    Tests: tests/ratedist/fusion/test_sequential.py::test_share_against_simulated_arrivals and
    ::test_share_against_directions.

    Args:
        rate: Λ, at least 0.
        transitivity: C within [0, 1], broadcast with ``rate``.

    Raises:
        InputError: either outside its domain.
    """
    rate = as_numbers("rate", rate, low=0.0)
    closeness = as_numbers("transitivity", transitivity, low=0.0, high=1.0)
    rate, closeness = np.broadcast_arrays(rate, closeness)
    safe = np.maximum(rate, 1e-300)
    # N·F̄ = (1 − e^(−C·x))/C with x = ln(1 + (1 − C)Λ)/(1 − C), each by its limit where the divisor vanishes.
    rest = 1 - closeness
    x = np.where(rest > 1e-9, np.log1p(rest * safe) / np.maximum(rest, 1e-9), safe)
    covered = np.where(closeness > 1e-9, -np.expm1(-closeness * x) / np.maximum(closeness, 1e-9), x)
    return np.where(rate > 0, covered / safe, 1.0)[()]


def matern_share(rate: ArrayLike) -> FloatArray:
    """Share of blocks that match no *earlier* block, kept or not: (1 − e^−Λ)/Λ, Matérn's second process.

    It keeps fewer than fusion does: there a block that was itself absorbed deletes nothing.
    Test: tests/ratedist/fusion/test_sequential.py::test_matern_against_simulated_arrivals.

    Args:
        rate: Λ, at least 0.

    Raises:
        InputError: a rate below 0.
    """
    rate = as_numbers("rate", rate, low=0.0)
    safe = np.maximum(rate, 1e-300)
    return np.where(rate > 0, -np.expm1(-safe) / safe, 1.0)[()]
