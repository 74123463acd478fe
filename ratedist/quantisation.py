"""Uniform quantisation as a curve on the axes of fusion: bits per scalar against e².

Source model: scalars are independent Gaussian with mean 0 within a group of g that share one scale and one
zero point (the variance may differ from group to group: e² is relative). Quantiser: b bits, 2^b levels
evenly spaced from the smallest to the largest scalar of the group, rounding to the nearest. The rounding of
scale and zero point themselves (16 bits each) is left out. Real keys have outlying channels, which is why
they are grouped per channel; measured caches take this curve's place where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, whole_number
from ratedist.errors import InputError

__all__ = [
    "GROUP_OVERHEAD_BITS",
    "combined_error2",
    "quantisation_bits_per_scalar",
    "quantisation_error2",
    "quantisation_points",
]

FloatArray = NDArray[np.float64]

GROUP_OVERHEAD_BITS = 32
"""Scale and zero point of a group, float16 each."""

# Order of the Gauss rules over the smallest and the largest scalar of a group.
_NODES = 100
# Beyond this many standard deviations a Gaussian group of any size in use has no scalar.
_EDGE = 9.0


def quantisation_bits_per_scalar(bits: ArrayLike, group: int = 32) -> FloatArray:
    """Bits per scalar, the group's scale and zero point included: b + 32/g."""
    group = whole_number("group", group, low=2)
    return as_numbers("bits", bits, low=1.0) + GROUP_OVERHEAD_BITS / group


def quantisation_error2(bits: int, group: int = 32) -> float:
    """Mean e² of b-bit uniform quantisation of Gaussian groups, exact under the source model.

    The smallest and largest scalar, a and c, are levels themselves; the g − 2 between them are independent
    truncated Gaussians. With the joint density g(g − 1)(Φ(c) − Φ(a))^(g−2) φ(a)φ(c) the mean error is the
    double integral of (g − 1)(g − 2)(Φ(c) − Φ(a))^(g−3) φ(a)φ(c)·∫_a^c (x − Q(x))² φ(x) dx, whose innermost
    integral is a sum of truncated Gaussian moments over the cells of the quantiser
    (tests/ratedist/test_quantisation.py::test_error_against_simulation).

    Args:
        bits: b, 1 to 12.
        group: g, scalars that share a scale and a zero point, at least 2.
    """
    bits = whole_number("bits", bits, low=1)
    if bits > 12:
        raise InputError("bits", bits, "must be at most 12; beyond that half precision itself rounds as much")
    return _error2(bits, whole_number("group", group, low=2))


@cache
def _error2(bits: int, group: int) -> float:
    if group == 2:
        return 0.0  # both scalars are levels
    ndtr = scipy.special.ndtr
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    # Integrate over the range w = c − a and the middle m = (a + c)/2.
    ranges, range_weights = (nodes + 1) * _EDGE, weights * _EDGE
    middles, middle_weights = nodes * _EDGE / 2, weights * _EDGE / 2
    w, m = ranges[:, None], middles[None, :]
    a, c = m - w / 2, m + w / 2
    density = _density(a) * _density(c) * (ndtr(c) - ndtr(a)) ** (group - 3)

    step = ranges / (2**bits - 1)
    inner = np.zeros_like(density)
    for level in range(2**bits):
        centre = a + level * step[:, None]
        low = np.maximum(centre - step[:, None] / 2, a)
        high = np.minimum(centre + step[:, None] / 2, c)
        inner += _squared_distance(low, high, centre)
    total = (density * inner * range_weights[:, None] * middle_weights[None, :]).sum()
    return float((group - 1) * (group - 2) * total)


def _density(x: FloatArray) -> FloatArray:
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _squared_distance(low: FloatArray, high: FloatArray, centre: FloatArray) -> FloatArray:
    """∫_low^high (x − centre)² φ(x) dx, by a Gauss rule: the closed form cancels over narrow cells."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    half = (high - low) / 2
    total = np.zeros_like(half)
    for node, weight in zip(nodes, weights, strict=True):
        x = low + half * (1 + node)
        total += weight * (x - centre) ** 2 * _density(x)
    return half * total


def quantisation_points(
    bits: Sequence[int] = (1, 2, 3, 4, 5, 6, 8), group: int = 32
) -> tuple[FloatArray, FloatArray]:
    """The curve: (bits per scalar, e²), one point per number of bits, each of shape (len(bits),)."""
    if len(bits) == 0:
        raise InputError("bits", list(bits), "needs at least one number of bits")
    if sorted(set(bits)) != list(bits):
        raise InputError("bits", list(bits), "must be sorted from low to high without repeats")
    rates = quantisation_bits_per_scalar(np.asarray(bits, dtype=np.float64), group)
    return rates, np.array([quantisation_error2(number, group) for number in bits])


def combined_error2(fusion_error2: ArrayLike, quantised_error2: ArrayLike) -> FloatArray:
    """e² of a block read back from a quantised representative with its own norm: the two errors add.

    The quantiser's error is taken as independent of the direction between member and representative, so that
    the cross term vanishes; the scale n/n_rep carries the representative's relative error over unchanged
    (tests/ratedist/test_quantisation.py::test_errors_of_fusion_and_quantisation_add).
    """
    return as_numbers("fusion_error2", fusion_error2, low=0.0) + as_numbers(
        "quantised_error2", quantised_error2, low=0.0
    )
