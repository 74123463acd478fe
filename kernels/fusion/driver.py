"""Fusion on top of a matcher: exact duplicates, then a variant over the distinct blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratedist.kernels.fusion.assemble import assemble, distinct_scales
from ratedist.kernels.fusion.candidates import check_scales, find_candidates, usable_norms
from ratedist.kernels.fusion.caps import Caps
from ratedist.kernels.fusion.centroid import Centroids
from ratedist.kernels.fusion.centroid_layer import store_centroids
from ratedist.kernels.fusion.components import fuse_components
from ratedist.kernels.fusion.exact import first_equal
from ratedist.kernels.fusion.leader import fuse_leader
from ratedist.kernels.fusion.matching import Matcher
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.fusion.scoring import make_scoring
from ratedist.kernels.fusion.space import make_space
from ratedist.kernels.fusion.tree import find_roots, fuse_tree
from ratedist.kernels.fusion.units import units_by_domain
from ratedist.kernels.layout import FusedLayer, PagedLayer

__all__ = ["fuse_together", "fuse_with"]


def fuse_with(
    matcher: Matcher,
    layer: PagedLayer | FusedLayer,
    options: FuseOptions,
    layer_name: str | int | None = None,
) -> Fusion:
    """``ratedist.kernels.fusion.fuse.fuse`` with options that have been checked, on the given matcher."""
    return fuse_together(matcher, [layer], options, [layer_name])[0]


def fuse_together(
    matcher: Matcher,
    layers: Sequence[PagedLayer | FusedLayer],
    options: FuseOptions,
    names: Sequence[str | int | None],
) -> list[Fusion]:
    """One decision for all ``layers``, by the mean over them of every term of the score.

    Args:
        matcher: the backend.
        layers: one, or several with one block table and one shape and dtype of blocks.
        options: what to do, as ``check_space`` lets it pass.
        names: of the layers, for messages.
    """
    fused = isinstance(layers[0], FusedLayer)
    blocks = find_candidates(layers[0], options.chunk_blocks)
    device = layers[0].k.device
    norms = []
    for layer, name in zip(layers, names, strict=True):
        check_scales(layer, name)
        norms.append(usable_norms(matcher, layer, blocks, name))
    first = first_equal([(layer.k, layer.v) for layer in layers], blocks, fused=fused)
    spaces = [
        make_space(matcher, layer, blocks, norm, first, options, name)
        for layer, norm, name in zip(layers, norms, names, strict=True)
    ]
    # Places depend on the block table and on which blocks are distinct, so they are the same in all.
    scoring, place = make_scoring(options.criterion, [space.pools for space in spaces]), spaces[0].place

    def match(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        return matcher.best_match(scoring, place[rows], place[cols])

    def lowest_label(rows: Tensor, units: Tensor, labels: Tensor) -> Tensor:
        return matcher.lowest_label(scoring, place[rows], units, labels, options.limit)

    absorber = first.clone()
    score = torch.ones(len(blocks), dtype=torch.float32, device=device)
    caps = Caps(blocks, first, options) if options.capped else None
    centroids = Centroids(spaces, first) if options.variant == "centroid" else None
    for units in units_by_domain(blocks, first):
        if options.variant == "components":
            fuse_components(units, lowest_label, absorber)
        elif options.variant == "leader":
            fuse_leader(units, match, options.limit, absorber, score, caps)
        else:
            joined = None if centroids is None else centroids.merge
            fuse_tree(units, match, options.limit, absorber, score, caps, joined)

    representative = find_roots(absorber)
    if centroids is not None:
        return store_centroids(matcher, layers, blocks, spaces, first, absorber, representative, options)
    own = torch.arange(len(blocks), device=device)
    # In the tree, the absorber of a block may have been absorbed later: then its score speaks of another.
    # In a component there is none yet.
    stale = (representative != own) if options.variant == "components" else (absorber != representative)
    moved = torch.nonzero((first == own) & stale).flatten()
    score[moved] = scoring.pairs(place[moved], place[representative[moved]])

    fusions = []
    for layer, space in zip(layers, spaces, strict=True):
        factors = distinct_scales(space.pools, place, first, representative, options.scale)
        reading = None
        if space.transform is not None:
            altered = representative != first
            reading = space.transform.reading(layer, blocks, first, representative, altered)
        fusions.append(
            assemble(layer, blocks, first, absorber, representative, score[first], *factors, reading)
        )
    return fusions
