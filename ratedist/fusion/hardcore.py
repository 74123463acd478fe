"""Hard core of dense fusion: kept blocks repel each other, and so cover more than independent ones would.

Two kept blocks never lie within the threshold of each other (unless they came with one request), so they
share less of what they cover. Three numbers, each a probability of a small graph of exceedances, carry
this into the recursions; docs/theory.md derives them, and none is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, as_thresholds
from ratedist.errors import InputError
from ratedist.similarity.spherical import Spherical

__all__ = ["HardCore"]

FloatArray = NDArray[np.float64]

# Caps are integrated at this many nodes per coordinate, and at most at this many thresholds (between them
# the numbers are interpolated).
_NODES = 5
_KNOTS = 15
# The geometry of three points in a cap needs two coordinates across it.
_SMALLEST_DIM = 3.1
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class HardCore:
    """What one exceedance says about others, per threshold: arrays of shape (T,).

    Attributes:
        transitivity: C, chance that two blocks exceed against each other, given that both exceed against
            a third.
        crowding: κ, to second order in the density by how much the edge of an uncovered cap is fuller than
            its first-order value: D + C² − (3/2)C₂ + ½C₃.
        common: chance that a block outside a cap, but within reach of one block inside it, is within reach
            of another inside it too, given that those two do not exceed: (D − C₂ + C₃)/(1 − C).

    With z fixed and y₁, y₂, y₃ drawn from its cap: C₂ = P(y₁y₂ and y₁y₃ exceed), C₃ = P(all three pairs
    exceed), D = E[share of a cap that y₁ and y₂ cover jointly; y₁y₂ do not exceed].
    """

    transitivity: FloatArray
    crowding: FloatArray
    common: FloatArray

    @classmethod
    def none(cls, count: int) -> HardCore:
        """No hard core at ``count`` thresholds: exceedances independent of each other."""
        return cls(np.zeros(count), np.zeros(count), np.zeros(count))

    @classmethod
    def of_transitivity(cls, transitivity: ArrayLike, count: int) -> HardCore:
        """First-order hard core from transitivity alone, one number or one per threshold.

        Raises InputError where it is outside [0, 1] or does not fit the thresholds.
        """
        value = as_numbers("transitivity", transitivity, low=0.0, high=1.0)
        if value.ndim > 1 or value.size not in (1, count):
            raise InputError(
                "transitivity", f"shape {value.shape}", f"must be one number or {count}, one per threshold"
            )
        full = np.array(np.broadcast_to(value, (count,)))
        return cls(full, np.zeros(count), np.zeros(count))

    @classmethod
    def spherical(cls, dim: float, thresholds: ArrayLike) -> HardCore:
        """Independent uniform directions in R^dim, by quadrature over caps of the sphere.

        Below dim 3.1 the value at 3.1 is used.
        Tests: tests/ratedist/fusion/test_hardcore.py::test_spherical_against_sampled_caps.
        """
        tau = as_thresholds("thresholds", thresholds)
        if dim <= 1 or not np.isfinite(dim):
            raise InputError("dim", dim, "must be a finite number above 1")
        dim = max(float(dim), _SMALLEST_DIM)
        if tau.size <= _KNOTS:
            return cls(*_caps(dim, tau))
        # Spread like the law itself, whose scale is 1/√dim.
        low, high = np.arcsinh(tau[[0, -1]] * np.sqrt(dim))
        knots = np.sinh(np.linspace(low, high, _KNOTS)) / np.sqrt(dim)
        numbers = np.log(np.maximum(_caps(dim, np.clip(knots, -1, 1)), _NEGLIGIBLE))
        return cls(*np.exp(scipy.interpolate.PchipInterpolator(knots, numbers, axis=1)(tau)))

    @classmethod
    def from_scores(cls, scores: ArrayLike, thresholds: ArrayLike) -> HardCore:
        """Estimate from the scores of all pairs of a sample of blocks, (n, n) symmetric, diagonal ignored.

        Counts of stars, triangles, diamonds and cliques of the exceedance graph. Sample within one class of
        blocks: where some blocks are more popular than others, transitivity is high without any geometry.
        Test: tests/ratedist/fusion/test_hardcore.py::test_estimate_from_scores.

        Raises:
            InputError: a matrix that is not square and symmetric, fewer than 4 blocks, or a threshold at
                which no block exceeds against two others.
        """
        tau = as_thresholds("thresholds", thresholds)
        matrix = as_numbers("scores", scores)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 4:
            raise InputError("scores", f"shape {matrix.shape}", "must be square, over at least 4 blocks")
        if not np.allclose(matrix, matrix.T):
            raise InputError("scores", "not symmetric", "must hold the same score for a pair in both orders")
        columns = [_motifs(matrix > t, float(t)) for t in tau]
        return cls(*np.array(columns).T)


def _caps(dim: float, tau: FloatArray) -> FloatArray:
    """(3, T): transitivity, crowding and common of uniform directions.

    Points of a cap around z are written as y = a·z + √(1 − a²)·u. With a, and the cosines between the u's,
    at quantiles of their laws given the exceedances required, only smooth means remain.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes, weights = (nodes + 1) / 2, weights / 2
    # Squared, for quantiles have a logarithm (or a root) at 0.
    nodes, weights = nodes**2, 2 * nodes * weights
    law, around, third = Spherical(dim), Spherical(dim - 1), Spherical(dim - 2)
    a = law.isf(np.multiply.outer(law.sf(tau), nodes))  # (T, n)
    root = np.sqrt(np.maximum((1 - a) * (1 + a), 1e-200))
    spread = root[:, :, None] * root[:, None, :]
    product = a[:, :, None] * a[:, None, :]
    least = (tau[:, None, None] - product) / spread  # cosine of the u's at which a pair exceeds
    close = around.sf(least)  # (T, n, n)
    covered = close @ weights
    transitivity = covered @ weights
    diamond = covered**2 @ weights

    # Pairs that do not exceed: the cosine of their u's at quantiles below `least`.
    apart = around.ppf((1 - close)[..., None] * nodes)
    score = product[..., None] + spread[..., None] * apart  # (T, n, n, n)
    edge = np.sqrt(np.maximum((1 - score) * (1 + score), 1e-30))
    reach = (tau[:, None, None, None, None] - a[:, None, None, None, :] * score[..., None]) / (
        root[:, None, None, None, :] * edge[..., None]
    )
    joint = around.sf(reach) @ weights @ weights
    far = np.einsum("tij,i,j->t", (1 - close) * joint, weights, weights)

    # Three in a cap, all exceeding: y₁ at a_i, y₂ at a_j, y₃ at a_k, cosines b (of 1, 2) and c (of 1, 3).
    near = around.isf(close[..., None] * nodes)  # (T, n, n, m)
    b, c = near[:, :, :, None, :, None], near[:, :, None, :, None, :]
    rest = np.sqrt(np.maximum((1 - b * b) * (1 - c * c), 1e-30))
    last = third.sf((least[:, None, :, :, None, None] - b * c) / rest) @ weights @ weights
    clique = np.einsum("tij,tik,tijk,i,j,k->t", close, close, last, weights, weights, weights)
    # Where an exceedance is rarer than float64 resolves, nothing repels.
    return np.where(law.sf(tau) > 1e-280, _numbers(transitivity, diamond, clique, far), 0.0)


def _numbers(
    transitivity: FloatArray, diamond: FloatArray, clique: FloatArray, far: FloatArray
) -> FloatArray:
    crowding = far + transitivity**2 - 1.5 * diamond + 0.5 * clique
    common = (far - diamond + clique) / np.maximum(1 - transitivity, _NEGLIGIBLE)
    return np.maximum([transitivity, crowding, common], 0.0)


def _motifs(exceeds: NDArray[np.bool_], threshold: float) -> FloatArray:
    graph = exceeds.astype(np.float64)
    np.fill_diagonal(graph, 0.0)
    n = graph.shape[0]
    degree = graph.sum(axis=1)
    wedges = float((degree * (degree - 1)).sum())
    if wedges == 0:
        raise InputError(
            "thresholds",
            threshold,
            "leaves no block that exceeds against two others; sample more blocks or go lower",
        )
    paths = graph @ graph
    transitivity = float((paths * graph).sum()) / wedges
    # Ordered triples of neighbours of one block, and what joins them.
    triples = float((degree * (degree - 1) * (degree - 2)).sum())
    shared = paths * graph  # common neighbours of the two ends of an edge
    diamonds = float((shared * (shared - 1)).sum())
    cliques = 0.0
    for z in range(n):
        inside = graph[np.ix_(graph[z] > 0, graph[z] > 0)]
        cliques += float(np.einsum("ij,ij->", inside @ inside, inside))
    apart = paths * (1 - graph)
    np.fill_diagonal(apart, 0.0)
    far = float((apart * (apart - 1)).sum())
    # A wedge z, y₁, y₂ has (n − 3) further blocks, each within reach of y₁ with the mean exceedance share.
    scale = wedges * (n - 3) * degree.sum() / (n * (n - 1))
    return _numbers(
        np.array(transitivity),
        np.array(diamonds / triples if triples else transitivity**2),
        np.array(cliques / triples if triples else transitivity**3),
        np.array(far / scale),
    )
