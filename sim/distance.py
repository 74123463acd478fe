"""How far two laws of similarity are apart: Kolmogorov-Smirnov and Wasserstein, overall and by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["LawDistance", "PairScores", "law_distance", "pair_scores"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class PairScores:
    """Scores of all pairs of blocks of different requests.

    Attributes:
        scores: (pairs,) at most 1.
        difference: (pairs,) absolute difference of the blocks' positions.
    """

    scores: FloatArray
    difference: IntArray


@dataclass(frozen=True)
class LawDistance:
    """Distances of two samples of scores.

    Attributes:
        kolmogorov: largest difference of the distribution functions.
        wasserstein: mean difference of the quantiles.
    """

    kolmogorov: float
    wasserstein: float


def pair_scores(blocks: ArrayLike, full_blocks: ArrayLike) -> PairScores:
    """Cosines of all pairs of different requests.

    Args:
        blocks: (requests, max_blocks, …); trailing axes are flattened.
        full_blocks: (requests,).
    """
    array = np.asarray(blocks, dtype=np.float32)
    counts = np.asarray(full_blocks, dtype=np.int64)
    request = np.repeat(np.arange(counts.size), counts)
    position = np.concatenate([np.arange(count) for count in counts])
    rows = array.reshape(*array.shape[:2], -1)[request, position]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    upper = request[:, None] < request[None, :]
    scores = np.minimum(rows @ rows.T, 1)[upper].astype(np.float64)
    return PairScores(scores, np.abs(position[:, None] - position[None, :])[upper])


def law_distance(one: ArrayLike, other: ArrayLike) -> LawDistance:
    """Distances of the empirical laws of two samples of any sizes.

    Both are integrals over the line of the difference of the distribution functions: its largest absolute
    value, and its integral.
    Test: tests/sim/test_distance.py::test_against_scipy.

    Raises:
        InputError: an empty or non-finite sample.
    """
    a, b = (np.sort(np.asarray(sample, dtype=np.float64).ravel()) for sample in (one, other))
    for sample in (a, b):
        if sample.size == 0 or not np.isfinite(sample).all():
            raise InputError("scores", f"{sample.size} values", "must be at least one, all finite")
    points = np.sort(np.concatenate([a, b]))
    apart = np.abs(
        np.searchsorted(a, points, side="right") / a.size - np.searchsorted(b, points, side="right") / b.size
    )
    return LawDistance(float(apart.max()), float((apart[:-1] * np.diff(points)).sum()))
