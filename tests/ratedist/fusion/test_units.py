"""ratedist/fusion/units.py, the front door of BFF and CFF."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import batch_units, chunk_units
from ratedist.fusion.units import as_units


@given(st.integers(1, 500), st.integers(1, 60))
def test_chunks_hold_every_block(blocks: int, chunk: int) -> None:
    units = chunk_units(blocks, chunk)
    assert units.sum() == blocks
    assert (units[:-1] == chunk).all()
    assert 1 <= units[-1] <= chunk


def test_batch() -> None:
    np.testing.assert_array_equal(batch_units(3, 5), [5, 5, 5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: batch_units(0, 5), r"requests = 0: must be a whole number of at least 1"),
        (lambda: batch_units(5, 0), r"blocks = 0: must be a whole number of at least 1"),
        (lambda: chunk_units(0, 1), r"blocks = 0"),
        (lambda: chunk_units(5, 0), r"chunk_blocks = 0"),
        (lambda: as_units("units", []), r"units = 'shape \(0,\)': must list .* at least one unit"),
        (lambda: as_units("units", [[1, 2]]), r"units = 'shape \(1, 2\)'"),
        (lambda: as_units("units", [3, 0, 2]), r"units = 0: must be a whole number of at least 1"),
        (lambda: as_units("units", [3, 1.5]), r"units = 1.5: must be a whole number"),
        (lambda: as_units("units", [3, float("nan")]), r"units = nan: must be a whole number"),
        (lambda: as_units("units", ["a"]), r"units = 'a': must be a whole number"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
