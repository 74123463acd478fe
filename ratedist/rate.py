"""Rate: bytes of the whole cache after fusion, and bits per scalar.

Counted in the fused cache: the kept blocks' keys and values, and for every logical block a table entry and
two float32 scales; then the layers and the partly filled blocks that fusion leaves alone. The unfused cache
is counted by its data alone, so that all of the bookkeeping is charged to fusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, whole_number
from ratedist.errors import InputError

__all__ = ["SCALE_BYTES", "TABLE_ENTRY_BYTES", "CacheRate", "CacheShape", "bits_per_scalar", "cache_rate"]

FloatArray = NDArray[np.float64]

TABLE_ENTRY_BYTES = 4
"""A physical block's number, int32."""

SCALE_BYTES = 8
"""Two float32 scales, one for the keys and one for the values."""


@dataclass(frozen=True)
class CacheShape:
    """What a KV cache holds, as far as its bytes depend on it.

    Attributes:
        layers: layers of the model.
        fused_layers: layers in which blocks are fused; the others are left alone.
        blocks: full logical blocks per layer, over all requests.
        block_scalars: r, scalars of the keys of one block (tokens × KV heads × head dimension); the values
            hold as many.
        scalar_bits: bits of one stored scalar; 16 for half precision, less for quantised blocks (a share of
            their scales and zero points included).
        partial_scalars: scalars of keys in partly filled blocks per layer; they are never fused.
    """

    layers: int
    fused_layers: int
    blocks: int
    block_scalars: int
    scalar_bits: float = 16.0
    partial_scalars: int = 0

    def __post_init__(self) -> None:
        whole_number("layers", self.layers, low=1)
        whole_number("fused_layers", self.fused_layers, low=0)
        if self.fused_layers > self.layers:
            raise InputError("fused_layers", self.fused_layers, f"must be at most layers = {self.layers}")
        whole_number("blocks", self.blocks, low=1)
        whole_number("block_scalars", self.block_scalars, low=1)
        whole_number("partial_scalars", self.partial_scalars, low=0)
        as_numbers("scalar_bits", self.scalar_bits, low=0.0, low_open=True)

    @property
    def layer_bytes(self) -> float:
        """Bytes of keys and values of one unfused layer."""
        return 2 * (self.blocks * self.block_scalars + self.partial_scalars) * self.scalar_bits / 8

    @property
    def block_bytes(self) -> float:
        """Bytes of keys and values of one block."""
        return 2 * self.block_scalars * self.scalar_bits / 8

    @property
    def scalars(self) -> int:
        """Scalars of keys and values over all layers."""
        return 2 * self.layers * (self.blocks * self.block_scalars + self.partial_scalars)


@dataclass(frozen=True)
class CacheRate:
    """Bytes of one cache before and after fusion; every field has the shape of ``kept``.

    Attributes:
        unfused_bytes: data of the cache without fusion.
        fused_bytes: kept data, table entries and scales, and what was left alone.
        overhead_bytes: the table entries and scales among them.
        compression: unfused_bytes / fused_bytes, over the whole cache.
        fused_layer_compression: logical over kept blocks in the fused layers only, without overhead: what
            is often reported, and always the larger number of the two.
        bits_per_scalar: bits of the fused cache per scalar of the whole cache.
    """

    unfused_bytes: FloatArray
    fused_bytes: FloatArray
    overhead_bytes: FloatArray
    compression: FloatArray
    fused_layer_compression: FloatArray
    bits_per_scalar: FloatArray


def cache_rate(shape: CacheShape, kept: ArrayLike) -> CacheRate:
    """Bytes of a cache whose fused layers keep ``kept`` blocks each (their mean, where layers differ).

    32 layers with 4 left alone and 4.38× over the fused layers are 3.08× of the whole
    (tests/ratedist/test_rate.py::test_whole_cache_beside_fused_layers).

    Args:
        shape: what the cache holds.
        kept: kept blocks per fused layer, any shape, above 0 and at most ``shape.blocks``; expected values
            need not be whole.
    """
    kept = as_numbers("kept", kept, low=0.0, low_open=True)
    if (kept > shape.blocks * (1 + 1e-12)).any():
        raise InputError("kept", float(kept.max()), f"must be at most the {shape.blocks} logical blocks")
    overhead = float(shape.fused_layers * shape.blocks * (TABLE_ENTRY_BYTES + SCALE_BYTES))
    partial = 2 * shape.partial_scalars * shape.scalar_bits / 8
    alone = (shape.layers - shape.fused_layers) * shape.layer_bytes + shape.fused_layers * partial
    fused = shape.fused_layers * kept * shape.block_bytes + overhead + alone
    unfused = np.full_like(kept, shape.layers * shape.layer_bytes)
    return CacheRate(
        unfused_bytes=unfused,
        fused_bytes=fused,
        overhead_bytes=np.full_like(kept, overhead),
        compression=unfused / fused,
        fused_layer_compression=shape.blocks / kept,
        bits_per_scalar=8 * fused / shape.scalars,
    )


def bits_per_scalar(
    kept_share: ArrayLike, *, scalar_bits: float = 16.0, block_scalars: float | None = None
) -> FloatArray:
    """Bits per scalar of fused layers that keep a share of their blocks.

    Args:
        kept_share: kept over logical blocks, any shape, within [0, 1].
        scalar_bits: bits of one stored scalar.
        block_scalars: r; with it the table entry and the two scales of every logical block are added
            (96 bits over 2r scalars), without it they are left out.

    Test: tests/ratedist/test_rate.py::test_bits_per_scalar_agree_with_the_bytes.
    """
    share = as_numbers("kept_share", kept_share, low=0.0, high=1.0)
    bits = share * float(as_numbers("scalar_bits", scalar_bits, low=0.0, low_open=True))
    if block_scalars is not None:
        r = float(as_numbers("block_scalars", block_scalars, low=0.0, low_open=True))
        bits = bits + 8 * (TABLE_ENTRY_BYTES + SCALE_BYTES) / (2 * r)
    return bits
