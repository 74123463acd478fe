"""Monte Carlo of the position-marked process: counts by position, and the grid interval of every match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.errors import InputError
from ratedist.fusion.units import as_units
from ratedist.montecarlo.sample import RunSample

__all__ = ["simulate_marked"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def simulate_marked(
    exceedance: ArrayLike,
    full_blocks: Sequence[int] | IntArray,
    *,
    scores: ArrayLike,
    variant: str,
    runs: int,
    rng: np.random.Generator,
) -> RunSample:
    """Runs of leader or tree in which every pair of positions exceeds independently with its own chance.

    A block at position i stays against N_j kept ones with chance Π_j (1 − P_ij)^N_j; its best match falls
    between two scores with the difference of these chances there, and counts with the mean e² of both.

    Args:
        exceedance: (S, P, P) chances at ``scores``, the first of which is the threshold.
        full_blocks: full blocks of each request.
        scores: increasing grid.
        variant: leader or tree.
        runs: at least 2.
        rng: source of randomness.

    Raises:
        InputError: an argument outside its domain.
    """
    whole_number("runs", runs, low=2)
    if variant not in ("leader", "tree"):
        raise InputError("variant", variant, "must be leader or tree")
    grid = as_thresholds("scores", scores)
    chance = np.asarray(exceedance, dtype=np.float64)
    lengths = as_units("full_blocks", full_blocks)
    if chance.ndim != 3 or chance.shape[0] != grid.size:
        raise InputError(
            "exceedance", f"shape {chance.shape}", f"must hold one matrix for each of {grid.size} scores"
        )
    with np.errstate(divide="ignore"):
        exponent = np.minimum(-np.log1p(-chance), 700.0)
    # Best match up to the threshold, then between grid points, then above the last one.
    error2 = 2 - 2 * np.append(grid, 1.0)
    error2 = np.append(0.0, 0.5 * (error2[:-1] + error2[1:]))
    positions = chance.shape[1]
    units = [np.broadcast_to((np.arange(positions) < n).astype(np.int64), (runs, positions)) for n in lengths]
    total = np.zeros(runs)

    def merge(left: IntArray, right: IntArray) -> IntArray:
        below = np.exp(-np.einsum("rj,sij->ris", left, exponent))  # P(best match <= score)
        chances = np.diff(below, axis=2, prepend=0.0, append=1.0)
        drawn = rng.multinomial(right, np.maximum(chances, 0.0))
        total[...] += drawn.sum(axis=1) @ error2
        return left + drawn[:, :, 0]

    while len(units) > 1:
        if variant == "leader":
            units = [merge(units[0], units[1]), *units[2:]]
            continue
        pairs = [merge(a, b) for a, b in zip(units[0:-1:2], units[1::2], strict=True)]
        units = pairs + ([units[-1]] if len(units) % 2 else [])
    return RunSample(int(lengths.sum()), units[0].sum(axis=1).astype(np.float64), total, None)
