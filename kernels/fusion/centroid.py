"""The centroid variant: the tree, with the mean direction of a group's members as its representative.

A group goes by the name of its first block, and its centroid moves as soon as a node of the tree is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.fusion.scoring import Part
from ratedist.kernels.fusion.space import Space

__all__ = ["Centroids"]


class Centroids:
    """Representatives of growing groups, in the place of the block that founded each.

    A group's representative is Σ x / ‖x‖ over its members, normalised, times the mean of their norms; for
    keys and for values of every layer. Every logical block is a member, so a block with duplicates counts as
    often as it stands. The pools of the spaces are overwritten.
    """

    def __init__(self, spaces: Sequence[Space], first: Tensor) -> None:
        """Start with every distinct block as a group, with its duplicates.

        Args:
            spaces: float32 copies of the distinct blocks of each layer, in the same places; their blocks and
                norms are written to.
            first: (n,) int64 position of the byte-equal candidate whose block each takes.
        """
        self._place = spaces[0].place
        copies = torch.bincount(first, minlength=len(first))
        parts = [part for space in spaces for part in (space.pools.k, space.pools.v)]
        self._groups = [_Group.start(part, copies, self._place) for part in parts]

    def merge(self, members: Tensor, targets: Tensor) -> None:
        """Let the groups of ``targets`` take in those of ``members``.

        Args:
            members: (m,) int64 positions, each once.
            targets: (m,) int64 positions, none of which is among the members.
        """
        for group in self._groups:
            group.merge(self._place[members], self._place[targets])


@dataclass
class _Group:
    """Keys or values of all groups in one layer.

    Attributes:
        part: representatives and their norms.
        length: (m,) float32 length of the sum of the members' directions.
        count: (m,) float32 members.
        norms: (m,) float32 sum of their norms.
    """

    part: Part
    length: Tensor
    count: Tensor
    norms: Tensor

    @classmethod
    def start(cls, part: Part, copies: Tensor, place: Tensor) -> _Group:
        # A duplicate's place is its first copy's, which counts them all.
        count = torch.zeros_like(part.norm).index_add_(0, place, copies.float())
        return cls(part, torch.where(part.norm > 0, count, 0.0), count, part.norm * count)

    def merge(self, members: Tensor, targets: Tensor) -> None:
        pool, norm = self.part.pool.flatten(1), self.part.norm
        changed = torch.unique(targets)
        self._scale(changed, self._per_norm(changed))
        step = blocks_per_chunk(self.part.pool)
        for start in range(0, len(members), step):
            chunk = members[start : start + step]
            pool.index_add_(0, targets[start : start + step], pool[chunk] * self._per_norm(chunk)[:, None])
        self.count.index_add_(0, targets, self.count[members])
        self.norms.index_add_(0, targets, self.norms[members])
        for start in range(0, len(changed), step):
            chunk = changed[start : start + step]
            self.length[chunk] = torch.linalg.vector_norm(pool[chunk], dim=1)
        mean = self.norms[changed] / self.count[changed]
        length = self.length[changed]
        self._scale(changed, torch.where(length > 0, mean / length, 0.0))
        norm[changed] = torch.where(length > 0, mean, 0.0)

    def _per_norm(self, ids: Tensor) -> Tensor:
        """What turns a representative into the sum of its members' directions."""
        norm = self.part.norm[ids]
        return torch.where(norm > 0, self.length[ids] / norm, 0.0)

    def _scale(self, ids: Tensor, factor: Tensor) -> None:
        step = blocks_per_chunk(self.part.pool)
        pool = self.part.pool.flatten(1)
        for start in range(0, len(ids), step):
            chunk = ids[start : start + step]
            pool[chunk] = pool[chunk] * factor[start : start + step, None]
