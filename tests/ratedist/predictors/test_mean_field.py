"""ratedist.predictors.mean_field against fusion of simulated vectors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from ratedist.predictors.hazard import Hazard
from ratedist.predictors.mean_field import leader_mean_field, tree_mean_field

DIM = 48


def spherical_hazard(edges: np.ndarray, common: float) -> Hazard:
    """Exact law of s = m + (1 − m)c, c the cosine of uniform directions in DIM dimensions; error 2 − 2s of
    the keys and, to tell them apart, half of it for the values."""
    cosine = (edges - common) / (1 - common)
    survival = 0.5 * scipy.special.betainc((DIM - 1) / 2, 0.5, 1 - cosine**2)
    exponent = -np.log1p(-survival)
    weight = np.append(exponent[:-1] - exponent[1:], 0.0)
    error = 2 - np.append(edges[1:] + edges[:-1], 2.0)
    return Hazard(edges, *(a[:, None, None] for a in (weight, error, error / 2)))


def blocks(requests: int, per_request: int, common: float, rng: np.random.Generator) -> np.ndarray:
    residual = rng.normal(size=(requests, per_request, DIM))
    residual /= np.linalg.norm(residual, axis=2, keepdims=True)
    mean = np.full((requests, per_request, 1), np.sqrt(common))
    return np.concatenate([mean, np.sqrt(1 - common) * residual], axis=2)


def fuse_leader(x: np.ndarray, threshold: float) -> tuple[int, np.ndarray]:
    kept, errors = x[0], []
    for request in x[1:]:
        best = (request @ kept.T).max(axis=1)
        errors.append(2 - 2 * best[best > threshold])
        kept = np.concatenate([kept, request[best <= threshold]])
    return len(kept), np.concatenate(errors)


def fuse_tree(x: np.ndarray, threshold: float) -> tuple[int, np.ndarray]:
    flat = x.reshape(-1, x.shape[2])
    representative = np.arange(len(flat))
    nodes = list(representative.reshape(x.shape[:2]))
    while len(nodes) > 1:
        merged = []
        for left, right in zip(nodes[::2], nodes[1::2], strict=False):
            score = flat[right] @ flat[left].T
            best, absorbed = left[score.argmax(axis=1)], score.max(axis=1) > threshold
            for gone, into in zip(right[absorbed], best[absorbed], strict=True):
                representative[representative == gone] = into
            merged.append(np.concatenate([left, right[~absorbed]]))
        nodes = merged + nodes[2 * len(merged) :]
    moved = representative != np.arange(len(flat))
    return len(nodes[0]), 2 - 2 * (flat[moved] * flat[representative[moved]]).sum(axis=1)


CASES = [(0.0, 0.40), (0.5, 0.70)]


@pytest.mark.parametrize(("common", "threshold"), CASES)
def test_leader_agrees_with_simulation(common: float, threshold: float) -> None:
    """leader_mean_field: kept blocks and errors within 2 % of 15 simulated batches of vectors."""
    rng = np.random.default_rng(5)
    hazard = spherical_hazard(np.linspace(threshold, 1, 200), common)
    kept, errors = leader_mean_field(hazard, np.full((16, 1), 20.0), np.array([threshold]))
    runs = [fuse_leader(blocks(16, 20, common, rng), threshold) for _ in range(15)]
    assert kept[0] == pytest.approx(np.mean([run[0] for run in runs]), rel=0.02)
    squared = np.concatenate([run[1] for run in runs]).mean()
    assert errors[:, 0] == pytest.approx([squared, squared / 2], rel=0.02)
    assert 1.3 < 320 / kept[0] < 4


@pytest.mark.parametrize(("common", "threshold"), CASES)
def test_tree_agrees_with_simulation(common: float, threshold: float) -> None:
    """tree_mean_field: kept blocks and *final* errors within 3 % of 15 simulated batches of vectors.

    An odd number of requests, so that one passes up.
    """
    rng = np.random.default_rng(6)
    hazard = spherical_hazard(np.linspace(threshold, 1, 200), common)
    far = [np.full((1, 1), 2 * (1 - common)), np.full((1, 1), 1 - common)]
    kept, errors = tree_mean_field(hazard, np.full((17, 1), 20.0), np.array([threshold]), far)
    runs = [fuse_tree(blocks(17, 20, common, rng), threshold) for _ in range(15)]
    assert kept[0] == pytest.approx(np.mean([run[0] for run in runs]), rel=0.03)
    squared = np.concatenate([run[1] for run in runs]).mean()
    assert errors[0, 0] == pytest.approx(squared, rel=0.03)
    # The direct match alone would be well below: members move along.
    _, direct = leader_mean_field(hazard, np.full((17, 1), 20.0), np.array([threshold]))
    assert squared > 1.03 * direct[0, 0]


def test_two_requests_are_the_same_in_both_variants() -> None:
    hazard = spherical_hazard(np.linspace(0.4, 1, 50), 0.0)
    counts, thresholds = np.full((2, 1), 20.0), np.array([0.4])
    leader = leader_mean_field(hazard, counts, thresholds)
    tree = tree_mean_field(hazard, counts, thresholds, [np.full((1, 1), 2.0)] * 2)
    for a, b in zip(leader, tree, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_no_match_keeps_all_without_error() -> None:
    empty = np.zeros((2, 1, 1))
    hazard = Hazard(np.array([0.5, 1.0]), empty, empty, empty)
    far = [np.ones((1, 1))] * 2
    for kept, errors in (
        leader_mean_field(hazard, np.full((3, 1), 4.0), np.array([0.5])),
        tree_mean_field(hazard, np.full((3, 1), 4.0), np.array([0.5]), far),
    ):
        assert kept[0] == 12
        assert not errors.any()
