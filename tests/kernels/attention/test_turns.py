"""Tables of turns against turning itself."""

from __future__ import annotations

import pytest
import torch
from caches import generator

from ratedist.kernels.attention.turns import pair_distance, turn_tables
from ratedist.kernels.reading import Reading
from ratedist.kernels.rotary import Rotary, rotate


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [2, 8, 12])
def test_tables_turn_as_rotate_does(style: str, rotary_dim: int) -> None:
    """cosine · x + sine · x' of ``turn_tables``, with x' the other channel of each pair."""
    shift = torch.tensor([[0, -5, 130_000], [130_000, 0, 1]], dtype=torch.int32)
    reading = Reading(shift, Rotary.from_base(1e4, rotary_dim, style))
    turn, cosine, sine = turn_tables(reading, 12, shift)
    assert (turn == 0).equal(shift == 0)
    assert len(cosine) == 5, "each distance once, and the row that turns nothing"
    x = torch.randn(6, 3, 2, 12, generator=generator(0))
    distance = pair_distance(reading)
    channel = torch.arange(12)
    other = torch.where(channel // distance % 2 == 0, channel + distance, channel - distance)
    other = torch.where(channel < rotary_dim, other, channel)
    row = turn.flatten()
    turned = x * cosine[row, None, None] + x[..., other] * sine[row, None, None]
    torch.testing.assert_close(turned, rotate(x, shift.flatten(), reading.rotary), rtol=1e-6, atol=1e-6)
