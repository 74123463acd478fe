"""The tree variant: units are merged pair by pair, and a block that is absorbed takes its members along."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ratedist.kernels.fusion.caps import Caps
from ratedist.kernels.fusion.units import Match, left_share

__all__ = ["find_roots", "fuse_tree"]


def fuse_tree(
    units: list[Tensor],
    match: Match,
    limit: float,
    absorber: Tensor,
    score: Tensor,
    caps: Caps | None = None,
    joined: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """At every node, each block kept on the right is absorbed by its best match kept on the left.

    Writes the absorber of every block of ``units``, and the score against this absorber. Where ``joined`` is
    given, it is told at every node which blocks were absorbed and by which, before another node is matched.
    """

    def merge(low: int, high: int) -> Tensor:
        if high - low == 1:
            return units[low]
        middle = low + left_share(high - low)
        left, right = merge(low, middle), merge(middle, high)
        found, position = match(right, left)
        absorbed = found > limit
        if caps is not None:
            asking = absorbed.clone()
            absorbed[asking] = caps.admit(right[asking], left[position[asking]], found[asking])
        leaving = right[absorbed]
        absorber[leaving] = left[position[absorbed]]
        score[leaving] = found[absorbed]
        if joined is not None:
            joined(leaving, absorber[leaving])
        return torch.cat((left, right[~absorbed]))

    merge(0, len(units))


def find_roots(absorber: Tensor) -> Tensor:
    """Follow absorbers to the block that is kept; absorbers come first in logical order, so this ends."""
    roots = absorber
    while not torch.equal(roots[roots], roots):
        roots = roots[roots]
    return roots
