"""Leader: units one after another, each block absorbed by its best match among the kept ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.fusion._moments import Problem, Void
from ratedist.fusion._stepping import advance
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.result import FusionResult
from ratedist.similarity.base import SimilarityLaw

__all__ = ["leader"]

FloatArray = NDArray[np.float64]


def leader(
    law: SimilarityLaw,
    units: Sequence[int] | NDArray[np.int64],
    thresholds: ArrayLike,
    *,
    hard_core: HardCore | bool = True,
) -> FusionResult:
    """N ← N + p·v for each further unit, with v the expected uncovered share.

    Without a hard core v = E[(1 − F̄(τ))^N], close to exp(−N·F̄(τ)).

    Args:
        law: law of the score of a random pair of blocks of different units.
        units: full blocks of each unit, in the order in which they are taken (``ratedist.fusion.units``).
        thresholds: strictly increasing, within [-1, 1].
        hard_core: True takes the sphere's where the law is spherical and none elsewhere; a ``HardCore`` made
            for these thresholds; False for exceedances independent of each other.

    A kept block is never absorbed, so the final similarity is the direct one.
    Tests: tests/ratedist/fusion/test_leader.py::test_agrees_with_directions and
    tests/ratedist/montecarlo/test_agreement.py.

    Raises:
        InputError: an argument outside its domain.
    """
    problem = Problem(law, np.asarray(units), thresholds, hard_core, None)
    nodes = problem.panels.scores.shape[0]
    # Rows of the state: E N, Var N, Cov(N, ℓ), E ℓ, and E ℓ by score.
    state = np.zeros((4 + nodes, problem.count))
    absorbed = np.zeros(problem.count)
    matched = np.zeros((nodes, problem.count))
    for blocks, run in groupby(problem.units.tolist()):

        def step(state: FloatArray, blocks: int = blocks) -> FloatArray:
            return _step(problem, state, blocks)

        def observe(state: FloatArray, weight: float, blocks: int = blocks) -> None:
            void = _void(problem, state)
            slope, chance = problem.tail_slope(state[3])
            nonlocal absorbed, matched
            absorbed += weight * blocks * void.hit
            matched += weight * blocks * problem.matched(void, state[4:], slope, chance)

        state = advance(state, sum(1 for _ in run), step, observe)
    return problem.result("leader", state[0], state[1], absorbed, matched, None)


def _void(problem: Problem, state: FloatArray) -> Void:
    # The first unit, once it has come, is kept for certain.
    least = np.minimum(state[0], float(problem.units[0]))
    return problem.void(state[0], state[1], state[2], state[3], least)


def _step(problem: Problem, state: FloatArray, blocks: int) -> FloatArray:
    """What one more unit adds to the state."""
    void = _void(problem, state)
    stays = blocks * void.mean
    # K | v is binomial(p, v); N and K move against each other.
    against = blocks * void.covariance
    spread = blocks * (void.mean - void.square) + blocks**2 * (void.square - void.mean**2)
    added = np.empty_like(state)
    added[0] = stays
    added[1] = np.maximum(2 * against + spread, -state[1])
    # ℓ grows by slope(ℓ) with each of K blocks.
    steeper = stays * void.steepening
    added[2] = (void.slope + void.moved + steeper * void.moved) * against + steeper * state[2]
    added[2] += void.slope * spread
    growth = stays - void.steepening * stays * void.moved * state[2] / np.maximum(void.slope, 1e-300)
    growth = np.maximum(growth, 0.0)
    added[3] = growth * void.slope
    added[4:] = growth * problem.tail_slope(state[3])[0]
    return added
