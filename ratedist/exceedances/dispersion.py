"""Var W / E W from one set of exceedances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ratedist.errors import InputError
from ratedist.exceedances.pairs import Exceedances

__all__ = ["Dispersion", "dispersion"]


@dataclass(frozen=True)
class Dispersion:
    """Variance over mean, 1 for a Poisson law.

    ``total`` is that of W over draws of the requests, with its jackknife standard error ``total_error``;
    ``per_block`` and ``between_requests`` are those of the counts of one block and of one pair of requests,
    over the blocks and pairs of this capture. NaN without exceedances.
    """

    total: float
    total_error: float
    per_block: float
    between_requests: float


def dispersion(exceedances: Exceedances) -> Dispersion:
    """Estimate the dispersion of W as a U-statistic, and those of its parts.

    One capture holds one W. If its requests are independent draws of the traffic, W_ab and W_cd of four
    different requests are independent, so that their mean product estimates (E W_ab)² without bias, and
    Var W/E W ≈ (W² − C(n,2)²·mean(W_ab·W_cd))/W. What all requests share (one system prompt) does
    not vary over such draws: it clumps the exceedances on few blocks, which ``per_block`` shows, and may
    leave ``total`` below 1. The standard error deletes one request at a time; where pairs of requests are
    independent it claims up to twice the spread that there is.
    Test: tests/ratedist/exceedances/test_dispersion.py::test_total_against_repeated_draws.

    Raises InputError with fewer than five requests: four make the estimate, one more its standard error.
    """
    n = exceedances.requests
    if n < 5:
        raise InputError(
            "exceedances", f"{n} requests", "at least 5 are needed for a dispersion over requests"
        )
    if exceedances.count == 0:
        return Dispersion(math.nan, math.nan, math.nan, math.nan)
    seen = exceedances.between_requests.astype(np.float64)
    rows = seen.sum(axis=1)
    squares = np.sum(seen**2, axis=1)
    total = 0.5 * rows.sum()
    value = _of_sums(total, np.sum(rows**2), 0.5 * squares.sum(), n)
    without = np.array(
        [
            _of_sums(
                total - rows[a],
                np.sum((rows - seen[a]) ** 2) - (rows[a] - seen[a, a]) ** 2,
                0.5 * squares.sum() - squares[a],
                n - 1,
            )
            for a in range(n)
        ]
    )
    error = math.sqrt((n - 1) / n * float(np.sum((without - np.nanmean(without)) ** 2)))
    pairs = seen[np.triu_indices(n, 1)]
    blocks = exceedances.per_block
    return Dispersion(
        value, error, float(blocks.var(ddof=1) / blocks.mean()), float(pairs.var(ddof=1) / pairs.mean())
    )


def _of_sums(total: float, row_squares: float, squares: float, n: int) -> float:
    """From W, Σ_a R_a² and Σ_{a<b} W_ab²."""
    if total <= 0:
        return math.nan
    pairs = n * (n - 1) / 2
    disjoint = (total**2 - row_squares + squares) / (pairs * (n - 2) * (n - 3) / 2)
    return float((total**2 - pairs**2 * disjoint) / total)
