"""Taking back what fusion freed: a dense pool that holds only the physical blocks in use."""

from __future__ import annotations

import torch

from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer

__all__ = ["compact", "pool_bytes"]


def compact(layer: FusedLayer) -> FusedLayer:
    """The same fused layer over a new pool without unused blocks, in order of first use.

    ``fuse`` returns the pool it was given, in which a serving engine would free the blocks that no
    entry names any more. This copies instead, for those who keep no free list: the new pool is a
    copy, and the old one may be dropped. Restored blocks are bit-identical, sharing is kept, and the
    result's pool holds as many blocks as there are different entries in use.

    Args:
        layer: a fused layer; it is not changed.
    """
    table = layer.table
    used = torch.arange(table.entries.shape[1], device=layer.k.device) < table.used_blocks[:, None]
    in_use = table.entries[used].long()
    ids, inverse = torch.unique(in_use, return_inverse=True)
    # Reordered from ascending id to first use, so that a request's own blocks lie together.
    position = torch.arange(len(in_use), device=layer.k.device)
    first_use = position.new_full((len(ids),), len(in_use)).scatter_reduce_(0, inverse, position, "amin")
    order = first_use.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(ids), device=layer.k.device)

    entries = torch.full_like(table.entries, UNUSED)
    entries[used] = rank[inverse].int()
    return FusedLayer(
        k=layer.k.index_select(0, ids[order]),
        v=layer.v.index_select(0, ids[order]),
        table=BlockTable(entries, table.lengths, table.domains, table.block_size),
        k_scale=layer.k_scale,
        v_scale=layer.v_scale,
        reading=layer.reading,
    )


def pool_bytes(layer: FusedLayer) -> int:
    """Bytes of the pool's keys and values, of the block table and of all that reading it takes."""
    tensors = [layer.k, layer.v, layer.table.entries, layer.k_scale, layer.v_scale]
    if layer.reading is not None:
        tensors += [] if layer.reading.shift is None else [layer.reading.shift]
        means = layer.reading.means
        tensors += [] if means is None else [means.k, means.v, means.add, means.subtract]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
