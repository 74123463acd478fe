"""Evicting the tokens that are attended to least, in the manner of H2O (Zhang et al., arXiv 2306.14048)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POSITION_BYTES", "SINKS", "evict"]

SINKS = 4
"""First tokens of a request that are always kept: models attend to them whatever they hold."""

POSITION_BYTES = 4
"""Of every kept token and head: where it stood, int32."""


def evict(received: Tensor, lengths: Tensor, keep: float) -> Tensor:
    """Which tokens are kept, for each request and head: a budget of round(keep · length) tokens.

    The budget goes to the first ``SINKS`` tokens, then half of it to the most recent ones, and what is left
    to those between that received most attention (the earlier where equal).

    Args:
        received: attention summed over the prefill's queries, (requests, kv_heads, tokens).
        lengths: (requests,) tokens of each request.
        keep: share of the tokens, within (0, 1].

    Returns:
        (requests, kv_heads, tokens) bool; True beyond a request's end is never set.
    """
    tokens = received.shape[2]
    position = torch.arange(tokens, device=received.device)
    lengths = lengths.to(received.device)
    budget = (lengths * keep).round().clamp(min=1).minimum(lengths)[:, None]
    first = budget.clamp(max=SINKS)
    recent = ((budget + 1) // 2).minimum(budget - first)
    within = position < lengths[:, None]
    always = within & ((position < first) | (position >= lengths[:, None] - recent))
    rank_by = received.masked_fill(~within[:, None], -torch.inf).masked_fill(always[:, None], torch.inf)
    order = rank_by.argsort(dim=2, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(2, order, position.expand_as(order))
    return (rank < budget[:, :, None]) & within[:, None]
