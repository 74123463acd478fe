"""ratedist.predictors.hazard against simulated matches drawn from the hazard itself."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.predictors.hazard import Hazard, score_grid


def make_hazard(classes: int = 2, bins: int = 5, strength: float = 0.02, seed: int = 3) -> Hazard:
    rng = np.random.default_rng(seed)
    edges = np.linspace(0.6, 1.0, bins)
    weight = rng.gamma(0.7, strength, size=(bins, classes, classes))
    marks = rng.uniform(0, 1, size=(2, bins, classes, classes)) * (1 - edges)[:, None, None]
    return Hazard(edges, weight, *marks)


def draw_best(hazard: Hazard, own: int, classes: np.ndarray, rng: np.random.Generator, trials: int):
    """Best match of ``trials`` blocks of class ``own`` among representatives of the given classes.

    The best point of each pair's Poisson process lies where the hazard above it reaches an exponential
    variable; within a bin points are spread evenly. Returns whether there is one, its class, and its marks.
    """
    weight = hazard.weight[:, own, :][:, classes]  # (Q, n)
    above = np.cumsum(weight[::-1], axis=0)[::-1]
    exponential = rng.exponential(size=(trials, classes.size))
    bins = (exponential[None] <= above[:, None, :]).sum(axis=0) - 1  # -1 where the pair does not match
    index = np.maximum(bins, 0)
    column = np.arange(classes.size)
    depth = (exponential - above[index, column] + weight[index, column]) / np.maximum(
        weight[index, column], 1e-300
    )
    place = np.where(bins >= 0, bins + 1 - depth, -1.0)
    best = place.argmax(axis=1)
    row = np.arange(trials)
    found, q, partner = bins[row, best] >= 0, index[row, best], classes[best]
    return found, partner, hazard.k_mark[q, own, partner], hazard.v_mark[q, own, partner]


def z_score(values: np.ndarray, expected: float) -> float:
    return (values.mean() - expected) / (values.std() / np.sqrt(values.size))


def test_best_match_agrees_with_simulation() -> None:
    """Hazard.best_match: z-scores within 4 of 20 000 simulated blocks (8 comparisons)."""
    rng = np.random.default_rng(11)
    hazard, met = make_hazard(), np.array([6.0, 9.0])
    classes = np.repeat([0, 1], [6, 9])
    void, k, v = hazard.best_match(met[None])
    for own in (0, 1):
        found, _, k_mark, v_mark = draw_best(hazard, own, classes, rng, 20_000)
        assert abs(z_score(~found, void[0, own])) < 4
        assert abs(z_score(k_mark * found, k[0, own])) < 4
        assert abs(z_score(v_mark * found, v[0, own])) < 4
        assert 0.2 < void[0, own] < 0.8


def test_flows_agree_with_simulation() -> None:
    """Hazard.flows: which class the best match stands in, and its marks, within 4 standard errors."""
    rng = np.random.default_rng(12)
    hazard, met = make_hazard(), np.array([4.0, 11.0])
    classes = np.repeat([0, 1], [4, 11])
    flow, k, v = hazard.flows(met[None])
    for own in (0, 1):
        found, partner, k_mark, v_mark = draw_best(hazard, own, classes, rng, 20_000)
        for other in (0, 1):
            here = found & (partner == other)
            assert abs(z_score(here, flow[0, own, other])) < 4
            assert abs(z_score(k_mark * here, k[0, own, other])) < 4
            assert abs(z_score(v_mark * here, v[0, own, other])) < 4


def test_flows_add_up_to_best_match() -> None:
    hazard = make_hazard(classes=3)
    met = np.random.default_rng(0).uniform(0, 9, size=(4, 3))
    void, k, v = hazard.best_match(met)
    flow, k_flow, v_flow = hazard.flows(met)
    np.testing.assert_allclose(flow.sum(axis=2), 1 - void, rtol=1e-10)
    np.testing.assert_allclose(k_flow.sum(axis=2), k, rtol=1e-10)
    np.testing.assert_allclose(v_flow.sum(axis=2), v, rtol=1e-10)


def test_nothing_met_is_nothing_matched() -> None:
    void, k, v = make_hazard().best_match(np.zeros((1, 2)))
    assert (void == 1).all()
    assert not k.any()
    assert not v.any()


def test_above_keeps_the_bins_from_the_threshold_up() -> None:
    hazard = make_hazard(bins=5)
    part = hazard.above(float(hazard.edges[2]))
    np.testing.assert_array_equal(part.weight, hazard.weight[2:])
    np.testing.assert_array_equal(part.edges, hazard.edges[2:])
    assert hazard.above(1.0).weight.shape[0] == 1
    np.testing.assert_allclose(part.total(), hazard.weight[2:].sum(axis=0))
    np.testing.assert_allclose(hazard.exceedance()[2], 1 - np.exp(-part.total()))


@pytest.mark.parametrize("thresholds", [[0.6, 0.8123, 0.95], [-1.0, 1.0], [1.0], [0.37]])
def test_score_grid_holds_every_threshold(thresholds: list[float]) -> None:
    grid = score_grid(np.array(thresholds), classes=24)
    assert set(thresholds) <= set(grid.tolist())
    assert grid[0] == min(thresholds)
    assert grid[-1] == 1.0
    assert (np.diff(grid) > 0).all()
    coarse = score_grid(np.array(thresholds), classes=2000)
    assert set(thresholds) <= set(coarse.tolist())
    assert coarse.size <= grid.size
