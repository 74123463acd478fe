"""Quantised representatives: blocks of a paged or fused layer in 8 or 4 bits, dequantised as they are read.

Keys have outlying channels, values do not, so keys are quantised per channel and values per token, in the
manner of KIVI (Liu et al. 2024). Only full blocks are: a partly filled block is still written to, which would
change the scales of what it holds. It stays in floating point in a second pool, the tail, and so does every
block that fills up later, until the layer is quantised anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.reading import Reading
from ratedist.kernels.restore import as_read, read_blocks

__all__ = [
    "BITS",
    "Layer",
    "QuantisedLayer",
    "QuantisedPool",
    "dequantise",
    "quantise",
    "quantised_bytes",
    "read_layer_blocks",
]

BITS = (8, 4)

_ROW_ALIGNMENT = 16
"""Bytes to whose multiple the codes of one token and head are padded: what a kernel loads at once."""

_SMALLEST_STEP = 2.0**-24
"""The smallest positive float16."""


@dataclass(frozen=True)
class QuantisedPool:
    """Blocks of keys or of values as codes: scalar = low + step · code.

    Attributes:
        codes: (blocks, block_size, kv_heads, row_bytes) uint8, row_bytes a multiple of 16. With 8 bits, byte
            i is channel i; with 4 bits it holds channel 2 i in its lower half and 2 i + 1 in its upper.
        low: code 0 in float16: (blocks, 1, kv_heads, head_dim) where there is one per channel, or
            (blocks, block_size, kv_heads, 1) where there is one per token.
        step: difference of neighbouring codes in float16, of the shape of ``low``.
        bits: one of ``BITS``.
        head_dim: channels per head.
        dtype: floating-point type of what was quantised, and of the queries that read it.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int
    head_dim: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError("bits", self.bits, f"must be one of {', '.join(map(str, BITS))}")
        row_bytes = _row_bytes(self.head_dim, self.bits)
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 4 or self.codes.shape[3] != row_bytes:
            raise InputError(
                "codes",
                f"{self.codes.dtype} of shape {tuple(self.codes.shape)}",
                f"must be uint8 of shape (blocks, block_size, kv_heads, {row_bytes})",
            )
        blocks, block_size, kv_heads, _ = self.codes.shape
        shapes = ((blocks, 1, kv_heads, self.head_dim), (blocks, block_size, kv_heads, 1))
        for name in ("low", "step"):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.float16 or tuple(tensor.shape) not in shapes:
                raise InputError(
                    name,
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}",
                    f"must be float16 of shape {shapes[0]}, per channel, or {shapes[1]}, per token",
                )
            if tensor.device != self.codes.device:
                raise InputError(name, str(tensor.device), f"must be on {self.codes.device} like the codes")
        if self.step.shape != self.low.shape:
            raise InputError("step", tuple(self.step.shape), f"must be of the shape of low, {self.low.shape}")

    @property
    def shape(self) -> torch.Size:
        """(blocks, block_size, kv_heads, head_dim), as of a pool of scalars."""
        return torch.Size((*self.codes.shape[:3], self.head_dim))

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, padding included, and of what turns them into scalars."""
        return sum(x.numel() * x.element_size() for x in (self.codes, self.low, self.step))

    def read(self, blocks: Tensor) -> Tensor:
        """(n, block_size, kv_heads, head_dim) float32: the blocks with the given (n,) ids, dequantised."""
        codes = self.codes.index_select(0, blocks)
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=4).flatten(3)
        step, low = (x.index_select(0, blocks).float() for x in (self.step, self.low))
        return codes[..., : self.head_dim].float().mul_(step).add_(low)


@dataclass(frozen=True)
class QuantisedLayer:
    """One layer some of whose blocks are codes, under one block table.

    An entry of the table below the number of quantised blocks names one of those; the entries from there on
    name the blocks of the tail, in order. Reading is that of a ``FusedLayer`` with the dequantised blocks.

    Attributes:
        k: quantised keys, per channel.
        v: quantised values, per token; as many blocks.
        table: block table over both pools.
        k_scale: (requests, max_blocks) float32.
        v_scale: (requests, max_blocks) float32.
        k_tail: (tails, block_size, kv_heads, head_dim) keys that are not quantised, in the dtype of ``k``.
        v_tail: as ``k_tail``.
        reading: rotary shifts and means; None for neither.
    """

    k: QuantisedPool
    v: QuantisedPool
    table: BlockTable
    k_scale: Tensor
    v_scale: Tensor
    k_tail: Tensor
    v_tail: Tensor
    reading: Reading | None = None

    def __post_init__(self) -> None:
        blocks, block_size, kv_heads, head_dim = self.k.shape
        if (self.v.shape, self.v.bits, self.v.dtype) != (self.k.shape, self.k.bits, self.k.dtype):
            raise InputError(
                "v",
                f"{self.v.bits} bits of {self.v.dtype}, {tuple(self.v.shape)}",
                f"must be like k, {self.k.bits} bits of {self.k.dtype}, {tuple(self.k.shape)}",
            )
        if self.k.low.shape[1] != 1 or self.v.low.shape[3] != 1:
            raise InputError(
                "low", "k per token or v per channel", "must be per channel for k, per token for v"
            )
        for name in ("k_tail", "v_tail"):
            tail: Tensor = getattr(self, name)
            if tail.dtype != self.k.dtype or tuple(tail.shape[1:]) != (block_size, kv_heads, head_dim):
                raise InputError(
                    name,
                    f"{tail.dtype} of shape {tuple(tail.shape)}",
                    f"must be {self.k.dtype} of shape (tails, {block_size}, {kv_heads}, {head_dim})",
                )
        if len(self.v_tail) != len(self.k_tail):
            raise InputError("v_tail", len(self.v_tail), f"must hold the {len(self.k_tail)} blocks of k_tail")
        # A layer of as many blocks without data checks the table, the scales and the reading.
        blank = torch.empty(1, dtype=self.k.dtype, device=self.k.device)
        blank = blank.expand(blocks + len(self.k_tail), block_size, kv_heads, head_dim)
        FusedLayer(blank, blank, self.table, self.k_scale, self.v_scale, self.reading)
        for name in ("v", "k_tail", "v_tail"):
            device = getattr(self, name).device
            if device != self.k.device:
                raise InputError(name, str(device), f"must be on {self.k.device} like the codes of k")


Layer = PagedLayer | FusedLayer | QuantisedLayer
"""Every form of a layer that attention reads."""


def quantise(layer: PagedLayer | FusedLayer, bits: int) -> QuantisedLayer:
    """The layer with its full blocks in ``bits`` bits, each of those that the table names once.

    Ranges are those of the stored blocks, before scales and readings, so that blocks that share one keep
    sharing it. A scalar is off by at most half a step, plus float16's rounding of neither low nor step: codes
    are chosen for low and step as they are stored.

    Args:
        layer: the cache; what no request holds may be anything, NaN included, and is not read.
        bits: 8 or 4.

    Raises:
        InputError: other bits, or a block with an infinite or NaN scalar, or one beyond float16.
    """
    if bits not in BITS:
        raise InputError("bits", bits, f"must be one of {', '.join(map(str, BITS))}")
    if not isinstance(layer, PagedLayer | FusedLayer):
        raise InputError("layer", type(layer).__name__, "must be a PagedLayer or a FusedLayer")
    table = layer.table
    block = torch.arange(table.entries.shape[1], device=layer.k.device)
    full = block < table.full_blocks[:, None]
    partly = (block < table.used_blocks[:, None]) & ~full
    coded, coded_id = torch.unique(table.entries[full].long(), return_inverse=True)
    tail, tail_id = torch.unique(table.entries[partly].long(), return_inverse=True)
    entries = torch.full_like(table.entries, -1)
    entries[full] = coded_id.int()
    entries[partly] = (tail_id + len(coded)).int()
    ones = torch.ones(table.entries.shape, dtype=torch.float32, device=layer.k.device)
    k_scale, v_scale, reading = (
        (layer.k_scale, layer.v_scale, layer.reading) if isinstance(layer, FusedLayer) else (ones, ones, None)
    )
    return QuantisedLayer(
        _quantise_pool("k", layer.k, coded, bits),
        _quantise_pool("v", layer.v, coded, bits),
        dataclasses.replace(table, entries=entries),
        k_scale,
        v_scale,
        layer.k.index_select(0, tail),
        layer.v.index_select(0, tail),
        reading,
    )


def dequantise(layer: QuantisedLayer) -> FusedLayer:
    """The layer in floating point again, in the dtype that it had."""
    blocks = torch.arange(len(layer.k.codes), device=layer.k.device)
    k, v = (
        torch.cat((pool.read(blocks).to(pool.dtype), tail))
        for pool, tail in ((layer.k, layer.k_tail), (layer.v, layer.v_tail))
    )
    return FusedLayer(k, v, layer.table, layer.k_scale, layer.v_scale, layer.reading)


def read_layer_blocks(layer: Layer, part: str, logical: Tensor) -> Tensor:
    """``ratedist.kernels.restore.read_blocks`` of any form of a layer, in float32.

    Test: tests/kernels/test_quantised.py::test_attention_is_that_over_the_dequantised_layer.
    """
    if not isinstance(layer, QuantisedLayer):
        return read_blocks(layer, part, logical)
    pool: QuantisedPool = getattr(layer, part)
    tail: Tensor = getattr(layer, f"{part}_tail")
    entries = layer.table.entries.flatten()[logical].long()
    coded = entries < len(pool.codes)
    shape = (len(entries), *pool.shape[1:])
    stored = torch.empty(shape, dtype=torch.float32, device=pool.device)
    stored[coded] = pool.read(entries[coded])
    stored[~coded] = tail.index_select(0, entries[~coded] - len(pool.codes)).float()
    return as_read(stored, layer, part, logical)


def quantised_bytes(layer: QuantisedLayer) -> int:
    """Bytes of codes with their padding and parameters, tails, block table and all that reading takes."""
    tensors = [layer.k_tail, layer.v_tail, layer.table.entries, layer.k_scale, layer.v_scale]
    if layer.reading is not None:
        tensors += [] if layer.reading.shift is None else [layer.reading.shift]
        means = layer.reading.means
        tensors += [] if means is None else [means.k, means.v, means.add, means.subtract]
    return layer.k.nbytes + layer.v.nbytes + sum(x.numel() * x.element_size() for x in tensors)


def _row_bytes(head_dim: int, bits: int) -> int:
    return -(-head_dim * bits // (8 * _ROW_ALIGNMENT)) * _ROW_ALIGNMENT


def _quantise_pool(part: str, pool: Tensor, blocks: Tensor, bits: int) -> QuantisedPool:
    """The given blocks; keys ("k") per channel, values per token."""
    _, block_size, kv_heads, head_dim = pool.shape
    axis = 1 if part == "k" else 3
    shape = [len(blocks), block_size, kv_heads, head_dim]
    row_bytes = _row_bytes(head_dim, bits)
    codes = torch.zeros((*shape[:3], row_bytes), dtype=torch.uint8, device=pool.device)
    shape[axis] = 1
    low = torch.empty(shape, dtype=torch.float16, device=pool.device)
    step = torch.empty_like(low)
    levels = 2**bits - 1
    size = blocks_per_chunk(pool)
    for first in range(0, len(blocks), size):
        chunk = slice(first, first + size)
        block = pool.index_select(0, blocks[chunk]).float()
        lowest, highest = block.amin(axis, keepdim=True), block.amax(axis, keepdim=True)
        # Rounded away from the middle by more than float16 rounds, so that codes reach every scalar.
        low[chunk] = (lowest - lowest.abs() * 2.0**-10).half()
        needed = (highest - low[chunk].float()) / levels
        step[chunk] = (needed * (1 + 2.0**-10) + _SMALLEST_STEP / 2).clamp(min=_SMALLEST_STEP).half()
        if not bool(torch.isfinite(low[chunk]).all() and torch.isfinite(step[chunk]).all()):
            raise InputError(
                part,
                "infinity, NaN or a range beyond float16",
                "cannot be quantised; leave the layer as it is",
            )
        code = ((block - low[chunk].float()) / step[chunk].float()).round_().clamp_(0, levels).to(torch.uint8)
        if bits == 4:
            code = torch.nn.functional.pad(code, (0, head_dim % 2)).unflatten(3, (-1, 2))
            code = code[..., 0] | code[..., 1] << 4
        codes[chunk, ..., : code.shape[3]] = code
    return QuantisedPool(codes, low, step, bits, head_dim, pool.dtype)
