"""Fused layers that are read as they are stored, for engines that know neither scales nor rotary shifts."""

from __future__ import annotations

import torch

from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer
from ratedist.kernels.restore import read_blocks

__all__ = ["materialise"]


def materialise(layer: FusedLayer) -> FusedLayer:
    """The same layer with every scale 1 and no ``reading``: blocks are written out as they are read.

    The new pool is in order of first use. Logical blocks go on sharing that read one physical block in the
    same way (equal scales, rotary shift and means); an entry with scale 1, shift 0 and no mean keeps its
    bits. This gives back much of what fusion saved: count the blocks of the result. What is written is
    rounded to the pool's dtype, so in float32 it reads bit-identically.

    Args:
        layer: a fused layer; it is not changed. Scales beyond the end of a request are not looked at.
    """
    table = layer.table
    used = (
        torch.arange(table.entries.shape[1], device=layer.k.device) < table.used_blocks[:, None]
    ).flatten()
    logical = torch.nonzero(used).flatten()
    columns = [
        table.entries.flatten()[logical].long(),
        *(_bits(scale.flatten()[logical]) for scale in (layer.k_scale, layer.v_scale)),
    ]
    if layer.reading is not None:
        means = layer.reading.means
        tables = (layer.reading.shift, *((means.add, means.subtract) if means is not None else ()))
        columns += [table.flatten()[logical].long() for table in tables if table is not None]
    new: dict[tuple[int, ...], int] = {}
    position = [
        new.setdefault(key, len(new)) for key in zip(*(column.tolist() for column in columns), strict=True)
    ]
    entries = torch.full_like(table.entries, UNUSED)
    entries.view(-1)[logical] = torch.tensor(position, dtype=torch.int32, device=layer.k.device)
    first: dict[int, int] = {}
    for index, target in enumerate(position):
        first.setdefault(target, index)
    pools = []
    for part, pool in (("k", layer.k), ("v", layer.v)):
        written = pool.new_empty(len(new), *pool.shape[1:])
        for target, index in first.items():
            # A block that is read as stored keeps its bits: float32 holds every value of the other dtypes.
            written[target] = read_blocks(layer, part, logical[index : index + 1])[0].to(pool.dtype)
        pools.append(written)
    ones = torch.ones(table.entries.shape, dtype=torch.float32, device=layer.k.device)
    return FusedLayer(
        k=pools[0],
        v=pools[1],
        table=BlockTable(entries, table.lengths, table.domains, table.block_size),
        k_scale=ones,
        v_scale=ones.clone(),
    )


def _bits(scale: torch.Tensor) -> torch.Tensor:
    return scale.contiguous().view(torch.int32).long()
