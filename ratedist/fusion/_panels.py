"""Quadrature over the law of the best match, with nodes where it changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ratedist.similarity.base import SimilarityLaw

__all__ = ["Panels", "panels"]

FloatArray = NDArray[np.float64]

_PANELS = 5  # up to the score that no representative reaches, and one beyond it
_NODES = 5
_TABLE = 400
_BEYOND = 10.0  # e^−10: share of the matches at the threshold that the last panel holds at most


@dataclass(frozen=True)
class Panels:
    """Nodes over [τ, 1] for each of T thresholds.

    Attributes:
        scores: (K, T) nodes.
        lengths: (K, T) weights of ∫ f ds over [τ, 1].
        derivative: (n, n), derivative at the nodes of a panel of unit length.
        width: (K/n, T) lengths of the panels.
    """

    scores: FloatArray
    lengths: FloatArray
    derivative: FloatArray
    width: FloatArray

    def integrate(self, values: FloatArray) -> FloatArray:
        """∫_τ^1 f ds from values (K, …, T)."""
        if values.ndim == 2:
            return np.einsum("kt,kt->t", self.lengths, values)
        return np.einsum("kt,kut->ut", self.lengths, values)

    def by_parts(self, values: FloatArray) -> FloatArray:
        """(K, T) weights w with Σ w·f(scores) = ∫_τ^1 f′(s)·values ds for smooth f."""
        nodes = self.derivative.shape[0]
        weighted = (self.lengths * values).reshape(-1, nodes, values.shape[-1])
        with np.errstate(divide="ignore"):
            scale = np.where(self.width > 0, 1 / self.width, 0.0)
        return np.einsum("pkt,kj,pt->pjt", weighted, self.derivative, scale).reshape(values.shape)


def panels(law: SimilarityLaw, thresholds: FloatArray, most: FloatArray) -> Panels:
    """Gauss-Legendre panels of equal length in −ln F̄ from each threshold on.

    With ``most`` the largest expected number of exceedances a block can meet at the threshold, exp(−N·F̄(s))
    changes where −ln(F̄(s)/F̄(τ)) is about its logarithm, over a width of about one.
    Test: tests/ratedist/fusion/test_panels.py::test_integrals_against_quad.
    """
    lowest = float(thresholds[0])
    grid = np.union1d(
        np.linspace(lowest, 1.0, _TABLE), lowest + (1 - lowest) * np.geomspace(1e-4, 1.0, _TABLE)
    )
    exponent = -np.maximum(law.logsf(grid), -1e4)
    exponent = np.maximum.accumulate(exponent) + 1e-9 * np.arange(grid.size)
    start = np.interp(thresholds, grid, exponent)
    reach = np.log1p(most) + _BEYOND
    inner = start + np.linspace(0, 1, _PANELS + 1)[:, None] * reach
    edges = np.interp(inner, exponent, grid)
    edges[0] = thresholds
    edges = np.maximum.accumulate(np.concatenate([edges, np.ones((1, thresholds.size))]), axis=0)
    nodes, weights, derivative = _rule()
    width = np.diff(edges, axis=0)
    scores = edges[:-1, None] + width[:, None] * nodes[:, None]
    lengths = width[:, None] * weights[:, None]
    shape = (-1, thresholds.size)
    return Panels(scores.reshape(shape), lengths.reshape(shape), derivative, width)


@cache
def _rule() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Nodes and weights on [0, 1], and the matrix that differentiates at the nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes, weights = (nodes + 1) / 2, weights / 2
    return nodes, weights, _derivative(nodes)


def _derivative(nodes: FloatArray) -> FloatArray:
    """Matrix that takes values at the nodes to the derivative of their interpolation there."""
    gaps = nodes[:, None] - nodes[None, :]
    np.fill_diagonal(gaps, 1.0)
    scale = gaps.prod(axis=1)
    matrix = scale[:, None] / scale[None, :] / gaps
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(axis=1))
    return matrix
