"""The space in which blocks are matched: as they are stored, or without rotary positions and means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.candidates import Candidates, place_name
from ratedist.kernels.fusion.matching import Centring, Matcher, Turns
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.scoring import Part, Pools
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.reading import NO_MEAN, Means, Reading
from ratedist.kernels.rotary import Rotary, rotate

__all__ = ["Space", "Transform", "check_space", "make_space"]

_FARTHEST = 2**30
"""Positions are differences of two of these at most, which int32 holds."""


@dataclass(frozen=True)
class Transform:
    """Rotary positions and means that are taken away from candidates before they are matched.

    A block at position n, of a group with means M, is matched as R(-n) x - M_k and y - M_v; M is of keys
    turned back where they are.

    Attributes:
        rotary: what turns keys; None where they stay as they are.
        position: (n,) int64 position of each candidate's first token.
        means: (groups, block_size, kv_heads, head_dim) of keys and of values, in the dtype of the pool;
            None where nothing is centred.
        group: (n,) int64 entry of ``means`` that belongs to each candidate.
    """

    rotary: Rotary | None
    position: Tensor
    means: tuple[Tensor, Tensor] | None
    group: Tensor

    def remove(self, matcher: Matcher, part: str, pool: Tensor, ids: Tensor, which: Tensor) -> Tensor:
        """(m, block_size, kv_heads, head_dim) float32: stored blocks as candidates ``which`` are matched.

        Args:
            matcher: the backend.
            part: "k" or "v".
            pool: that holds the blocks.
            ids: (m,) int64 physical ids.
            which: (m,) int64 candidates whose positions and means are taken away.
        """
        centring = None
        if self.means is not None:
            centring = Centring(self.means[part == "v"], self.group[which])
        return matcher.matched_blocks(pool, ids, self._turns_back(part, which), centring)

    def restore(self, part: str, blocks: Tensor, which: Tensor) -> Tensor:
        """What ``remove`` took away is put back, as it is for the candidates ``which``."""
        if self.means is not None:
            blocks = blocks + self.means[part == "v"].index_select(0, self.group[which]).float()
        if self.rotary is not None and part == "k":
            blocks = rotate(blocks, self.position[which], self.rotary)
        return blocks

    def _turns_back(self, part: str, which: Tensor) -> Turns | None:
        if self.rotary is None or part != "k":
            return None
        return Turns(self.rotary, -self.position[which])

    def reading(
        self,
        layer: PagedLayer | FusedLayer,
        blocks: Candidates,
        first: Tensor,
        representative: Tensor,
        altered: Tensor,
    ) -> Reading | None:
        """How the blocks that were absorbed by similarity are read; None where there is none.

        A duplicate is read as its first copy is, bytes and all; exact duplicates that share a kept block
        are read as it is stored.

        Args:
            layer: the layer that was fused.
            blocks: its n candidates.
            first: (n,) int64 position of the byte-equal candidate whose block each takes.
            representative: (n,) int64 position of the final representative.
            altered: (n,) bool; which candidates are read from another block than their own bytes.
        """
        absorbed = torch.nonzero(altered).flatten()
        if len(absorbed) == 0 or (self.rotary is None and self.means is None):
            return None
        member, root = first[absorbed], representative[absorbed]
        shape, device = layer.table.entries.shape, layer.k.device

        def table(values: Tensor, default: int) -> Tensor:
            made = torch.full(shape, default, dtype=torch.int32, device=device)
            made.view(-1)[blocks.logical[absorbed]] = values.int()
            return made

        shift = None
        if self.rotary is not None:
            shift = table(self.position[member] - self.position[root], 0)
        means = None
        if self.means is not None:
            k, v, add, subtract = self._stored_means(member, root)
            means = Means(k, v, table(add, NO_MEAN), table(subtract, NO_MEAN))
        return Reading(shift, self.rotary, means)

    def _stored_means(self, member: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means in use, of keys and values, and which belong to each member and to its representative."""
        assert self.means is not None
        if self.rotary is None:
            used, index = torch.unique(torch.cat((self.group[member], self.group[root])), return_inverse=True)
            add, subtract = index.split(len(member))
            return self.means[0][used], self.means[1][used], add, subtract
        # A representative is turned to the member's position before its mean is taken away: of each
        # group one mean per position, turned there, serves both.
        pairs, index = torch.unique(
            torch.stack((self.group[member], self.position[member]), dim=1), dim=0, return_inverse=True
        )
        turned = rotate(self.means[0][pairs[:, 0]].float(), pairs[:, 1], self.rotary)
        return turned.to(self.means[0].dtype), self.means[1][pairs[:, 0]], index, index


@dataclass(frozen=True)
class Space:
    """Blocks as they are matched.

    Attributes:
        pools: keys and values with their norms.
        place: (n,) int64 id of each candidate in ``pools``; duplicates have their first copy's.
        transform: what was taken away; None where ``pools`` are the layer's own.
    """

    pools: Pools
    place: Tensor
    transform: Transform | None = None


def check_space(layer: PagedLayer | FusedLayer, options: FuseOptions) -> None:
    """Raises InputError where centroids, or blocks without positions or means, do not fit the layer."""
    if isinstance(layer, FusedLayer) and options.variant == "centroid":
        raise InputError(
            "layer",
            "a FusedLayer",
            "has blocks that stand for others already, whose directions a mean would leave out: fuse the "
            "layer before that fusion, or use another variant than centroid",
        )
    if options.rotary is None and options.centre is None:
        return
    if isinstance(layer, FusedLayer):
        raise InputError(
            "layer",
            "a FusedLayer",
            "is read at several positions from one block, so neither positions nor means can be taken away "
            "from its blocks: fuse the layer before that fusion, or leave out rotary and centre",
        )
    if options.rotary is not None and options.rotary.rotary_dim > layer.k.shape[3]:
        raise InputError(
            "rotary", options.rotary.rotary_dim, f"turns more channels than a head has ({layer.k.shape[3]})"
        )
    starts, requests = options.starts, layer.table.requests
    if starts is None:
        return
    if starts.dtype != torch.int64 or tuple(starts.shape) != (requests,):
        raise InputError(
            "starts",
            f"{starts.dtype} of shape {tuple(starts.shape)}",
            f"must be int64 of shape ({requests},), the position of each request's first token",
        )
    if requests and int(starts.abs().max()) > _FARTHEST:
        raise InputError("starts", int(starts.abs().max()), f"must lie within ±{_FARTHEST}")


def make_space(
    matcher: Matcher,
    layer: PagedLayer | FusedLayer,
    blocks: Candidates,
    norms: tuple[Tensor, Tensor],
    first: Tensor,
    options: FuseOptions,
    layer_name: str | int | None = None,
) -> Space:
    """The layer's own pools, or float32 copies of the distinct candidates without positions and means.

    For centroids they are copies in any case, as they are written to.

    Args:
        matcher: makes the copies and computes their norms.
        layer: the layer.
        blocks: its n candidates.
        norms: (blocks,) float32 norms of the pool's keys and of its values.
        first: (n,) int64 position of the byte-equal candidate whose block each takes.
        options: what is to be taken away, as ``check_space`` lets it pass.
        layer_name: for messages.

    Raises:
        InputError: a norm beyond float32 once a mean is taken away.
    """
    if options.rotary is None and options.centre is None and options.variant != "centroid":
        return Space(Pools(Part(layer.k, norms[0]), Part(layer.v, norms[1])), blocks.physical)
    transform = _find_transform(matcher, layer, blocks, options)
    distinct = torch.nonzero(first == torch.arange(len(blocks), device=layer.k.device)).flatten()
    parts = []
    for part, pool in (("k", layer.k), ("v", layer.v)):
        copy = transform.remove(matcher, part, pool, blocks.physical[distinct], distinct)
        norm = matcher.block_norms(copy)
        bad = torch.nonzero(~torch.isfinite(norm)).flatten()
        if len(bad):
            where = place_name(
                layer_name, int(blocks.logical[distinct[bad[0]]]), layer.table.entries.shape[1]
            )
            raise InputError(
                part, float(norm[bad[0]]), f"{where} has a norm that float32 cannot hold without its mean"
            )
        parts.append(Part(copy, norm))
    place = torch.empty_like(first)
    place[distinct] = torch.arange(len(distinct), device=place.device)
    return Space(Pools(parts[0], parts[1]), place[first], transform)


def _find_transform(
    matcher: Matcher, layer: PagedLayer | FusedLayer, blocks: Candidates, options: FuseOptions
) -> Transform:
    table, rotary = layer.table, options.rotary
    max_blocks = max(1, table.entries.shape[1])
    position = blocks.logical % max_blocks * table.block_size
    if options.starts is not None:
        position += options.starts.to(position.device)[blocks.request]
    if options.centre is None:
        return Transform(rotary, position, None, torch.zeros_like(position))
    key = blocks.domain
    if options.centre == "position":
        _, domain = torch.unique(blocks.domain, return_inverse=True)
        key = domain * max_blocks + blocks.logical % max_blocks
    groups, group = torch.unique(key, return_inverse=True)
    back = None if rotary is None else Turns(rotary, -position)
    k = matcher.group_means(layer.k, blocks.physical, back, group, len(groups))
    v = matcher.group_means(layer.v, blocks.physical, None, group, len(groups))
    return Transform(rotary, position, (k, v), group)
