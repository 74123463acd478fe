"""ratedist/fusion/_stepping.py and _tree.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.fusion._stepping import advance
from ratedist.fusion._tree import tree_levels


@pytest.mark.parametrize("count", [1, 5, 33, 36, 400, 4096])
@pytest.mark.parametrize(("chance", "blocks"), [(1e-4, 512), (0.01, 32), (0.3, 1), (0.9, 7)])
def test_strides_agree_with_single_steps(count: int, chance: float, blocks: int) -> None:
    exponent = -np.log1p(-chance)
    kept, single = 0.0, 0.0
    for _ in range(count):
        single += np.exp(-0.3 * exponent * kept)
        kept += blocks * np.exp(-exponent * kept)

    total = 0.0

    def observe(state: np.ndarray, weight: float) -> None:
        nonlocal total
        total += weight * float(np.exp(-0.3 * exponent * state[0]))

    strided = advance(np.zeros(1), count, lambda state: blocks * np.exp(-exponent * state), observe)
    assert strided[0] == pytest.approx(kept, rel=3e-5)
    assert total == pytest.approx(single, rel=3e-4)  # taken from fewer states


def test_no_step_leaves_the_state() -> None:
    assert advance(np.array([3.0]), 0, lambda state: state) == 3.0


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_levels_cover_every_unit_once(kinds: list[int]) -> None:
    """Replayed with the order of the units as state, the levels give the balanced tree."""
    lengths, index = np.unique(np.array(kinds), return_inverse=True)
    states: list[tuple] = [(int(kind),) for kind in lengths]
    merges = 0
    for level in tree_levels(index):
        merges += int(level.count.sum())
        merged = [(states[a], states[b]) for a, b in zip(level.left, level.right, strict=True)]
        states = merged if level.passed is None else [*merged, states[level.passed]]
    assert len(states) == 1
    assert merges == len(kinds) - 1

    expected: list[tuple] = [(kind,) for kind in kinds]
    while len(expected) > 1:
        odd = [expected[-1]] if len(expected) % 2 else []
        expected = [(expected[i], expected[i + 1]) for i in range(0, len(expected) - 1, 2)] + odd
    assert states[0] == expected[0]
