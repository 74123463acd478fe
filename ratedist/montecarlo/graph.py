"""Monte Carlo of the exceedance graph: connected components of independent exceedances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.fusion.units import as_units
from ratedist.montecarlo.sample import RunSample
from ratedist.similarity.base import SimilarityLaw

__all__ = ["simulate_components", "simulate_matern"]

IntArray = NDArray[np.int64]

_EDGES = 2_000_000  # edges in memory at a time


def simulate_components(
    law: SimilarityLaw,
    units: Sequence[int] | IntArray,
    threshold: float,
    *,
    runs: int,
    rng: np.random.Generator,
) -> RunSample:
    """Components of the graph in which every pair of blocks of different units exceeds with chance F̄(τ).

    Exact: present edges are found by geometric skips over all pairs, and pairs within a unit are dropped.

    Args:
        law: law of the score of a random pair.
        units: full blocks of each unit.
        threshold: τ within [-1, 1].
        runs: at least 2.
        rng: source of randomness.

    Raises:
        InputError: an argument outside its domain.
    """
    whole_number("runs", runs, low=2)
    lengths = as_units("units", units)
    tau = float(as_thresholds("threshold", threshold)[0])
    chance = float(law.sf(tau))
    n = int(lengths.sum())
    unit = np.repeat(np.arange(lengths.size), lengths)
    pairs = n * (n - 1) // 2
    batch = max(1, min(runs, int(_EDGES / max(pairs * chance + n, 1.0))))
    kept = np.concatenate(
        [
            _components(pairs, n, unit, chance, min(batch, runs - start), rng)
            for start in range(0, runs, batch)
        ]
    )
    return RunSample(n, kept, merges=n * runs)


def _components(
    pairs: int, n: int, unit: IntArray, chance: float, runs: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    index = _present(pairs * runs, chance, rng)
    run, pair = np.divmod(index, max(pairs, 1))
    # Pair number j(j − 1)/2 + i for i < j.
    second = ((1 + np.sqrt(1.0 + 8.0 * pair)) / 2).astype(np.int64)
    second -= second * (second - 1) // 2 > pair
    second += (second + 1) * second // 2 <= pair
    first = pair - second * (second - 1) // 2
    across = unit[first] != unit[second]
    row, column = (run * n + first)[across], (run * n + second)[across]
    graph = scipy.sparse.coo_matrix(
        (np.ones(row.size, dtype=np.int8), (row, column)), shape=(n * runs, n * runs)
    )
    count, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    # A component lies within one run, so its first block tells which.
    first_block = np.full(count, n * runs)
    np.minimum.at(first_block, label, np.arange(n * runs))
    return np.bincount(first_block // n, minlength=runs).astype(np.float64)


def _present(total: int, chance: float, rng: np.random.Generator) -> IntArray:
    """Sorted numbers in [0, total), each present with the given chance."""
    if chance <= 0 or total == 0:
        return np.empty(0, dtype=np.int64)
    if chance >= 1:
        return np.arange(total)
    parts = []
    last = -1
    while last < total:
        expected = (total - last) * chance
        steps = rng.geometric(chance, int(expected + 5 * np.sqrt(expected) + 10))
        found = last + np.cumsum(steps)
        parts.append(found)
        last = int(found[-1])
    index = np.concatenate(parts)
    return index[index < total]


def simulate_matern(chance: float, blocks: int, *, runs: int, rng: np.random.Generator) -> RunSample:
    """Blocks that exceed against no earlier one, each pair with this chance: Matérn's second process.

    Block i (from 0) stays with chance (1 − chance)^i, independently of the others, for its pairs with earlier
    blocks belong to it alone.
    """
    whole_number("runs", runs, low=2)
    stays = np.exp(np.log1p(-chance) * np.arange(whole_number("blocks", blocks, low=1)))
    kept = (rng.random((runs, blocks)) < stays).sum(axis=1).astype(np.float64)
    return RunSample(blocks, kept, merges=blocks * runs)
