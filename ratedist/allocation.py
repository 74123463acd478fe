"""Allocation: which of its settings every layer takes, so that all slopes of rate against harm are equal.

Each layer offers settings; a setting costs bytes and does harm, and both add up over layers. For a multiplier
λ, the bytes that one unit of harm may save, every layer by itself minimises bytes + λ·harm, and the settings
so chosen lie on the lower convex hull of the layer's settings. Walking λ from infinity to 0 takes one segment
of one hull after the other, steepest first: reverse water-filling over discrete settings. Every point of
the walk is optimal for its own totals, and the straight line between two points bounds from below what any
allocation can reach between them (Shoham and Gersho, IEEE Trans. ASSP 36(9), 1988).

Between two points of the walk, single layers are then moved to any setting, on the hull or not, as long as
that helps and the goal holds; the bound says how much could at most be left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError

__all__ = ["Allocation", "LayerSettings", "allocate", "best_uniform", "lower_hull"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class LayerSettings:
    """What one layer may be set to.

    Attributes:
        bytes: (settings,) bytes of the layer under each setting, not negative.
        harm: (settings,) harm it does, not negative, in any unit that adds up over layers.
    """

    bytes: FloatArray
    harm: FloatArray

    def __post_init__(self) -> None:
        for name in ("bytes", "harm"):
            object.__setattr__(self, name, as_numbers(name, getattr(self, name), low=0.0).reshape(-1))
        if len(self.bytes) == 0 or len(self.bytes) != len(self.harm):
            raise InputError(
                "bytes",
                f"{len(self.bytes)} settings, harm has {len(self.harm)}",
                "a layer needs at least one setting, each with its bytes and its harm",
            )


@dataclass(frozen=True)
class Allocation:
    """One setting per layer.

    Attributes:
        settings: (layers,) index of the setting that each layer takes.
        bytes: total bytes.
        harm: total harm.
        bound: what no allocation can undercut: bytes where the harm was limited, harm where bytes were, and
            the totals' own value where a slope was given (it is optimal).
        slope: bytes saved per unit of harm where the walk stopped; infinite where it never started.
    """

    settings: IntArray
    bytes: float
    harm: float
    bound: float
    slope: float


def lower_hull(bytes: ArrayLike, harm: ArrayLike) -> IntArray:
    """Indices of the settings on the lower convex hull, from least harm to fewest bytes.

    Of settings with equal harm the one with fewest bytes counts, of equal ones the first. Bytes fall and
    harm rises along the result, and bytes saved per unit of harm fall strictly.

    Test: tests/ratedist/test_allocation.py::test_hull_is_what_every_slope_chooses.
    """
    rate = as_numbers("bytes", bytes, low=0.0).reshape(-1)
    cost = as_numbers("harm", harm, low=0.0).reshape(-1)
    hull: list[int] = []
    for index in np.lexsort((np.arange(len(rate)), rate, cost)):
        if hull and rate[index] >= rate[hull[-1]]:
            continue
        while len(hull) > 1 and _steeper(rate, cost, hull[-2], hull[-1], int(index)):
            hull.pop()
        hull.append(int(index))
    return np.array(hull, dtype=np.int64)


def allocate(
    layers: Sequence[LayerSettings],
    *,
    max_harm: float | None = None,
    max_bytes: float | None = None,
    slope: float | None = None,
) -> Allocation:
    """Fewest bytes within a harm, least harm within bytes, or the most saved at a given slope.

    Args:
        layers: at least one.
        max_harm: total harm allowed.
        max_bytes: total bytes allowed.
        slope: take what saves at least so many bytes per unit of harm, layer by layer.

    Raises:
        InputError: not exactly one goal, or one that is out of reach (the message has the best there is).

    Test: tests/ratedist/test_allocation.py::test_against_every_allocation.
    """
    goals = {"max_harm": max_harm, "max_bytes": max_bytes, "slope": slope}
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) != 1:
        raise InputError("goal", ", ".join(given) or None, f"give exactly one of {', '.join(goals)}")
    if not layers:
        raise InputError("layers", [], "needs at least one layer")
    ((goal, limit),) = given.items()
    if not limit >= 0 or (math.isinf(limit) and goal != "slope"):
        raise InputError(goal, limit, "must be a number that is not negative")

    hulls = [lower_hull(layer.bytes, layer.harm) for layer in layers]
    segments = sorted(
        (
            (-_slope(layer, int(low), int(high)), n, step)
            for n, (layer, hull) in enumerate(zip(layers, hulls, strict=True))
            for step, (low, high) in enumerate(pairwise(hull))
        ),
    )
    chosen = np.array([hull[0] for hull in hulls], dtype=np.int64)
    total_bytes, total_harm = _totals(layers, chosen)
    if goal == "max_harm" and total_harm > limit:
        raise InputError(goal, limit, f"is out of reach: the least harm is {total_harm:.6g}")
    reachable = sum(float(layer.bytes.min()) for layer in layers)
    if goal == "max_bytes" and reachable > limit:
        raise InputError(goal, limit, f"is out of reach: the fewest bytes are {reachable:.6g}")

    reached, bound = math.inf, total_bytes if goal == "max_harm" else total_harm
    for negative, n, step in segments:
        steepness = -negative
        low, high = int(hulls[n][step]), int(hulls[n][step + 1])
        saved = float(layers[n].bytes[low] - layers[n].bytes[high])
        added = float(layers[n].harm[high] - layers[n].harm[low])
        if goal == "slope" and steepness < limit:
            break
        if goal == "max_bytes" and total_bytes <= limit:
            break
        if goal == "max_harm" and total_harm + added > limit:
            bound = total_bytes - (limit - total_harm) * steepness
            break
        if goal == "max_bytes":
            # The last segment may save more than is asked: part of it bounds the harm.
            bound = total_harm + added * min(1.0, (total_bytes - limit) / saved)
        chosen[n] = high
        total_bytes, total_harm = _totals(layers, chosen)
        reached = steepness
        if goal == "max_harm":
            bound = total_bytes
    if goal != "slope":
        _improve(layers, chosen, goal, float(limit))
    total_bytes, total_harm = _totals(layers, chosen)
    if goal == "slope":
        bound = total_bytes
    return Allocation(chosen, total_bytes, total_harm, bound, reached)


def best_uniform(
    layers: Sequence[LayerSettings], *, max_harm: float | None = None, max_bytes: float | None = None
) -> Allocation:
    """The best allocation in which all layers take the setting of one index, what a single threshold gives.

    Raises:
        InputError: layers with different numbers of settings, not exactly one goal, or one out of reach.
    """
    if (max_harm is None) == (max_bytes is None):
        raise InputError("goal", (max_harm, max_bytes), "give exactly one of max_harm, max_bytes")
    if len({len(layer.bytes) for layer in layers}) != 1:
        raise InputError("layers", [len(layer.bytes) for layer in layers], "need the same settings")
    rate = np.sum([layer.bytes for layer in layers], axis=0)
    cost = np.sum([layer.harm for layer in layers], axis=0)
    within = cost <= max_harm if max_harm is not None else rate <= float(max_bytes or 0)
    if not within.any():
        name, value, best = (
            ("max_harm", max_harm, cost.min())
            if max_harm is not None
            else ("max_bytes", max_bytes, rate.min())
        )
        raise InputError(name, value, f"is out of reach of uniform settings: the least is {best:.6g}")
    first, second = (rate, cost) if max_harm is not None else (cost, rate)
    order = np.lexsort((second, first))
    index = int(order[within[order]][0])
    settings = np.full(len(layers), index, dtype=np.int64)
    return Allocation(settings, float(rate[index]), float(cost[index]), float(first[index]), math.nan)


def _improve(layers: Sequence[LayerSettings], chosen: IntArray, goal: str, limit: float) -> None:
    """Move single layers to whatever lowers the objective most within the limit, until nothing does."""
    minimised, limited = ("bytes", "harm") if goal == "max_harm" else ("harm", "bytes")
    while True:
        spent = sum(float(getattr(layer, limited)[s]) for layer, s in zip(layers, chosen, strict=True))
        best, where = 0.0, None
        for n, layer in enumerate(layers):
            value, use = getattr(layer, minimised), getattr(layer, limited)
            gain = np.where(spent - use[chosen[n]] + use <= limit, value[chosen[n]] - value, -np.inf)
            top = int(gain.argmax())
            if gain[top] > best:
                best, where = float(gain[top]), (n, top)
        if where is None:
            return
        chosen[where[0]] = where[1]


def _totals(layers: Sequence[LayerSettings], chosen: IntArray) -> tuple[float, float]:
    return (
        math.fsum(float(layer.bytes[s]) for layer, s in zip(layers, chosen, strict=True)),
        math.fsum(float(layer.harm[s]) for layer, s in zip(layers, chosen, strict=True)),
    )


def _slope(layer: LayerSettings, low: int, high: int) -> float:
    return float((layer.bytes[low] - layer.bytes[high]) / (layer.harm[high] - layer.harm[low]))


def _steeper(rate: FloatArray, cost: FloatArray, first: int, middle: int, last: int) -> bool:
    """Whether middle to last saves at least as much per harm as first to middle, so that middle is off."""
    return bool(
        (rate[middle] - rate[last]) * (cost[middle] - cost[first])
        >= (rate[first] - rate[middle]) * (cost[last] - cost[middle])
    )
