"""Independent answers: the exact law of kept blocks, by dynamic programming over its distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

Oracle = Callable[[list[int], float], tuple[float, float]]


@pytest.fixture(scope="session")
def exact_moments() -> dict[str, Oracle]:
    """Mean and standard deviation of kept blocks by variant, from units and the chance of an exceedance."""
    return {"leader": _exact_leader, "tree": _exact_tree}


def _exact_leader(units: list[int], chance: float) -> tuple[float, float]:
    law = {0: 1.0}
    for blocks in units:
        law = _merge(law, {blocks: 1.0}, chance)
    return _moments(law)


def _exact_tree(units: list[int], chance: float) -> tuple[float, float]:
    nodes = [{blocks: 1.0} for blocks in units]
    while len(nodes) > 1:
        merged = [_merge(a, b, chance) for a, b in zip(nodes[0:-1:2], nodes[1::2], strict=True)]
        nodes = merged + ([nodes[-1]] if len(nodes) % 2 else [])
    return _moments(nodes[0])


def _merge(left: dict[int, float], right: dict[int, float], chance: float) -> dict[int, float]:
    """Law of n + Binomial(m, (1 − chance)^n) over the laws of n and m."""
    merged: dict[int, float] = {}
    for n, weight in left.items():
        for m, other in right.items():
            stays = scipy.stats.binom.pmf(np.arange(m + 1), m, (1 - chance) ** n)
            for k, share in enumerate(stays):
                merged[n + k] = merged.get(n + k, 0.0) + weight * other * share
    return merged


def _moments(law: dict[int, float]) -> tuple[float, float]:
    values, weights = np.array(list(law)), np.array(list(law.values()))
    mean = float(values @ weights)
    return mean, float(np.sqrt(max((values - mean) ** 2 @ weights, 0.0)))
