"""Fused layers without scales, for engines that read a block as it is stored."""

from __future__ import annotations

import torch

from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer
from ratedist.kernels.restore import restore_blocks

__all__ = ["materialise_scales"]


def materialise_scales(layer: FusedLayer) -> FusedLayer:
    """The same layer with every scale 1: scaled blocks are written out, in a new pool in order of first use.

    Entries with scales of exactly 1 go on sharing; of the others, those share that read the same block
    with the same scales. This gives back much of what fusion saved: count the blocks of the result. A
    scaled block is rounded to the pool's dtype, so in float32 it reads bit-identically.

    Args:
        layer: a fused layer; it is not changed. Scales beyond the end of a request are not looked at.
    """
    table = layer.table
    used = torch.arange(table.entries.shape[1], device=layer.k.device) < table.used_blocks[:, None]
    entries = torch.full_like(table.entries, UNUSED)
    new: dict[tuple[int, float, float], int] = {}
    read = zip(
        table.entries[used].tolist(), layer.k_scale[used].tolist(), layer.v_scale[used].tolist(), strict=True
    )
    entries[used] = torch.tensor(
        [new.setdefault(key, len(new)) for key in read], dtype=torch.int32, device=layer.k.device
    )
    pools = []
    for pool, part in ((layer.k, 1), (layer.v, 2)):
        written = pool.new_empty(len(new), *pool.shape[1:])
        for position, key in enumerate(new):
            source = torch.tensor([key[0]], device=pool.device)
            scale = torch.tensor([key[part]], dtype=torch.float32, device=pool.device)
            # A block of scale 1 keeps its bits: float32 holds every value of the other dtypes.
            written[position] = restore_blocks(pool, source, scale)[0].to(pool.dtype)
        pools.append(written)
    ones = torch.ones(table.entries.shape, dtype=torch.float32, device=layer.k.device)
    return FusedLayer(
        k=pools[0],
        v=pools[1],
        table=BlockTable(entries, table.lengths, table.domains, table.block_size),
        k_scale=ones,
        v_scale=ones.clone(),
    )
