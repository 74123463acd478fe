"""How many exceedances a block takes part in, beside four laws of these counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.exceedances.pairs import Exceedances

__all__ = ["LAWS", "CountLaw", "CountsByLaw", "counts_by_law"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LAWS = ("gaussian", "poisson", "position-marked", "heterogeneous")
"""By what they are fitted to: mean and spread of all scores; the number of exceedances; that number for every
pair of positions; and besides how much blocks of one position differ."""

_SMALLEST, _LARGEST = -12.0, 18.0
"""Logarithms of the sizes that the heterogeneous law is looked for in; the largest is the Poisson law."""


@dataclass(frozen=True)
class CountLaw:
    """What one law expects.

    Attributes:
        name: one of ``LAWS``.
        expected: (bins,) blocks expected in each bin.
        mean: exceedances per block, on average.
        distance: total variation distance of observed and expected over the bins, in [0, 1].
        spread: relative variance of the rates of blocks of one position, 1/k, on average over blocks; 0 where
            the law knows no such variation.
    """

    name: str
    expected: FloatArray
    mean: float
    distance: float
    spread: float


@dataclass(frozen=True)
class CountsByLaw:
    """Blocks by the number of exceedances that they take part in.

    Attributes:
        low, high: (bins,) first and last count of each bin: 0, 1, 2, 3 to 4, 5 to 8 and so on, doubling.
        observed: (bins,) blocks.
        laws: in the order of ``LAWS``.
    """

    low: IntArray
    high: IntArray
    observed: IntArray
    laws: tuple[CountLaw, ...]


def counts_by_law(exceedances: Exceedances, gaussian_rate: float) -> CountsByLaw:
    """Count the exceedances of every block, and what four laws expect of these counts.

    With λ_x the expected number of block x and D_x its count:

    - "gaussian": D_x ~ Poisson(λ_x), λ_x = ``gaussian_rate`` × the blocks of other requests;
    - "poisson": the same with the measured share of pairs that exceed;
    - "position-marked": λ_x summed over the measured shares of every pair of positions;
    - "heterogeneous": negative binomial of the position-marked mean and one size k per position: a Poisson
      law whose rate varies between the blocks of a position, gamma-distributed with variance λ_x²/k. k by
      maximum likelihood, as if counts were independent.

    Args:
        exceedances: of one threshold.
        gaussian_rate: probability that a pair exceeds under a Gaussian fitted to all scores, in [0, 1].

    Raises InputError for another ``gaussian_rate``.

    Test: tests/ratedist/exceedances/test_laws.py::test_expected_counts_are_those_of_scipy_and_sum_to_blocks.
    """
    if not 0 <= gaussian_rate <= 1:
        raise InputError("gaussian_rate", gaussian_rate, "must lie in [0, 1]")
    counts = exceedances.per_block
    low, high = _bins(int(counts.max()))
    observed = np.array([np.sum((counts >= a) & (counts <= b)) for a, b in zip(low, high, strict=True)])
    partners = (exceedances.block_count - exceedances.blocks[exceedances.request_of]).astype(np.float64)
    by_position = exceedances.expected_per_block("positions")
    means = {
        "gaussian": gaussian_rate * partners,
        "poisson": exceedances.expected_per_block("homogeneous"),
        "position-marked": by_position,
        "heterogeneous": by_position,
    }
    sizes = np.full(len(counts), math.inf)
    for position in np.unique(exceedances.position_of):
        here = exceedances.position_of == position
        sizes[here] = _likeliest_size(counts[here], by_position[here])
    laws = []
    for name in LAWS:
        size = sizes if name == "heterogeneous" else np.full(len(counts), math.inf)
        expected = _expected(high, means[name], size)
        distance = 0.5 * float(np.abs(observed - expected).sum()) / len(counts)
        laws.append(CountLaw(name, expected, float(means[name].mean()), distance, float((1 / size).mean())))
    return CountsByLaw(low, high, observed.astype(np.int64), tuple(laws))


def _bins(largest: int) -> tuple[IntArray, IntArray]:
    """Bins that double in width, the last of which holds ``largest``; never fewer than those up to 8."""
    edges = [0, 1, 2, 4, 8]
    while edges[-1] < largest:
        edges.append(2 * edges[-1])
    high = np.array(edges, dtype=np.int64)
    return np.concatenate([[0], high[:-1] + 1]), high


def _expected(high: IntArray, means: FloatArray, size: FloatArray) -> FloatArray:
    """(bins,) blocks expected; what a law puts above the last bin counts into it."""
    below = scipy.special.pdtr(high[:, None], means)
    spread = np.isfinite(size)
    k, mean = size[spread], means[spread]
    below[:, spread] = scipy.special.betainc(k, high[:, None] + 1.0, k / (k + mean))
    cumulative = below.sum(axis=1)
    cumulative[-1] = len(means)
    expected: FloatArray = np.diff(cumulative, prepend=0.0)
    return expected


def _likeliest_size(counts: IntArray, means: FloatArray) -> float:
    """Size of the negative binomial laws of these means under which the counts are likeliest."""
    known = means > 0
    counts, means = counts[known], means[known]
    if len(counts) == 0:
        return math.inf

    def unlikely(log_size: float) -> float:
        size = math.exp(log_size)
        return -float(
            np.sum(
                scipy.special.gammaln(counts + size)
                - scipy.special.gammaln(size)
                - size * np.log1p(means / size)
                + counts * (np.log(means) - np.log(size + means))
            )
        )

    found = scipy.optimize.minimize_scalar(unlikely, bounds=(_SMALLEST, _LARGEST), method="bounded")
    poisson = float(np.sum(counts * np.log(means) - means))
    return math.exp(found.x) if -found.fun > poisson else math.inf
