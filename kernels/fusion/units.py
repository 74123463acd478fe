"""The units of a fusion problem, and the order in which a balanced tree pairs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ratedist.kernels.fusion.candidates import Candidates

__all__ = ["Match", "left_share", "units_by_domain"]

Match = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Best score of each of the first candidates (by position) over the second ones, and its position there."""


def units_by_domain(blocks: Candidates, first: Tensor) -> list[list[Tensor]]:
    """For every domain, the distinct blocks (by position) of each unit that has candidates.

    A unit all of whose blocks are duplicates stays one, without blocks; a request without a full block is
    no unit, so that padding a batch with empty requests does not change how the tree pairs the others.

    Args:
        blocks: the n candidates.
        first: (n,) int64 position of the byte-equal candidate whose block each takes, its own where unique.
    """
    domains = []
    for domain in torch.unique(blocks.domain):
        here = torch.nonzero(blocks.domain == domain).flatten()
        _, sizes = torch.unique_consecutive(blocks.unit[here], return_counts=True)
        distinct = first[here] == here
        domains.append(
            [
                unit[keep]
                for unit, keep in zip(here.split(sizes.tolist()), distinct.split(sizes.tolist()), strict=True)
            ]
        )
    return domains


def left_share(units: int) -> int:
    """Units on the left of a node: the largest power of two below ``units``, as pairing level by level
    with an odd unit passing up gives it."""
    return 1 << (units - 1).bit_length() - 1
