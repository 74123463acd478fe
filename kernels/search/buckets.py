"""Pairs of blocks that share a key, counted before they are listed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Buckets", "sort_buckets"]

_LISTED = 1 << 20
"""Pairs listed at a time."""


@dataclass(frozen=True)
class Buckets:
    """The buckets of one table: blocks sorted by key, in their own order within a key.

    Attributes:
        order: (n,) int64 positions of the blocks, sorted.
        start: (n,) int64 place in ``order`` where the bucket of each begins.
        partners: (n,) int64 blocks of earlier requests in the bucket of each; they stand from ``start`` on.
        pairs: sum of ``partners``.
    """

    order: Tensor
    start: Tensor
    partners: Tensor
    pairs: int

    def list_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions (later, earlier) of the pairs of different requests, about a million at a time."""
        busy = torch.nonzero(self.partners).flatten()
        partners = self.partners[busy]
        ends = partners.cumsum(0)
        low = 0
        while low < len(busy):
            done = int(ends[low] - partners[low])
            high = int(torch.searchsorted(ends, done + _LISTED, right=True))
            high = max(high, low + 1)
            count = partners[low:high]
            member = torch.arange(low, high, device=busy.device).repeat_interleave(count)
            # Places within the run of each member: 0, 1, … up to its partners.
            within = torch.arange(len(member), device=busy.device) - (ends - partners - done)[member]
            place = busy[member]
            yield self.order[place], self.order[self.start[place] + within]
            low = high


def sort_buckets(keys: Tensor, request: Tensor) -> Buckets:
    """The buckets of one table.

    Args:
        keys: (n,) integers.
        request: (n,) int64, ascending: blocks of one request are never paired.
    """
    ordered, order = torch.sort(keys, stable=True)
    place = torch.arange(len(keys), device=keys.device)
    other_key = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    other_key[1:] = ordered[1:] != ordered[:-1]
    start = torch.where(other_key, place, 0).cummax(0).values
    owner = request[order]
    other_owner = other_key.clone()
    other_owner[1:] |= owner[1:] != owner[:-1]
    partners = torch.where(other_owner, place, 0).cummax(0).values - start
    return Buckets(order, start, partners, int(partners.sum()))
