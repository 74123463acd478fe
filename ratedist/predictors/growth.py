"""Continuing a curve of new blocks beyond the requests that were seen, and how far continuations differ.

The share v(m) of a request's blocks that stay once m others are fused is followed by

    v(m) = A·(1 + m/s)^(−b),

which is what the uncovered share does both where blocks differ in how popular they are and where kept
blocks crowd each other (docs/theory.md, "Accumulation"). Many (A, s, b) fit a short curve. None is chosen:
all of a grid are weighted by their likelihood, so what the sample leaves open shows as spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Growth", "bins_of"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SLOPES = np.geomspace(0.002, 3.0, 23)
"""Slopes −dln v/dln m at the end of the sample: from none that 16 requests show to one that ends growth."""

_SCALES = np.geomspace(0.02, 5.0, 12)
"""s over the requests of the sample: from a power law throughout to nearly an exponential."""

_RATIO = 1.45
_SHRINK = 0.5
_RELATIVE_FLOOR = 0.005


@dataclass(frozen=True)
class Growth:
    """Curves A·(1 + m/s)^(−b) of one variant that fit a sample of n requests, at T thresholds.

    Attributes:
        length: n.
        bins: (bins,) steps at which bins begin, the last one open; from 1, since the first request meets
            nobody.
        variance: (T, bins) of the mean share in each bin.
        precision: (T, bins, bins) inverse covariance of them.
    """

    length: int
    bins: IntArray
    variance: FloatArray
    precision: FloatArray

    @classmethod
    def of(cls, shares: FloatArray, replicates: FloatArray | None, blocks: int) -> Growth:
        """Take the bins and their covariance from a sample.

        Args:
            shares: (T, n) share of blocks that stay at each step, n at least 2.
            replicates: (J, T, steps) the same with groups left out, NaN at steps they do not have; their
                jackknife covariance counts half off the diagonal, for J replicates cannot settle a
                matrix. None: as if every block were drawn by itself.
            blocks: blocks of the sample, which tell how small a share can be told from 0.
        """
        shortest = shares if replicates is None else replicates
        bins = bins_of(int(_known(shortest).min()))
        mean = _binned(shares, bins)
        least = np.maximum(mean, 1.0 / blocks)
        size = bins.size
        covariance = np.zeros((shares.shape[0], size, size))
        if replicates is None:
            spread = least / blocks
        else:
            deviation = np.stack([_binned(replicate, bins) for replicate in replicates])
            deviation -= deviation.mean(axis=0)
            factor = (len(replicates) - 1) / len(replicates)
            covariance = factor * np.einsum("jta,jtb->tab", deviation, deviation)
            spread = np.einsum("taa->ta", covariance).copy()
            covariance *= 1 - _SHRINK
        diagonal = np.arange(size)
        variance = spread + (_RELATIVE_FLOOR * least) ** 2
        covariance[:, diagonal, diagonal] = variance
        return cls(shares.shape[1], bins, variance, np.linalg.inv(covariance).astype(np.float64))

    def ahead(self, shares: FloatArray, steps: IntArray) -> tuple[FloatArray, FloatArray]:
        """Continue the curve of ``shares``.

        Args:
            shares: (T, n), of the sample or of a replicate of it, NaN at the steps it does not have.
            steps: (M,) steps to predict, from the length of the sample on.

        Returns:
            share (K, T, M): each of the K curves at those steps; weight (K, T): posterior weights.

        For given s and b the best height follows by generalised least squares, at most 1 at n; weights are
        exp(−χ²/2), normalised, under a prior even in the logarithms of slope and scale. Then every curve is
        moved in height to pass through the last two bins: the sample's end is where the continuation
        begins, and no step between the two is meant.

        Test: tests/ratedist/predictors/test_growth.py::test_continues_a_known_curve.
        """
        slope, scale = (grid.ravel() for grid in np.meshgrid(_SLOPES, _SCALES, indexing="ij"))
        # −dln v/dln m = b·m/(s + m), at m = n with s = scale·n.
        power = slope * (1 + scale)
        observed = _binned(shares, self.bins)

        def shape(at: IntArray) -> FloatArray:  # 1 at the sample's end
            reach = (1 + at / (self.length * scale[:, None])) / (1 + 1 / scale[:, None])
            return np.asarray(reach ** -power[:, None])

        curve = _binned(shape(np.arange(int(_known(shares).min()))), self.bins)
        fit = np.einsum("ka,tab->tkb", curve, self.precision)
        norm = np.einsum("tkb,kb->kt", fit, curve)
        overlap = np.einsum("tkb,tb->kt", fit, observed)
        height = np.clip(overlap / norm, 0.0, 1.0)
        misfit = height**2 * norm - 2 * height * overlap
        weight = np.exp(-0.5 * (misfit - misfit.min(axis=0)))
        last = slice(-2, None)
        sure = 1 / self.variance[:, last]
        through = np.einsum("ta,ta,ka->kt", sure, observed[:, last], curve[:, last])
        through /= np.einsum("ta,ka->kt", sure, curve[:, last] ** 2)
        share = through[:, :, None] * shape(steps)[:, None]
        return np.clip(share, 0.0, 1.0), weight / weight.sum(axis=0)


def bins_of(steps: int) -> IntArray:
    """Where bins of the steps 1 to ``steps`` − 1 begin, each about 1.45 times as far out as the last."""
    bins = [1]
    while bins[-1] < steps:
        bins.append(min(steps, max(bins[-1] + 1, round(bins[-1] * _RATIO))))
    if len(bins) > 2 and bins[-1] - bins[-2] < 0.6 * (bins[-2] - bins[-3]):
        del bins[-2]
    return np.array(bins[:-1])


def _known(shares: FloatArray) -> IntArray:
    """How many steps each curve has."""
    return np.asarray((~np.isnan(shares)).sum(axis=-1))


def _binned(shares: FloatArray, bins: IntArray) -> FloatArray:
    """Mean over each bin, of the steps that are known."""
    ends = [*bins[1:], shares.shape[-1]]
    means = [np.nanmean(shares[..., low:high], axis=-1) for low, high in zip(bins, ends, strict=True)]
    return np.stack(means, axis=-1)
