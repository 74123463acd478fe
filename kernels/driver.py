"""Fusion on top of a matcher: units, leader and tree, and the fused layer that comes of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ratedist.kernels.candidates import Candidates, check_scales, find_candidates, usable_norms
from ratedist.kernels.exact import first_equal
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.matching import Matcher
from ratedist.kernels.result import Fusion
from ratedist.kernels.scales import member_scales, row_products

__all__ = ["assemble", "distinct_scales", "fuse_with"]

Match = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Best score of each of the first blocks over the second ones, and its position there."""


def fuse_with(
    matcher: Matcher,
    layer: PagedLayer | FusedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    scale: str,
    layer_name: str | int | None = None,
) -> Fusion:
    """``ratedist.kernels.fuse.fuse`` with arguments that have been checked, on the given matcher."""
    check_scales(layer, layer_name)
    blocks = find_candidates(layer)
    k_norm, v_norm = usable_norms(matcher, layer, blocks, layer_name)
    first = first_equal(layer.k, layer.v, blocks, fused=isinstance(layer, FusedLayer))

    def match(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        return matcher.best_match(
            layer.k, layer.v, k_norm, v_norm, blocks.physical[rows], blocks.physical[cols], criterion
        )

    absorber = first.clone()
    score = torch.ones(len(blocks), dtype=torch.float32, device=layer.k.device)
    fuse_units = _leader if variant == "leader" else _tree
    # Rounded once, so that a comparison means the same on every backend.
    limit = float(torch.tensor(threshold, dtype=torch.float32))
    for units in _units(blocks, first):
        fuse_units(units, match, limit, absorber, score)

    representative = _roots(absorber)
    own = torch.arange(len(blocks), device=layer.k.device)
    # In the tree, the absorber of a block may have been absorbed later: then its score speaks of another.
    moved = torch.nonzero((first == own) & (absorber != representative)).flatten()
    here, there = blocks.physical[moved], blocks.physical[representative[moved]]
    score[moved] = _similarity(layer.k, k_norm, here, there)
    if criterion == "both":
        score[moved] = torch.minimum(score[moved], _similarity(layer.v, v_norm, here, there))

    k_factor, v_factor = distinct_scales(layer, blocks, first, representative, k_norm, v_norm, scale)
    return assemble(layer, blocks, first, absorber, representative, score[first], k_factor, v_factor)


def distinct_scales(
    layer: PagedLayer | FusedLayer,
    blocks: Candidates,
    first: Tensor,
    representative: Tensor,
    k_norm: Tensor,
    v_norm: Tensor,
    scale: str,
) -> tuple[Tensor, Tensor]:
    """(n,) float32 scales of keys and of values of every candidate, duplicates as their first copy has it.

    Args:
        layer: the layer that is fused.
        blocks: its n candidates.
        first: (n,) int64 position of the byte-equal candidate whose block each takes, its own where unique.
        representative: (n,) int64 position of the final representative.
        k_norm: (blocks,) float32 norms of the pool's keys.
        v_norm: (blocks,) float32 norms of the pool's values.
        scale: one of ``ratedist.kernels.scales.SCALES``.
    """
    own = torch.arange(len(blocks), device=layer.k.device)
    members = torch.nonzero((first == own) & (representative != own)).flatten()
    here, there = blocks.physical[members], blocks.physical[representative[members]]
    factors = []
    for pool, norm in ((layer.k, k_norm), (layer.v, v_norm)):
        factor = torch.ones(len(blocks), dtype=torch.float32, device=layer.k.device)
        factor[members] = member_scales(pool, norm, here, there, scale)
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
    """
    table = layer.table
    requests, max_blocks = table.entries.shape
    device = layer.k.device

    entries = table.entries.clone()
    entries.view(-1)[blocks.logical] = blocks.physical[representative].int()
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
        ),
        representative=maps[0],
        absorber=maps[1],
        score=scores,
        candidates=len(blocks),
        kept=int((representative == own).sum()),
        exact=int((first != own).sum()),
    )


def _units(blocks: Candidates, first: Tensor) -> list[list[Tensor]]:
    """For every domain, the distinct blocks (by position) of each request that has candidates.

    A request all of whose blocks are duplicates is a unit without blocks; one without a full block is
    no unit, so that padding a batch with empty requests does not change how the tree pairs the others.
    """
    domains = []
    for domain in torch.unique(blocks.domain):
        here = torch.nonzero(blocks.domain == domain).flatten()
        _, sizes = torch.unique_consecutive(blocks.request[here], return_counts=True)
        distinct = first[here] == here
        domains.append(
            [
                unit[keep]
                for unit, keep in zip(here.split(sizes.tolist()), distinct.split(sizes.tolist()), strict=True)
            ]
        )
    return domains


def _leader(units: list[Tensor], match: Match, limit: float, absorber: Tensor, score: Tensor) -> None:
    """Each block is absorbed by its best match among the blocks kept of earlier units.

    Halves are settled one after the other, and between the two the second half meets in one call what
    the first one kept. Every pair of a block and an earlier kept block is scored once, as it is unit by
    unit, but in few large products. Writes the absorber and the score of every block of ``units``.
    """
    best = torch.full_like(score, -torch.inf)
    target = absorber.clone()

    def settle(low: int, high: int) -> Tensor:
        if high - low == 1:
            unit = units[low]
            absorbed = best[unit] > limit
            leaving = unit[absorbed]
            absorber[leaving] = target[leaving]
            score[leaving] = best[leaving]
            return unit[~absorbed]
        middle = low + _left_share(high - low)
        left = settle(low, middle)
        rows = torch.cat(units[middle:high])
        found, position = match(rows, left)
        # Only a higher score replaces: what was found before has lower logical indices.
        better = torch.nonzero(found > best[rows]).flatten()
        improved = rows[better]
        best[improved] = found[better]
        target[improved] = left[position[better]]
        return torch.cat((left, settle(middle, high)))

    settle(0, len(units))


def _tree(units: list[Tensor], match: Match, limit: float, absorber: Tensor, score: Tensor) -> None:
    """At every node, each block kept on the right is absorbed by its best match kept on the left.

    Writes the absorber of every block of ``units``, and the score against this absorber.
    """

    def merge(low: int, high: int) -> Tensor:
        if high - low == 1:
            return units[low]
        middle = low + _left_share(high - low)
        left, right = merge(low, middle), merge(middle, high)
        found, position = match(right, left)
        absorbed = found > limit
        leaving = right[absorbed]
        absorber[leaving] = left[position[absorbed]]
        score[leaving] = found[absorbed]
        return torch.cat((left, right[~absorbed]))

    merge(0, len(units))


def _left_share(units: int) -> int:
    """Units on the left of a node: the largest power of two below ``units``, as pairing level by level
    with an odd unit passing up gives it."""
    return 1 << (units - 1).bit_length() - 1


def _roots(absorber: Tensor) -> Tensor:
    """Follow absorbers to the block that is kept; absorbers come first in logical order, so this ends."""
    roots = absorber
    while not torch.equal(roots[roots], roots):
        roots = roots[roots]
    return roots


def _similarity(pool: Tensor, norm: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(n,) float32 cosine similarity of the blocks ``left[i]`` and ``right[i]``, at most 1; 0 for norm 0."""
    products = row_products(pool, left, right) / norm[left] / norm[right]
    return torch.where((norm[left] > 0) & (norm[right] > 0), products, 0.0).clamp(max=1.0)
