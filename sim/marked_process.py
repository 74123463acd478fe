"""Monte Carlo of the position-marked process: counts of kept blocks by position, no vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError

__all__ = ["simulate_marked"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_CERTAIN = 700.0


def simulate_marked(
    exceedance: ArrayLike,
    full_blocks: Sequence[int],
    *,
    variant: str,
    runs: int,
    rng: np.random.Generator,
) -> IntArray:
    """(runs,) kept blocks where every pair of blocks exceeds by itself, with the chance of its positions.

    A block at position i stays with chance Π_j (1 − P_ij)^{n_j} against n_j blocks kept at position j. This
    is the process whose mean ``ratedist.fusion.leader_marked`` and ``tree_marked`` close with means and
    variances.
    Test: tests/sim/test_marked_process.py::test_agrees_with_the_recursion.

    Args:
        exceedance: (positions, positions) P_ij at one threshold, row i of the arriving block.
        full_blocks: full blocks of each request, in order.
        variant: ``leader`` or ``tree``.
        runs: at least 2.
        rng: source of randomness.

    Raises:
        InputError: an argument outside its domain.
    """
    chance = np.asarray(exceedance, dtype=np.float64)
    if chance.ndim != 2 or chance.shape[0] != chance.shape[1]:
        raise InputError("exceedance", chance.shape, "must be a square matrix, (positions, positions)")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise InputError("exceedance", "a value", "must be chances within [0, 1]")
    if runs < 2:
        raise InputError("runs", runs, "must be at least 2")
    if not len(full_blocks) or min(full_blocks) < 1 or max(full_blocks) > len(chance):
        raise InputError("full_blocks", list(full_blocks), f"must lie in 1 … {len(chance)}")
    if variant not in ("leader", "tree"):
        raise InputError("variant", variant, "must be leader or tree")
    with np.errstate(divide="ignore"):
        hazard = np.minimum(-np.log1p(-chance), _CERTAIN)
    position = np.arange(len(chance))
    nodes = [np.tile((position < count).astype(np.int64), (runs, 1)) for count in full_blocks]
    if variant == "leader":
        kept = nodes[0]
        for arriving in nodes[1:]:
            kept = kept + _stays(kept, arriving, hazard, rng)
        return kept.sum(axis=1)
    while len(nodes) > 1:
        merged = [
            left + _stays(left, right, hazard, rng)
            for left, right in zip(nodes[::2], nodes[1::2], strict=False)
        ]
        nodes = merged + nodes[len(nodes) // 2 * 2 :]
    return nodes[0].sum(axis=1)


def _stays(kept: IntArray, arriving: IntArray, hazard: FloatArray, rng: np.random.Generator) -> IntArray:
    return rng.binomial(arriving, np.exp(-(kept @ hazard.T)))
