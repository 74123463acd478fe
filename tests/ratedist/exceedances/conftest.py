"""Captures of known structure: independent directions, copied passages, popular requests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ratedist.exceedances import Exceedances

Build = Callable[..., Exceedances]


def uniform_directions(
    requests: int, blocks: int, dim: int, rng: np.random.Generator, *, prefix: int = 0
) -> np.ndarray:
    """Unit vectors (requests, blocks, dim); the first ``prefix`` blocks of every request are the same."""
    x = rng.standard_normal((requests, blocks, dim))
    x[:, :prefix] = x[0, :prefix]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def scores_of(directions: np.ndarray) -> np.ndarray:
    """Scores (requests, blocks, requests, blocks)."""
    n, p, dim = directions.shape
    flat = directions.reshape(n * p, dim)
    return (flat @ flat.T).reshape(n, p, n, p)


@pytest.fixture
def ragged() -> Exceedances:
    """Random exceedances, one pair in five, among requests of 3, 1, 4 and 2 blocks."""
    rng = np.random.default_rng(0)
    sizes = [3, 1, 4, 2]
    matrices = {(a, b): rng.random((sizes[a], sizes[b])) < 0.3 for a in range(4) for b in range(a + 1, 4)}
    return Exceedances.from_scores(matrices)
