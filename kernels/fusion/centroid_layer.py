"""Storing centroids: new blocks at the end of a new pool, and who reads them how."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion.assemble import assemble
from ratedist.kernels.fusion.candidates import Candidates
from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.scales import member_scales
from ratedist.kernels.fusion.scoring import Part, Pools, make_scoring
from ratedist.kernels.fusion.space import Space
from ratedist.kernels.layout import PagedLayer

__all__ = ["store_centroids"]


def store_centroids(
    layer: PagedLayer,
    blocks: Candidates,
    space: Space,
    first: Tensor,
    absorber: Tensor,
    representative: Tensor,
    options: FuseOptions,
) -> Fusion:
    """The fused layer with a centroid for every group of two distinct blocks or more.

    The pool is copied, and the centroids, rounded to its dtype, follow its blocks. What a group's members
    were stored in is free. A centroid is stored as a block at the place of the group's first one, positions
    and mean included where they were taken away; scores and scales are those against what is stored.

    Args:
        layer: the layer.
        blocks: its n candidates.
        space: copies of the distinct blocks, in which groups' representatives are.
        first: (n,) int64 position of the byte-equal candidate whose block each takes.
        absorber: (n,) int64 position of the group that took each in, by its first block.
        representative: (n,) int64 position of the first block of the final group.
        options: criterion and scale rule.
    """
    assert space.transform is not None
    transform, device = space.transform, layer.k.device
    own = torch.arange(len(blocks), device=device)
    distinct = first == own
    sizes = torch.bincount(representative[distinct], minlength=len(blocks))
    grouped = sizes[representative] > 1
    groups = torch.nonzero(grouped & (representative == own)).flatten()

    pools = []
    for part, pool, matched in (("k", layer.k, space.pools.k), ("v", layer.v, space.pools.v)):
        new = pool.new_empty(len(pool) + len(groups), *pool.shape[1:])
        new[: len(pool)] = pool
        step = blocks_per_chunk(pool)
        for start in range(0, len(groups), step):
            which = groups[start : start + step]
            place = len(pool) + start
            restored = transform.restore(part, matched.pool[space.place[which]], which)
            new[place : place + len(which)] = restored.to(pool.dtype)
        pools.append(new)
    stored = blocks.physical[representative]
    stored[grouped] = len(layer.k) + torch.searchsorted(groups, representative[grouped])

    count = len(blocks)
    score, k_factor, v_factor = (torch.ones(count, dtype=torch.float32, device=device) for _ in range(3))
    members = torch.nonzero(grouped & distinct).flatten()
    step = blocks_per_chunk(layer.k)
    for start in range(0, len(members), step):
        which = members[start : start + step]
        left = torch.arange(len(which), device=device)
        right = left + len(which)
        parts = []
        for part, old, new in (("k", layer.k, pools[0]), ("v", layer.v, pools[1])):
            member = transform.remove(part, old[blocks.physical[which]].float(), which)
            # The centroid lies where the group's first block would.
            centre = transform.remove(part, new[stored[which]].float(), representative[which])
            both = torch.cat((member, centre))
            parts.append(Part(both, torch.linalg.vector_norm(both.flatten(1), dim=1)))
        pair = Pools(parts[0], parts[1])
        score[which] = make_scoring(options.criterion, [pair]).pairs(left, right)
        for factor, one in ((k_factor, pair.k), (v_factor, pair.v)):
            factor[which] = member_scales(one.pool, one.norm, left, right, options.scale)
    reading = transform.reading(layer, blocks, first, representative, grouped)
    return assemble(
        PagedLayer(pools[0], pools[1], layer.table),
        blocks,
        first,
        absorber,
        representative,
        score[first],
        k_factor[first],
        v_factor[first],
        reading,
        stored,
    )
