"""From decisions on candidates to the fused layer and its record."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion.candidates import Candidates
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.scales import member_scales
from ratedist.kernels.fusion.scoring import Pools
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.reading import Reading

__all__ = ["assemble", "distinct_scales"]


def distinct_scales(
    pools: Pools, place: Tensor, first: Tensor, representative: Tensor, scale: str
) -> tuple[Tensor, Tensor]:
    """(n,) float32 scales of keys and of values of every candidate, duplicates as their first copy has it.

    Args:
        pools: blocks as they are matched.
        place: (n,) int64 id of each of the n candidates in ``pools``.
        first: (n,) int64 position of the byte-equal candidate whose block each takes, its own where unique.
        representative: (n,) int64 position of the final representative.
        scale: one of ``ratedist.kernels.fusion.scales.SCALES``.
    """
    own = torch.arange(len(first), device=first.device)
    members = torch.nonzero((first == own) & (representative != own)).flatten()
    here, there = place[members], place[representative[members]]
    factors = []
    for part in (pools.k, pools.v):
        factor = torch.ones(len(first), dtype=torch.float32, device=first.device)
        factor[members] = member_scales(part.pool, part.norm, here, there, scale)
        factors.append(factor[first])
    return factors[0], factors[1]


def assemble(
    layer: PagedLayer | FusedLayer,
    blocks: Candidates,
    first: Tensor,
    absorber: Tensor,
    representative: Tensor,
    score: Tensor,
    k_factor: Tensor,
    v_factor: Tensor,
    reading: Reading | None = None,
    stored: Tensor | None = None,
) -> Fusion:
    """The fused layer and its record, from decisions on candidates by position.

    Args:
        layer: the layer that was fused.
        blocks: its n candidates.
        first: (n,) int64 position of the byte-equal candidate whose block each takes, its own where unique.
        absorber: (n,) int64 position of the direct absorber, its own where kept.
        representative: (n,) int64 position of the final representative.
        score: (n,) float32 against the final representative.
        k_factor: (n,) float32 by which the scale of the keys changes.
        v_factor: (n,) float32 by which the scale of the values changes.
        reading: rotary shifts and means, where they were taken away before matching.
        stored: (n,) int64 physical block that each candidate reads; by default its representative's.
    """
    table = layer.table
    requests, max_blocks = table.entries.shape
    device = layer.k.device

    entries = table.entries.clone()
    if stored is None:
        stored = blocks.physical[representative]
    entries.view(-1)[blocks.logical] = stored.int()
    # Entries beyond a request's end may hold anything, and would alias a block that is given back.
    used = torch.arange(max_blocks, device=device) < table.used_blocks[:, None]
    entries[~used] = UNUSED
    scales = []
    for name, factor in (("k_scale", k_factor), ("v_scale", v_factor)):
        ones = torch.ones(requests, max_blocks, dtype=torch.float32, device=device)
        new = ones if isinstance(layer, PagedLayer) else getattr(layer, name).clone()
        new.view(-1)[blocks.logical] *= factor
        scales.append(new)

    itself = torch.arange(requests * max_blocks, device=device).view(requests, max_blocks)
    itself = torch.where(used, itself, -1)
    maps = []
    for positions in (representative, absorber):
        mapped = itself.clone()
        mapped.view(-1)[blocks.logical] = blocks.logical[positions]
        maps.append(mapped)
    scores = used.float()
    scores.view(-1)[blocks.logical] = score

    own = torch.arange(len(blocks), device=device)
    return Fusion(
        layer=FusedLayer(
            k=layer.k,
            v=layer.v,
            table=BlockTable(entries, table.lengths, table.domains, table.block_size),
            k_scale=scales[0],
            v_scale=scales[1],
            reading=reading,
        ),
        representative=maps[0],
        absorber=maps[1],
        score=scores,
        candidates=len(blocks),
        kept=int((representative == own).sum()),
        exact=int((first != own).sum()),
    )
