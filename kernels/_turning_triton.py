"""Turning keys within a kernel, by the tables that ``ratedist.kernels.rotary.turn_rows`` makes."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["turned"]


@triton.jit
def turned(
    x: tl.tensor,  # (rows, channels) keys as stored
    turn: tl.tensor,  # (rows,) int32 row of the tables; 0 where a key does not turn
    cosine: tl.tensor,  # (turns, head_dim) float32
    sine: tl.tensor,  # (turns, head_dim) float32, negative for the first channel of a pair
    head_dim: tl.tensor,
    pair_distance: tl.tensor,  # channels between the two of a pair
    scalar: tl.tensor,  # (channels,)
    inside: tl.tensor,  # (rows, channels) what may be read
) -> tl.tensor:
    """(rows, channels) float32 keys turned by each token's row of the tables; exact where that is 0."""
    turns = inside & (turn > 0)[:, None]
    at = turn.to(tl.int64)[:, None] * head_dim + scalar[None, :]
    cos = tl.load(cosine + at, mask=turns, other=1.0)
    sin = tl.load(sine + at, mask=turns, other=0.0)
    # Channels that do not turn have a sine of 0, whatever is taken for their partner.
    first = scalar // pair_distance % 2 == 0
    partner = tl.where(first, scalar + pair_distance, scalar - pair_distance)
    partner = tl.where(partner < head_dim, partner, scalar)
    other = tl.gather(x, tl.broadcast_to(partner[None, :], x.shape), 1)
    return x.to(tl.float32) * cos + other.to(tl.float32) * sin
