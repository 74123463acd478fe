"""What fuses with what: the full blocks of every unit, in the order in which they are taken.

The recursions know only units. In batch fast-fusion (BFF) a unit is a request of the batch; in chunks
fast-fusion (CFF) it is a chunk of one request's prefill. Blocks of one unit never match each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import whole_number
from ratedist.errors import InputError

__all__ = ["as_units", "batch_units", "chunk_units"]

IntArray = NDArray[np.int64]


def batch_units(requests: int, blocks: int) -> IntArray:
    """Units of BFF over a batch of equal requests: (requests,) with ``blocks`` full blocks each.

    Raises InputError where either is not a whole number of at least 1.
    """
    return np.full(whole_number("requests", requests, low=1), whole_number("blocks", blocks, low=1))


def chunk_units(blocks: int, chunk_blocks: int) -> IntArray:
    """Units of CFF over one request of ``blocks`` full blocks: chunks of ``chunk_blocks``, the last shorter.

    Raises InputError where either is not a whole number of at least 1.
    """
    blocks = whole_number("blocks", blocks, low=1)
    chunk_blocks = whole_number("chunk_blocks", chunk_blocks, low=1)
    full, rest = divmod(blocks, chunk_blocks)
    return np.array([chunk_blocks] * full + [rest] * (rest > 0))


def as_units(argument: str, units: Sequence[int] | IntArray) -> IntArray:
    """Full blocks per unit as int64 (units,); raises InputError where there is none, or one is below 1."""
    array = np.atleast_1d(np.asarray(units))
    if array.ndim != 1 or array.size == 0:
        raise InputError(argument, f"shape {array.shape}", "must list the full blocks of at least one unit")
    if array.dtype.kind not in "iu" or array.min() < 1:
        for blocks in array.tolist():
            whole_number(argument, blocks, low=1)
    return array.astype(np.int64)
