"""The turns of a reading as tables of cosines and sines, which a kernel looks up block by block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ratedist.kernels.reading import Reading

__all__ = ["pair_distance", "turn_tables"]

_TABLES = WeakIdKeyDictionary()
"""Tables by the shifts they were made for, which decoding asks for at every step."""


def pair_distance(reading: Reading) -> int:
    """Channels between the two that turn together."""
    rotary = reading.rotary
    return rotary.rotary_dim // 2 if rotary is not None and rotary.style == "half" else 1


def turn_tables(reading: Reading, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The turns of a reading's keys, for heads of ``head_dim`` channels and a block table ``like`` that.

    Angles are formed in float64 like those of ``ratedist.kernels.rotary.rotate``, once for every distance
    that occurs.

    Returns:
        turn: (requests, max_blocks) int32; row of the tables, 0 where the block does not turn.
        cosine, sine: (turns, head_dim) float32 such that a key x turns to cosine · x + sine · x', where x'
            is x with the channels of every pair exchanged.

    Test: tests/kernels/test_turns.py::test_tables_turn_as_rotate_does.
    """
    shift, rotary = reading.shift, reading.rotary
    if shift is None or rotary is None:
        still = torch.zeros((1, head_dim), dtype=torch.float32, device=like.device)
        return torch.zeros_like(like, dtype=torch.int32), still + 1, still
    found = _TABLES.get(shift)
    # How often a tensor was written to is counted by torch, so that no table is stale.
    if found is None or found[0] is not rotary or found[1:3] != (shift._version, head_dim):
        distances, turn = torch.unique(shift, return_inverse=True)
        # Row 0 turns nothing, whether 0 occurs or not.
        distances = torch.cat((distances.new_zeros(1), distances))
        turn = torch.where(shift == 0, 0, turn + 1).int()
        angles = distances.double()[:, None] * rotary.inverse_frequencies.double().to(shift.device)
        cosine, sine = angles.cos(), angles.sin()
        if rotary.style == "half":
            cosine, sine = torch.cat((cosine, cosine), 1), torch.cat((-sine, sine), 1)
        else:
            cosine, sine = (torch.stack(pair, 2).flatten(1) for pair in ((cosine, cosine), (-sine, sine)))
        rest = (0, head_dim - rotary.rotary_dim)
        cosine = torch.nn.functional.pad(cosine, rest, value=1.0).float()
        sine = torch.nn.functional.pad(sine, rest).float()
        found = _TABLES[shift] = (rotary, shift._version, head_dim, turn, cosine, sine)
    return found[3], found[4], found[5]
