"""Fusion of real vectors: independent uniform directions, matched by their actual cosines.

Nothing is assumed here but the geometry, so this is the judge of the hard core and of the product along the
path, at the cost of a matrix product per merge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.errors import InputError
from ratedist.fusion.units import as_units
from ratedist.montecarlo.sample import RunSample

__all__ = ["simulate_directions"]

Vectors = NDArray[np.float32]
IntArray = NDArray[np.int64]

_VARIANTS = ("leader", "tree", "centroid")


def simulate_directions(
    dim: int,
    units: Sequence[int] | IntArray,
    threshold: float,
    *,
    variant: str,
    runs: int,
    rng: np.random.Generator,
) -> RunSample:
    """Runs of a fusion of uniform directions in R^dim.

    Args:
        dim: at least 2.
        units: full blocks of each unit, in order.
        threshold: τ within [-1, 1].
        variant: leader, tree or centroid (whose error is over all members, see ``simulate_centroid``).
        runs: at least 2.
        rng: source of randomness.

    Raises:
        InputError: an argument outside its domain.
    """
    whole_number("dim", dim, low=2)
    whole_number("runs", runs, low=2)
    tau = float(as_thresholds("threshold", threshold)[0])
    if variant not in _VARIANTS:
        raise InputError("variant", variant, f"must be one of {', '.join(_VARIANTS)}")
    lengths = as_units("units", units)
    merge = {"leader": _leader, "tree": _tree, "centroid": _centroid}[variant]
    ends = np.cumsum(lengths)
    outcomes = []
    for _ in range(runs):
        x = rng.standard_normal((int(ends[-1]), dim), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        outcomes.append(merge(x, ends, tau))
    kept, direct, final = np.array(outcomes).T
    return RunSample(int(ends[-1]), kept, None if variant == "centroid" else direct, final)


def _leader(x: Vectors, ends: IntArray, tau: float) -> tuple[float, float, float]:
    kept = np.empty_like(x)
    count, error2 = 0, 0.0
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        block = x[start:end]
        if count:
            best = (block @ kept[:count].T).max(axis=1)
            absorbed = best > tau
            error2 += float((2 - 2 * best[absorbed]).sum())
            block = block[~absorbed]
        kept[count : count + len(block)] = block
        count += len(block)
    return count, error2, error2


def _tree(x: Vectors, ends: IntArray, tau: float) -> tuple[float, float, float]:
    representative = np.arange(len(x))
    direct = 0.0
    nodes = [np.arange(start, end) for start, end in zip(np.append(0, ends[:-1]), ends, strict=True)]
    while len(nodes) > 1:
        merged = []
        for left, right in zip(nodes[0:-1:2], nodes[1::2], strict=True):
            score = x[right] @ x[left].T
            best = score.max(axis=1)
            absorbed = best > tau
            direct += float((2 - 2 * best[absorbed]).sum())
            representative[right[absorbed]] = left[score.argmax(axis=1)[absorbed]]
            merged.append(np.concatenate([left, right[~absorbed]]))
        nodes = merged + ([nodes[-1]] if len(nodes) % 2 else [])
    while (representative[representative] != representative).any():
        representative = representative[representative]
    final = 2 - 2 * np.einsum("ij,ij->i", x, x[representative])
    moved = representative != np.arange(len(x))
    return len(nodes[0]), direct, float(final[moved].sum())


def _centroid(x: Vectors, ends: IntArray, tau: float) -> tuple[float, float, float]:
    nodes = [x[start:end] for start, end in zip(np.append(0, ends[:-1]), ends, strict=True)]
    while len(nodes) > 1:
        merged = []
        for left, right in zip(nodes[0:-1:2], nodes[1::2], strict=True):
            score = _unit(right) @ _unit(left).T
            absorbed = score.max(axis=1) > tau
            total = left.copy()
            np.add.at(total, score.argmax(axis=1)[absorbed], right[absorbed])
            merged.append(np.concatenate([total, right[~absorbed]]))
        nodes = merged + ([nodes[-1]] if len(nodes) % 2 else [])
    lengths = np.linalg.norm(nodes[0], axis=1)
    return len(lengths), 0.0, float(2 * (len(x) - lengths.sum()))


def _unit(x: Vectors) -> Vectors:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
