"""The leader variant: blocks are absorbed by what earlier units kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion.caps import Caps
from ratedist.kernels.fusion.units import Match, left_share

__all__ = ["fuse_leader"]


def fuse_leader(
    units: list[Tensor],
    match: Match,
    limit: float,
    absorber: Tensor,
    score: Tensor,
    caps: Caps | None = None,
) -> None:
    """Each block is absorbed by its best match among the blocks kept of earlier units.

    Halves are settled one after the other, and between the two the second half meets in one call what
    the first one kept. Every pair of a block and an earlier kept block is scored once, as it is unit by
    unit, but in few large products. A block's best match does not depend on the caps, so they are asked
    where a unit is decided. Writes the absorber and the score of every block of ``units``.
    """
    best = torch.full_like(score, -torch.inf)
    target = absorber.clone()

    def settle(low: int, high: int) -> Tensor:
        if high - low == 1:
            unit = units[low]
            absorbed = best[unit] > limit
            if caps is not None:
                asking = unit[absorbed]
                absorbed[absorbed.clone()] = caps.admit(asking, target[asking], best[asking])
            leaving = unit[absorbed]
            absorber[leaving] = target[leaving]
            score[leaving] = best[leaving]
            return unit[~absorbed]
        middle = low + left_share(high - low)
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
