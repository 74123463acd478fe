"""Signatures of blocks: on which sides of random hyperplanes through the mean their directions lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ratedist.kernels.search.hashing import Hashing

__all__ = ["hash_keys", "mean_direction"]

# Float32 bytes of the blocks that are read at a time, and of the planes that they meet.
_CHUNK = 8 << 20
_PLANES = 4 << 20
_MOST_AT_ONCE = 16
_LOW_BITS = 16


def mean_direction(pool: Tensor, norm: Tensor, ids: Tensor) -> Tensor:
    """(block_dim,) float32 mean of x / |x| over the blocks ``ids``, none of which may be zero.

    Summed in float32 over a few MiB of blocks and in float64 over these sums.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim).
        norm: (blocks,) float32 norms of the pool's blocks.
        ids: (n,) int64 physical ids, n at least 1.
    """
    total = torch.zeros(pool[:1].numel(), dtype=torch.float64, device=pool.device)
    for part in ids.split(_rows_at_once(pool)):
        total += norm[part].reciprocal() @ _rows(pool, part)
    return (total / len(ids)).float()


def hash_keys(
    pool: Tensor, norm: Tensor, ids: Tensor, mean: Tensor | None, hashing: Hashing
) -> Iterator[Tensor]:
    """Keys of the blocks ``ids`` in all tables, (some tables, n) int32 at a time, valid until the next.

    Bit j of a key tells whether <x/|x| − mean, p_j> > 0 for the Gaussian vector p_j. It is computed as
    <x, p_j> > |x|·<mean, p_j>, so that no centred copy of a block is needed.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim).
        norm: (blocks,) float32 norms of the pool's blocks.
        ids: (n,) int64 physical ids.
        mean: (block_dim,) float32, or None for hyperplanes through the origin.
        hashing: tables, bits and seed.
    """
    dim, bits = pool[:1].numel(), hashing.bits
    generator = torch.Generator().manual_seed(hashing.seed)
    together = max(1, min(_MOST_AT_ONCE, hashing.tables, _PLANES // (4 * dim * bits)))
    place = torch.arange(bits, device=pool.device)
    # Powers of two whose sums float32 holds exactly: the lower bits in one column, the others in a second.
    weights = torch.zeros(bits, 2, device=pool.device)
    weights[place, place // _LOW_BITS] = 2.0 ** (place % _LOW_BITS)
    rows_at_once = _rows_at_once(pool)
    keys = torch.empty(together, len(ids), dtype=torch.int32, device=pool.device)
    buffer = torch.empty(rows_at_once * together * bits, device=pool.device)
    for start in range(0, hashing.tables, together):
        tables = min(together, hashing.tables - start)
        # Drawn on the CPU whatever the device, table by table: the planes are the seed's alone.
        drawn = [torch.randn(dim, bits, generator=generator) for _ in range(tables)]
        planes = torch.cat(drawn, dim=1).to(pool.device)
        offset = None if mean is None else mean @ planes
        for low in range(0, len(ids), rows_at_once):
            part = ids[low : low + rows_at_once]
            side = buffer[: len(part) * tables * bits].view(len(part), tables * bits)
            torch.mm(_rows(pool, part), planes, out=side)
            if offset is not None:
                side.addr_(norm[part], offset, alpha=-1.0)
            halves = (side.gt_(0.0).view(-1, bits) @ weights).int()
            packed = halves[:, 0] + (halves[:, 1] << _LOW_BITS)
            keys[:tables, low : low + len(part)] = packed.view(len(part), tables).T
        yield keys[:tables]


def _rows(pool: Tensor, ids: Tensor) -> Tensor:
    """(len(ids), block_dim) float32; a view where the blocks are neighbours in a float32 pool."""
    if int(ids[-1]) - int(ids[0]) == len(ids) - 1 and bool((ids.diff() == 1).all()):
        return pool[int(ids[0]) : int(ids[-1]) + 1].flatten(1).float()
    return pool.index_select(0, ids).flatten(1).float()


def _rows_at_once(pool: Tensor) -> int:
    return max(1, _CHUNK // (4 * max(1, pool[:1].numel())))
