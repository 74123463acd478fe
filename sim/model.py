"""A generator of synthetic blocks: geometry of keys and values, and the process of their content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.sim.content import ContentProcess, NamedContent
from ratedist.sim.parameters import BlockParameters
from ratedist.sim.rotary import Rotary

__all__ = ["BlockModel", "Side", "orthonormal_rows"]

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Geometry of the keys, or of the values, of one layer, before rotary positions turn it.

    Arrays by position hold one row per position; the last row holds for every later position.

    Attributes:
        mean: (positions, r) float32; unit direction of the mean of each position, or zero where there is
            none.
        alignment: (positions,) mean cosine of a block with its position's mean.
        alignment_spread: standard deviation of that cosine over blocks.
        spectrum: (K + A,) shares of the residual's variance, first along ``basis``, then along ``axes``; sums
            to 1.
        basis: (K, r) float32 orthonormal rows; K may be 0.
        axes: (A,) coordinates of R^r that carry the rest of the residual (less its part along ``basis``).
        log_norm: (positions,) mean logarithm of the norm.
        log_norm_spread: its standard deviation over blocks.
        rotary: what turns blocks by their position; None: nothing.
    """

    mean: Float32Array
    alignment: FloatArray
    alignment_spread: float
    spectrum: FloatArray
    basis: Float32Array
    axes: NDArray[np.int64]
    log_norm: FloatArray
    log_norm_spread: float
    rotary: Rotary | None

    def __post_init__(self) -> None:
        shape = (self.spectrum.size - self.axes.size, self.mean.shape[-1])
        if self.basis.shape != shape:
            raise InputError(
                "basis", self.basis.shape, f"must have shape {shape}: (shares without an axis, r)"
            )
        if self.spectrum.min() < 0 or not np.isclose(self.spectrum.sum(), 1):
            raise InputError("spectrum", float(self.spectrum.sum()), "must be shares that sum to 1")

    @property
    def effective_dimension(self) -> float:
        """1/Σ share²: the dimension of the sphere whose residual similarity has the same variance."""
        return float(1 / np.square(self.spectrum).sum())


@dataclass(frozen=True)
class BlockModel:
    """What ``ratedist.sim.blocks.generate`` draws from.

    Attributes:
        shape: (block_size, kv_heads, head_dim).
        keys: geometry of the keys.
        values: geometry of the values.
        content: the process of content.
        coupling: correlation of the residual coordinates of a block's keys and values.
        norm_coupling: correlation of the logarithms of its norms.
        domains: request i belongs to domain i modulo it.
    """

    shape: tuple[int, int, int]
    keys: Side
    values: Side
    content: ContentProcess
    coupling: float = 0.0
    norm_coupling: float = 0.0
    domains: int = 1

    @property
    def block_dim(self) -> int:
        """r = t·h·d."""
        return int(np.prod(self.shape))

    @classmethod
    def from_parameters(
        cls, parameters: BlockParameters, positions: int, *, seed: int, layer: int = 0
    ) -> BlockModel:
        """The model that parameters name, with directions drawn for one layer.

        Args:
            positions: positions for which directions of their own and norms are drawn.
            seed: seed of the directions.
            layer: another layer has other directions.
        """
        p = parameters
        rng = np.random.default_rng([seed, layer, 0x0D1E])
        with_positions = positions if p.position_k > 0 else 0
        if p.dimension_k is not None and p.dimension_k + with_positions + (p.common_k > 0) > p.block_dim:
            raise InputError(
                "dimension_k",
                p.dimension_k,
                f"must leave room for {with_positions} directions of positions in r = {p.block_dim}",
            )
        log_norm = p.norm_slope * np.arange(positions, dtype=np.float64)
        log_norm[0] += np.log(p.norm_first)
        keys = _side(
            rng,
            p.block_dim,
            common=p.common_k,
            position=p.position_k,
            positions=with_positions,
            spread=p.spread_k,
            dimension=p.dimension_k,
            log_norm=log_norm + np.log(p.norm_k),
            log_norm_spread=p.norm_spread_k,
            rotary=None if p.rotary_base is None else Rotary(p.rotary_base),
        )
        values = _side(
            rng,
            p.block_dim,
            common=p.common_v,
            position=0.0,
            positions=0,
            spread=p.spread_v,
            dimension=p.dimension_v,
            log_norm=log_norm + np.log(p.norm_v),
            log_norm_spread=p.norm_spread_v,
            rotary=None,
        )
        shape = (p.block_size, p.kv_heads, p.head_dim)
        return cls(shape, keys, values, NamedContent(p), p.coupling, p.norm_coupling, p.domains)


def orthonormal_rows(
    rng: np.random.Generator, rows: int, r: int, *, beside: Float32Array | None = None
) -> Float32Array:
    """(rows, r) random orthonormal rows, orthogonal to the orthonormal rows ``beside``."""
    drawn = rng.standard_normal((r, rows), dtype=np.float32)
    if beside is not None and len(beside):
        for _ in range(2):  # once more removes what rounding left
            drawn -= beside.T @ (beside @ drawn)
    return np.ascontiguousarray(np.linalg.qr(drawn)[0].T)


def _side(
    rng: np.random.Generator,
    r: int,
    *,
    common: float,
    position: float,
    positions: int,
    spread: float,
    dimension: int | None,
    log_norm: FloatArray,
    log_norm_spread: float,
    rotary: Rotary | None,
) -> Side:
    fixed = orthonormal_rows(rng, 1 + positions, r)
    mean = np.zeros((max(positions, 1), r), dtype=np.float32)
    total = common + position
    if total > 0:
        mean += np.float32(np.sqrt(common / total)) * fixed[0]
        if positions:
            mean += np.float32(np.sqrt(position / total)) * fixed[1:]
    basis, axes = np.zeros((0, r), dtype=np.float32), np.arange(r)
    if dimension is not None:
        basis = orthonormal_rows(rng, dimension, r, beside=fixed[: positions + 1] if total > 0 else None)
        axes = axes[:0]
    size = len(basis) + axes.size
    return Side(
        mean=mean,
        alignment=np.full(1, np.sqrt(total)),
        alignment_spread=spread,
        spectrum=np.full(size, 1 / size),
        basis=basis,
        axes=axes,
        log_norm=log_norm,
        log_norm_spread=log_norm_spread,
        rotary=rotary,
    )
