"""The turns of a reading as tables of cosines and sines, which a kernel looks up block by block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ratedist.kernels.reading import Reading
from ratedist.kernels.rotary import turn_rows

__all__ = ["pair_distance", "turn_tables"]

_TABLES = WeakIdKeyDictionary()
"""Tables by the shifts they were made for, which decoding asks for at every step."""


def pair_distance(reading: Reading) -> int:
    """Channels between the two that turn together; 1 where nothing turns."""
    return 1 if reading.rotary is None else reading.rotary.pair_distance


def turn_tables(reading: Reading, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The turns of a reading's keys, for heads of ``head_dim`` channels and a block table ``like`` that.

    Returns:
        turn, cosine, sine: as ``ratedist.kernels.rotary.turn_rows`` makes them; turn is of the shape of the
            block table.

    Test: tests/kernels/attention/test_turns.py::test_tables_turn_as_rotate_does.
    """
    shift, rotary = reading.shift, reading.rotary
    if shift is None or rotary is None:
        still = torch.zeros((1, head_dim), dtype=torch.float32, device=like.device)
        return torch.zeros_like(like, dtype=torch.int32), still + 1, still
    found = _TABLES.get(shift)
    # How often a tensor was written to is counted by torch, so that no table is stale.
    if found is None or found[0] is not rotary or found[1:3] != (shift._version, head_dim):
        found = _TABLES[shift] = (rotary, shift._version, head_dim, *turn_rows(shift, rotary, head_dim))
    return found[3], found[4], found[5]
