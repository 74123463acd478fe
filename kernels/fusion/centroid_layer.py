"""Storing centroids: new blocks at the end of a new pool, and who reads them how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.kernels.fusion.assemble import assemble
from ratedist.kernels.fusion.candidates import Candidates
from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.fusion.matching import Matcher
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.scales import member_scales
from ratedist.kernels.fusion.scoring import Part, Pools, make_scoring
from ratedist.kernels.fusion.space import Space, Transform
from ratedist.kernels.layout import FusedLayer, PagedLayer

__all__ = ["store_centroids"]


def store_centroids(
    matcher: Matcher,
    layers: Sequence[PagedLayer | FusedLayer],
    blocks: Candidates,
    spaces: Sequence[Space],
    first: Tensor,
    absorber: Tensor,
    representative: Tensor,
    options: FuseOptions,
) -> list[Fusion]:
    """The fused layers with a centroid for every group of two distinct blocks or more.

    Pools are copied, and the centroids, rounded to their dtype, follow their blocks. What a group's members
    were stored in is free. A centroid is stored as a block at the place of the group's first one, positions
    and mean included where they were taken away; scores and scales are those against what is stored.

    Args:
        matcher: the backend.
        layers: one, or several that are fused together.
        blocks: their n candidates.
        spaces: of each layer copies of the distinct blocks, in which groups' representatives are.
        first: (n,) int64 position of the byte-equal candidate whose block each takes.
        absorber: (n,) int64 position of the group that took each in, by its first block.
        representative: (n,) int64 position of the first block of the final group.
        options: criterion and scale rule.
    """
    device = first.device
    distinct = first == torch.arange(len(blocks), device=device)
    sizes = torch.bincount(representative[distinct], minlength=len(blocks))
    grouped = sizes[representative] > 1
    groups = torch.unique(representative[grouped])
    stored = [
        _StoredLayer.make(layer, blocks, space, groups, grouped, representative)
        for layer, space in zip(layers, spaces, strict=True)
    ]

    score = torch.ones(len(blocks), dtype=torch.float32, device=device)
    factors = [(score.clone(), score.clone()) for _ in layers]
    members = torch.nonzero(grouped & distinct).flatten()
    step = max(1, blocks_per_chunk(layers[0].k) // len(layers))
    for start in range(0, len(members), step):
        which = members[start : start + step]
        left = torch.arange(len(which), device=device)
        right = left + len(which)
        pairs = [one.pairs(matcher, blocks, which, representative) for one in stored]
        score[which] = make_scoring(options.criterion, pairs).pairs(left, right)
        for pair, (k_factor, v_factor) in zip(pairs, factors, strict=True):
            for factor, part in ((k_factor, pair.k), (v_factor, pair.v)):
                factor[which] = member_scales(part.pool, part.norm, left, right, options.scale)
    return [
        assemble(
            PagedLayer(one.k, one.v, layer.table),
            blocks,
            first,
            absorber,
            representative,
            score[first],
            k_factor[first],
            v_factor[first],
            one.transform.reading(layer, blocks, first, representative, grouped),
            one.ids,
        )
        for one, layer, (k_factor, v_factor) in zip(stored, layers, factors, strict=True)
    ]


@dataclass(frozen=True)
class _StoredLayer:
    """A layer's pool with centroids at its end.

    Attributes:
        k, v: (blocks + groups, block_size, kv_heads, head_dim).
        ids: (n,) int64 physical id that each candidate reads.
        transform: what was taken away before blocks were matched.
    """

    k: Tensor
    v: Tensor
    ids: Tensor
    transform: Transform

    @classmethod
    def make(
        cls,
        layer: PagedLayer | FusedLayer,
        blocks: Candidates,
        space: Space,
        groups: Tensor,
        grouped: Tensor,
        representative: Tensor,
    ) -> _StoredLayer:
        """Centroids of ``groups``, (m,) int64 positions in ascending order, follow the layer's blocks."""
        assert space.transform is not None
        pools = []
        for part, pool, matched in (("k", layer.k, space.pools.k), ("v", layer.v, space.pools.v)):
            new = pool.new_empty(len(pool) + len(groups), *pool.shape[1:])
            new[: len(pool)] = pool
            step = blocks_per_chunk(pool)
            for start in range(0, len(groups), step):
                which = groups[start : start + step]
                place = len(pool) + start
                restored = space.transform.restore(part, matched.pool[space.place[which]], which)
                new[place : place + len(which)] = restored.to(pool.dtype)
            pools.append(new)
        ids = blocks.physical[representative]
        ids[grouped] = len(layer.k) + torch.searchsorted(groups, representative[grouped])
        return cls(pools[0], pools[1], ids, space.transform)

    def pairs(self, matcher: Matcher, blocks: Candidates, which: Tensor, representative: Tensor) -> Pools:
        """The blocks of the candidates ``which`` as they are matched, and after them what stands for each."""
        parts = []
        for part, pool in (("k", self.k), ("v", self.v)):
            member = self.transform.remove(matcher, part, pool, blocks.physical[which], which)
            # The centroid lies where the group's first block would.
            centre = self.transform.remove(matcher, part, pool, self.ids[which], representative[which])
            both = torch.cat((member, centre))
            parts.append(Part(both, torch.linalg.vector_norm(both.flatten(1), dim=1)))
        return Pools(parts[0], parts[1])
