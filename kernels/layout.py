"""The paged KV cache: pools of blocks, and the block table that maps requests to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.reading import Reading

__all__ = ["UNUSED", "BlockTable", "FusedLayer", "PagedLayer"]

UNUSED = -1
"""Entry of a block table beyond the end of a request."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class BlockTable:
    """Which physical block holds each logical block of each request.

    Attributes:
        entries: (requests, max_blocks) int32; physical block of each logical block, ``UNUSED`` beyond
            the end. Several entries may name one physical block.
        lengths: (requests,) int64; tokens held per request.
        domains: (requests,) int64; blocks of different domains never share.
        block_size: tokens per block.
    """

    entries: Tensor
    lengths: Tensor
    domains: Tensor
    block_size: int

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise InputError("block_size", self.block_size, "must be at least 1")
        if self.entries.ndim != 2 or self.entries.dtype != torch.int32:
            raise InputError(
                "entries",
                f"{self.entries.dtype} of shape {tuple(self.entries.shape)}",
                "must be int32 of shape (requests, max_blocks)",
            )
        requests, max_blocks = self.entries.shape
        for name in ("lengths", "domains"):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or tuple(tensor.shape) != (requests,):
                raise InputError(
                    name,
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}",
                    f"must be int64 of shape ({requests},), one per row of the block table",
                )
            if tensor.device != self.entries.device:
                raise InputError(
                    name, str(tensor.device), f"must be on {self.entries.device} like the block table"
                )
        if requests == 0:
            return
        if int(self.lengths.min()) < 0:
            raise InputError("lengths", int(self.lengths.min()), "must not be negative")
        needed = self.used_blocks
        if int(needed.max()) > max_blocks:
            request = int(needed.argmax())
            raise InputError(
                "lengths",
                int(self.lengths[request]),
                f"request {request} needs {int(needed[request])} blocks of {self.block_size} tokens, "
                f"the table has room for {max_blocks}",
            )
        used = torch.arange(max_blocks, device=self.entries.device) < needed[:, None]
        if bool((self.entries[used] < 0).any()):
            request, block = torch.nonzero(used & (self.entries < 0))[0].tolist()
            raise InputError(
                "entries",
                int(self.entries[request, block]),
                f"request {request}, block {block} lies within the length and must name a physical block",
            )

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.entries.shape[0]

    @property
    def used_blocks(self) -> Tensor:
        """(requests,) int64: blocks in use per request, a partly filled last one included."""
        return (self.lengths + self.block_size - 1) // self.block_size

    @property
    def full_blocks(self) -> Tensor:
        """(requests,) int64: filled blocks per request; only these are candidates for fusion."""
        return self.lengths // self.block_size


@dataclass(frozen=True)
class PagedLayer:
    """Keys and values of one layer in physical blocks.

    Attributes:
        k: (blocks, block_size, kv_heads, head_dim); float32, float16 or bfloat16.
        v: as ``k``.
        table: the block table over this pool.
    """

    k: Tensor
    v: Tensor
    table: BlockTable

    def __post_init__(self) -> None:
        _check_pool(self.k, self.v, self.table)

    @property
    def block_dim(self) -> int:
        """r: scalars of the keys of one block (tokens × KV heads × head dimension)."""
        return self.k.shape[1] * self.k.shape[2] * self.k.shape[3]


@dataclass(frozen=True)
class FusedLayer:
    """One layer after fusion: entries of the block table alias shared physical blocks.

    Reading logical block b of request i gives ``k_scale[i, b] * k[table.entries[i, b]]``, and the same
    for values; with a ``reading``, keys are turned and means exchanged on top of that. Blocks that took
    part in no fusion have scale exactly 1 and are read as they are stored.

    Attributes:
        k: (blocks, block_size, kv_heads, head_dim) representatives; also the blocks that were not candidates.
        v: as ``k``.
        table: block table with aliased entries.
        k_scale: (requests, max_blocks) float32.
        v_scale: (requests, max_blocks) float32.
        reading: rotary shifts and means; None where fusion used neither.
    """

    k: Tensor
    v: Tensor
    table: BlockTable
    k_scale: Tensor
    v_scale: Tensor
    reading: Reading | None = None

    def __post_init__(self) -> None:
        _check_pool(self.k, self.v, self.table)
        for name in ("k_scale", "v_scale"):
            scale: Tensor = getattr(self, name)
            if scale.dtype != torch.float32 or scale.shape != self.table.entries.shape:
                raise InputError(
                    name,
                    f"{scale.dtype} of shape {tuple(scale.shape)}",
                    f"must be float32 of shape {tuple(self.table.entries.shape)}, one per block table entry",
                )
            if scale.device != self.k.device:
                raise InputError(name, str(scale.device), f"must be on {self.k.device} like the keys")
        if self.reading is not None:
            self.reading.check(self.k, self.table.entries)


def _check_pool(k: Tensor, v: Tensor, table: BlockTable) -> None:
    if k.ndim != 4:
        raise InputError("k", tuple(k.shape), "must have shape (blocks, block_size, kv_heads, head_dim)")
    if k.dtype not in _FLOATS:
        raise InputError("k", str(k.dtype), "must be float32, float16 or bfloat16")
    if v.shape != k.shape:
        raise InputError("v", tuple(v.shape), f"must have the shape of k, {tuple(k.shape)}")
    if v.dtype != k.dtype:
        raise InputError("v", str(v.dtype), f"must have the dtype of k, {k.dtype}")
    if v.device != k.device:
        raise InputError("v", str(v.device), f"must be on {k.device} like k")
    if table.entries.device != k.device:
        raise InputError("table", str(table.entries.device), f"must be on {k.device} like k")
    if k.shape[1] != table.block_size:
        raise InputError("k", tuple(k.shape), f"must hold {table.block_size} tokens per block like the table")
    if table.entries.numel() and int(table.entries.max()) >= k.shape[0]:
        request, block = torch.nonzero(table.entries >= k.shape[0])[0].tolist()
        raise InputError(
            "entries",
            int(table.entries[request, block]),
            f"request {request}, block {block} lies beyond the pool of {k.shape[0]} blocks",
        )
