"""The spectrum of residual directions, estimated so that similarity has the right spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spectrum", "estimate_spectrum"]

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

_FOLDS = 4


@dataclass(frozen=True)
class Spectrum:
    """Covariance of unit residuals: leading directions, and a flat rest.

    Attributes:
        shares: (K,) share of the variance along each row of ``basis``.
        basis: (K, r) orthonormal rows.
        rest_dimension: dimensions over which the remaining variance is spread evenly.
    """

    shares: FloatArray
    basis: Float32Array
    rest_dimension: int

    @property
    def effective_dimension(self) -> float:
        """1/tr Σ², for tr Σ = 1."""
        rest = max(0.0, 1 - self.shares.sum())
        return float(1 / (np.square(self.shares).sum() + rest**2 / self.rest_dimension))


def estimate_spectrum(residuals: Float32Array, groups: IntArray, *, rank: int) -> Spectrum:
    """Estimate the covariance Σ of unit residuals in R^r from fewer samples than dimensions.

    The eigenvalues of a sample covariance are too unequal: their squares sum to tr Σ² + (tr Σ)²/n, so blocks
    drawn
    from them are too alike. Here directions come from all samples, but the variance along them from
    groups that did not take part (cross-validation by request), and the variance that no direction holds is
    spread evenly over as many dimensions as give tr Σ² its unbiased estimate, the mean squared
    similarity of residuals of different groups.
    Test: tests/sim/test_spectrum.py::test_recovers_the_spread_of_similarity.

    Args:
        residuals: (n, r) unit rows.
        groups: (n,) request of each; rows of one request are not independent.
        rank: at most so many leading directions.
    """
    n, r = residuals.shape
    products = np.square(residuals @ residuals.T)
    between = groups[:, None] != groups[None, :]
    # One pair of independent rows is needed; without, all that is known is that n directions are possible.
    spread = float(products[between].mean()) if between.any() else 1 / r
    names = np.unique(groups)
    folds = min(_FOLDS, names.size)
    shares = np.zeros(0)
    if folds > 1:
        fold_of = np.searchsorted(names, groups) % folds
        held = [residuals[fold_of == fold] for fold in range(folds)]
        kept = [residuals[fold_of != fold] for fold in range(folds)]
        rank = min(rank, *(min(len(rows), r) // 2 for rows in kept))
        if rank > 0:
            along = [
                np.square(test @ _leading(train, rank).T).mean(axis=0)
                for test, train in zip(held, kept, strict=True)
            ]
            weights = [len(rows) / n for rows in held]
            # Sorted: held-out variances along neighbouring directions differ by noise alone.
            shares = np.sort(np.average(along, axis=0, weights=weights))[::-1].astype(np.float64)
    # Leading squares must leave the rest a share of the spread that at most r dimensions can have.
    while shares.size and np.square(shares).sum() >= spread:
        shares = (
            shares[:-1]
            if np.square(shares[:-1]).sum() >= spread
            else shares * np.sqrt(0.999 * spread / np.square(shares).sum())
        )
    basis = _leading(residuals, shares.size) if shares.size else np.zeros((0, r), dtype=np.float32)
    rest = max(0.0, 1 - float(shares.sum()))
    room = r - shares.size
    left = spread - float(np.square(shares).sum())
    dimension = room if left * room <= rest**2 else max(1, round(rest**2 / left))
    return Spectrum(shares, basis, min(dimension, room))


def _leading(rows: Float32Array, rank: int) -> Float32Array:
    """(rank, r) leading right singular vectors, through the smaller Gram matrix."""
    if len(rows) <= rows.shape[1]:
        values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
        top = vectors[:, ::-1][:, :rank]
        scale = np.sqrt(np.maximum(values[::-1][:rank], 1e-12))
        basis = (top / scale).T @ rows
    else:
        basis = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1][:, ::-1][:, :rank].T
    return np.ascontiguousarray(np.linalg.qr(basis.T.astype(np.float64))[0].T.astype(np.float32))
