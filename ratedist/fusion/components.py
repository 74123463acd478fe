"""Components: blocks of one connected component of the exceedance graph share one block.

The model is the Erdős–Rényi graph: every pair of blocks of different units exceeds with chance F̄(τ),
independently. Kept blocks are its components. Above one exceedance per block a giant component chains a
share of all blocks together, however unlike its ends are. Pairs within a unit have no edge: they enter the
terms that grow with the batch as they are, and in the rest are spread over all pairs. Real directions chain
less than this graph where they fuse densely (their exceedances are transitive, so edges are spent inside
clusters): there the model is a lower bound on kept blocks, not an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_thresholds
from ratedist.fusion.result import KeptBlocks, prediction_band
from ratedist.fusion.units import as_units
from ratedist.similarity.base import SimilarityLaw

__all__ = ["Components", "components"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Up to this many blocks the sums over component sizes are exact.
_EXACT = 256
_SMALL = 192
_CERTAIN = 1 - 1e-12  # the logarithm of its complement is still finite
_ITERATIONS = 400  # slow only just above one exceedance per block


@dataclass(frozen=True)
class Components(KeptBlocks):
    """Kept blocks of the components variant.

    Attributes:
        giant_share: (T,) share of all blocks in the giant component of a large batch; 0 below one exceedance
            per block.
    """

    giant_share: FloatArray


def components(
    law: SimilarityLaw, units: Sequence[int] | NDArray[np.int64], thresholds: ArrayLike
) -> Components:
    """Expected components and their spread: exact up to 256 blocks, by their limits beyond.

    For n blocks of mean degree c, x = exp(−c(1 − x)) the share outside the giant component:
    E = n·x − n·c·x²/2 plus a number of order 1 (the giant itself, and cycles among the rest), which is taken
    from the exact sums of a small batch of equal mean degree; Var = n·(x(1 − x) + c·x²/2).
    Tests: tests/ratedist/fusion/test_components.py::test_limits_meet_the_exact_sums and
    tests/ratedist/montecarlo/test_agreement.py.

    Args:
        law: law of the score of a random pair of blocks of different units.
        units: full blocks of each unit.
        thresholds: strictly increasing, within [-1, 1].

    Raises:
        InputError: an argument outside its domain.
    """
    lengths = as_units("units", units)
    tau = as_thresholds("thresholds", thresholds)
    n = int(lengths.sum())
    pairs = n * (n - 1) / 2
    across = pairs - float((lengths * (lengths - 1) / 2).sum())
    chance = np.clip(law.sf(tau), 0.0, 1.0) * (across / pairs if pairs else 0.0)
    chance = np.minimum(chance, _CERTAIN)
    mean, variance = _exact(n, chance) if n <= _EXACT else _limits(n, chance)
    if lengths.size > 1:
        mean = mean + _leading_by_unit(lengths, np.clip(law.sf(tau), 0.0, _CERTAIN)) - _leading(n, chance)[0]
    mean = np.clip(mean, 1.0, n)
    std = np.sqrt(np.maximum(variance, 0.0))
    band = prediction_band(mean, std, low=1.0, high=float(n))
    giant = 1 - _outside(n, chance)
    return Components("components", tau, n, 1, mean, std, *band, giant)


def _outside(n: int, chance: FloatArray) -> FloatArray:
    """Share x of blocks outside the giant component: the smallest solution of x = exp(−c(1 − x))."""
    degree = -np.log1p(-chance) * max(n - 1, 0)
    x = np.where(degree > 1, 0.0, 1.0)
    for _ in range(_ITERATIONS):
        x = np.where(degree > 1, np.exp(-degree * (1 - x)), 1.0)
    return x


def _limits(n: int, chance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The terms that grow with n; the rest of the mean, of order 1, is that of a small batch alike."""
    mean, variance = _leading(n, chance)
    small = np.minimum(-np.expm1(np.log1p(-chance) * ((n - 1) / (_SMALL - 1))), _CERTAIN)
    return mean + _exact(_SMALL, small, spread=False)[0] - _leading(_SMALL, small)[0], variance


def _leading(n: int, chance: FloatArray) -> tuple[FloatArray, FloatArray]:
    x = _outside(n, chance)
    outside = n * x
    mean = outside - chance * x**2 * (n * (n - 1) / 2)
    variance = outside * (1 - outside / n) + chance * (1 - chance) * outside**2 / 2
    return mean, variance


def _leading_by_unit(lengths: IntArray, chance: FloatArray) -> FloatArray:
    """The leading mean where blocks of long units have fewer partners: x by length of the unit."""
    size, count = np.unique(lengths, return_counts=True)
    size, count = size[:, None].astype(np.float64), count[:, None]
    exponent = -np.log1p(-chance)
    x = np.zeros((size.size, chance.size))
    for _ in range(_ITERATIONS):
        reached = size * (1 - x)
        x = np.exp(-exponent * ((count * reached).sum(axis=0) - reached))
    outside = (count * size * x).sum(axis=0)
    across = (outside**2 - (count * (size * x) ** 2).sum(axis=0)) / 2
    return outside - chance * across


def _exact(n: int, chance: FloatArray, *, spread: bool = True) -> tuple[FloatArray, FloatArray]:
    """Mean and variance from the chance C_k that k given blocks are connected among themselves.

    C_k = Σ_j (k−2 choose j−1) C_j C_{k−j} (1 − w^j) w^{j(k−1−j)}, w = 1 − F̄: take one block away; the
    component of a second one, of size j, hung on it. All terms are positive, so nothing cancels.
    """
    absent = np.log1p(-chance)[:, None]  # ln w, (T, 1)
    factorial = scipy.special.gammaln(np.arange(n + 2) + 1.0)  # ln k!
    size = np.arange(n + 1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        attached = np.log(-np.expm1(size * absent))  # ln(1 − w^j), (T, n + 1)
    connected = np.full((chance.size, n + 1), -np.inf)
    connected[:, 1] = 0.0
    for k in range(2, n + 1):
        j = np.arange(1, k)
        ways = factorial[k - 2] - factorial[j - 1] - factorial[k - 1 - j]
        terms = ways + connected[:, j] + connected[:, k - j] + attached[:, j] + (j * (k - 1 - j)) * absent
        connected[:, k] = _log_sum(terms)
    sizes = np.arange(1, n + 1)
    choose = factorial[n] - factorial[sizes] - factorial[n - sizes]
    first = np.exp(choose + connected[:, 1:] + (sizes * (n - sizes)) * absent).sum(axis=1)
    second = np.zeros_like(first)
    for one in range(1, n) if spread else ():
        other = np.arange(1, n - one + 1)
        rest = n - one - other
        ways = factorial[n] - factorial[one] - factorial[other] - factorial[rest]
        lost = one * (n - one) + other * rest
        second += np.exp(ways + connected[:, [one]] + connected[:, other] + lost * absent).sum(axis=1)
    return first, second + first - first**2


def _log_sum(terms: FloatArray) -> FloatArray:
    top = terms.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(terms - top).sum(axis=1)) + top[:, 0]
