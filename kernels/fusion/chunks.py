"""How many blocks a pass over a pool holds at a time."""

from __future__ import annotations

from torch import Tensor

__all__ = ["blocks_per_chunk"]

_LARGEST = 1 << 20
_SHARE = 0.01


def blocks_per_chunk(pool: Tensor) -> int:
    """Blocks whose float32 copy takes at most 1 MiB and 1 % of the pool's bytes; at least one.

    Args:
        pool: (blocks, block_size, kv_heads, head_dim).
    """
    budget = min(_LARGEST, _SHARE * pool.numel() * pool.element_size())
    return max(1, int(budget / max(1, 4 * pool[:1].numel())))
