"""Many equal steps of a slowly changing recursion at the cost of few."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["advance"]

FloatArray = NDArray[np.float64]

_DENSE = 32  # steps taken one by one at the start, where the state changes fastest
_GROWTH = 10  # afterwards a stride is this fraction of the steps taken so far
_STENCIL = 4  # nodes behind an interpolation
# Sums over the steps take every state of the first ones, and later one per this growth.
_OBSERVED = 12
_OBSERVED_GROWTH = 1.2


def advance(
    state: FloatArray,
    count: int,
    step: Callable[[FloatArray], FloatArray],
    observe: Callable[[FloatArray, float], None] | None = None,
) -> FloatArray:
    """State after ``count`` steps state ← state + step(state).

    The increments vary smoothly with the number of steps taken, so after the first ones they are summed
    over growing strides by cubic interpolation: a predictor from the nodes behind, then a corrector with the
    node ahead. Test: tests/ratedist/fusion/test_stepping.py::test_strides_agree_with_single_steps.

    Args:
        state: any shape; not changed.
        count: at least 0.
        step: increment of the state, of its shape.
        observe: called with states along the way and a weight each: the weighted sum of a smooth function
            of the state is its sum over the states before each of the ``count`` steps.
    """
    if count == 0:
        return state
    plan = _plan(count)
    increments: dict[int, FloatArray] = {0: step(state)}
    if observe is not None:
        observe(state, plan.weights[0])
    last = len(plan.strides) - 1
    for j, stride in enumerate(plan.strides):
        moved = state + _weighted(stride.predictor, increments)
        if stride.corrector is not None:
            for _ in range(2):
                increments[j + 1] = step(moved)
                moved = state + _weighted(stride.corrector, increments)
        state = moved
        if j < last:
            increments[j + 1] = step(state)
        increments.pop(j - _STENCIL + 1, None)
        if observe is not None and plan.weights[j + 1] != 0:
            observe(state, plan.weights[j + 1])
    return state


class _Stride:
    """Weights (by node) that sum the increments from one node up to the next."""

    def __init__(self, nodes: list[int], j: int) -> None:
        behind = range(max(0, j + 1 - _STENCIL), j + 1)
        self.predictor: dict[int, float] = {j: 1.0}
        self.corrector: dict[int, float] | None = None
        if nodes[j + 1] - nodes[j] > 1:
            ahead = range(max(0, j + 2 - _STENCIL), j + 2)
            self.predictor = _summation(nodes, behind, nodes[j], nodes[j + 1])
            self.corrector = _summation(nodes, ahead, nodes[j], nodes[j + 1])


class _Plan:
    """Nodes of ``count`` steps: the strides between them and the weight of each node in a sum over steps."""

    def __init__(self, count: int) -> None:
        nodes = [0]
        while nodes[-1] < count:
            taken = nodes[-1]
            nodes.append(min(count, taken + (1 if taken < _DENSE else max(1, taken // _GROWTH))))
        self.strides = [_Stride(nodes, j) for j in range(len(nodes) - 1)]
        seen = [0]
        for j, node in enumerate(nodes[:-1]):
            if j > 0 and (node <= _OBSERVED or node >= _OBSERVED_GROWTH * nodes[seen[-1]]):
                seen.append(j)
        seen.append(len(nodes) - 1)
        observed = [nodes[j] for j in seen]
        self.weights = [0.0] * len(nodes)
        for j in range(len(observed) - 1):
            stride = _Stride(observed, j)
            for node, weight in (stride.corrector or stride.predictor).items():
                self.weights[seen[node]] += weight


_plan = lru_cache(maxsize=64)(_Plan)


def _summation(nodes: list[int], stencil: range, start: int, stop: int) -> dict[int, float]:
    """Weights that sum the interpolation through the stencil's nodes over the steps start … stop − 1."""
    steps = np.arange(start, stop, dtype=np.float64)
    weights = {}
    for i in stencil:
        basis = np.ones_like(steps)
        for k in stencil:
            if k != i:
                basis *= (steps - nodes[k]) / (nodes[i] - nodes[k])
        weights[i] = float(basis.sum())
    return weights


def _weighted(weights: dict[int, float], increments: dict[int, FloatArray]) -> FloatArray:
    total: FloatArray | None = None
    for node, weight in weights.items():
        term = increments[node] if weight == 1.0 else weight * increments[node]
        total = term if total is None else total + term
    assert total is not None
    return total
