"""Paged caches for tests: aliased, shuffled, ragged, and poisoned wherever nothing may be read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_layer(
    lengths: Sequence[int],
    *,
    block_size: int = 4,
    kv_heads: int = 2,
    head_dim: int = 24,
    dtype: torch.dtype = torch.float32,
    fused: bool = True,
    seed: int = 0,
) -> PagedLayer | FusedLayer:
    """A layer whose table is shuffled and aliased, with NaN in all that no request holds.

    NaN stands in unused blocks (block 0, which padding tends to read, among them), in the tokens of partly
    filled blocks beyond the length, and in scales beyond the end. Entries beyond the end are stale: some name
    poisoned blocks, the last is UNUSED.
    """
    random = generator(seed)
    requests = len(lengths)
    needed = [-(-length // block_size) for length in lengths]
    max_blocks = max(needed, default=0) + 2
    blocks = 2 * sum(needed) + 3
    k = torch.full((blocks, block_size, kv_heads, head_dim), float("nan"))
    v = k.clone()
    order = (torch.randperm(blocks - 1, generator=random) + 1).tolist()
    stale = order.pop()
    full_blocks: list[int] = []
    entries = torch.full((requests, max_blocks), UNUSED, dtype=torch.int32)
    for request, length in enumerate(lengths):
        entries[request, needed[request] : -1] = stale
        for block in range(needed[request]):
            tokens = min(block_size, length - block * block_size)
            share = (
                tokens == block_size and len(full_blocks) > 0 and float(torch.rand(1, generator=random)) < 0.5
            )
            if share:
                chosen = int(torch.randint(len(full_blocks), (1,), generator=random))
                physical = full_blocks[chosen]
            else:
                physical = order.pop()
                for pool in (k, v):
                    pool[physical, :tokens] = torch.randn(tokens, kv_heads, head_dim, generator=random)
                if tokens == block_size:
                    full_blocks.append(physical)
            entries[request, block] = physical
    table = BlockTable(
        entries,
        torch.tensor(lengths, dtype=torch.int64),
        torch.zeros(requests, dtype=torch.int64),
        block_size,
    )
    k, v = k.to(dtype), v.to(dtype)
    if not fused:
        return PagedLayer(k, v, table)
    scales = []
    for _ in range(2):
        scale = 0.5 + torch.rand(requests, max_blocks, generator=random)
        beyond = torch.arange(max_blocks) >= table.used_blocks[:, None]
        scales.append(scale.masked_fill(beyond, float("nan")))
    return FusedLayer(k, v, table, *scales)


def make_query(layer: PagedLayer | FusedLayer, group: int, seed: int = 1) -> Tensor:
    """(requests, group * kv_heads, head_dim) in the layer's dtype."""
    kv_heads, head_dim = layer.k.shape[2:]
    shape = (layer.table.requests, group * kv_heads, head_dim)
    return torch.randn(shape, generator=generator(seed)).to(layer.k.dtype)


def decode_oracle(
    q: Tensor, layer: PagedLayer | FusedLayer, softmax_scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in float64, token by token through the block table: shares no code with what is tested."""
    block_size, kv_heads, head_dim = layer.k.shape[1:]
    if softmax_scale is None:
        softmax_scale = head_dim**-0.5
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float64)
    group = q.shape[1] // kv_heads
    for request, length in enumerate(layer.table.lengths.tolist()):
        keys = torch.zeros(length, kv_heads, head_dim, dtype=torch.float64)
        values = keys.clone()
        for token in range(length):
            block, slot = divmod(token, block_size)
            physical = int(layer.table.entries[request, block])
            k_scale = v_scale = 1.0
            if isinstance(layer, FusedLayer):
                k_scale, v_scale = float(layer.k_scale[request, block]), float(layer.v_scale[request, block])
            keys[token] = layer.k[physical, slot].double() * k_scale
            values[token] = layer.v[physical, slot].double() * v_scale
        for head in range(q.shape[1]) if length else ():
            weight = (keys[:, head // group] @ q[request, head].double() * softmax_scale).exp()
            lse[request, head] = weight.sum().log()
            out[request, head] = weight @ values[:, head // group] / weight.sum()
    return out, lse
