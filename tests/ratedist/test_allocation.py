"""Allocation of settings over layers, against every allocation there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.allocation import Allocation, LayerSettings, allocate, best_uniform, lower_hull
from ratedist.errors import InputError

values = st.integers(0, 30).map(float)
settings = st.lists(st.tuples(values, values), min_size=1, max_size=5)
problems = st.lists(settings, min_size=1, max_size=4).map(
    lambda layers: [LayerSettings(*np.array(layer).T) for layer in layers]
)


def every(layers: list[LayerSettings]) -> list[tuple[float, float]]:
    """(bytes, harm) of every allocation."""
    return [
        (
            sum(float(layer.bytes[s]) for layer, s in zip(layers, choice, strict=True)),
            sum(float(layer.harm[s]) for layer, s in zip(layers, choice, strict=True)),
        )
        for choice in itertools.product(*(range(len(layer.bytes)) for layer in layers))
    ]


def check_totals(layers: list[LayerSettings], found: Allocation) -> None:
    assert found.bytes == sum(layer.bytes[s] for layer, s in zip(layers, found.settings, strict=True))
    assert found.harm == sum(layer.harm[s] for layer, s in zip(layers, found.settings, strict=True))


@given(settings)
def test_hull_is_what_every_slope_chooses(drawn: list[tuple[float, float]]) -> None:
    rate, cost = np.array(drawn).T
    hull = lower_hull(rate, cost)
    assert (np.diff(rate[hull]) < 0).all()
    assert (np.diff(cost[hull]) > 0).all()
    slopes = -np.diff(rate[hull]) / np.diff(cost[hull])
    assert (np.diff(slopes) < 1e-12).all()
    assert cost[hull[0]] == cost.min()
    assert rate[hull[-1]] == rate.min()
    for multiplier in (1e-6, 0.1, 0.5, 1.0, 2.0, 7.0, 1e6):
        best = (rate + multiplier * cost).min()
        assert (rate + multiplier * cost)[hull].min() == pytest.approx(best)


@given(problems, st.floats(0, 130))
def test_against_every_allocation(layers: list[LayerSettings], limit: float) -> None:
    """The goal holds, the bound holds for every allocation, and the gap is at most one segment."""
    totals = every(layers)
    least_harm, fewest = min(h for _, h in totals), min(b for b, _ in totals)
    if limit >= least_harm:
        found = allocate(layers, max_harm=limit)
        check_totals(layers, found)
        assert found.harm <= limit
        best = min(b for b, h in totals if h <= limit)
        assert found.bound <= best + 1e-9 <= found.bytes + 2e-9
        largest = max(float(layer.bytes.max() - layer.bytes.min()) for layer in layers)
        assert found.bytes - found.bound <= largest + 1e-9
    if limit >= fewest:
        found = allocate(layers, max_bytes=limit)
        check_totals(layers, found)
        assert found.bytes <= limit
        best = min(h for b, h in totals if b <= limit)
        assert found.bound <= best + 1e-9 <= found.harm + 2e-9


@given(problems, st.floats(0.01, 20))
def test_a_slope_is_optimal_layer_by_layer(layers: list[LayerSettings], slope: float) -> None:
    found = allocate(layers, slope=slope)
    check_totals(layers, found)
    for layer, setting in zip(layers, found.settings, strict=True):
        objective = layer.bytes + slope * layer.harm
        assert objective[setting] == pytest.approx(objective.min())


@given(problems, st.floats(0, 130))
def test_uniform_is_never_better(layers: list[LayerSettings], limit: float) -> None:
    """With the same settings in every layer, the bound undercuts the best single setting."""
    size = min(len(layer.bytes) for layer in layers)
    layers = [LayerSettings(layer.bytes[:size], layer.harm[:size]) for layer in layers]
    totals = [sum(layer.harm for layer in layers), sum(layer.bytes for layer in layers)]
    if limit < min(totals[0]):
        with pytest.raises(InputError, match="out of reach of uniform settings"):
            best_uniform(layers, max_harm=limit)
        return
    uniform = best_uniform(layers, max_harm=limit)
    check_totals(layers, uniform)
    assert uniform.harm <= limit
    assert uniform.bytes == min(b for b, h in zip(totals[1], totals[0], strict=True) if h <= limit)
    assert allocate(layers, max_harm=limit).bound <= uniform.bytes + 1e-9


def test_takes_the_steepest_first() -> None:
    """Two layers by hand: 8 bytes per harm beat 5, and those beat 1."""
    steep = LayerSettings(np.array([100.0, 92.0, 87.0]), np.array([0.0, 1.0, 2.0]))
    shallow = LayerSettings(np.array([100.0, 99.0]), np.array([0.0, 1.0]))
    one, two, three = (allocate([steep, shallow], max_harm=h) for h in (1.0, 2.0, 3.0))
    assert [list(a.settings) for a in (one, two, three)] == [[1, 0], [2, 0], [2, 1]]
    assert [a.slope for a in (one, two, three)] == [8.0, 5.0, 1.0]
    nothing = allocate([steep, shallow], max_harm=0.5)
    assert list(nothing.settings) == [0, 0]
    assert nothing.slope == math.inf
    assert nothing.bound == 196.0
    enough = allocate([steep, shallow], max_bytes=190.0)
    assert (enough.harm, enough.bound) == (2.0, pytest.approx(1.4))


def test_refuses() -> None:
    layer = LayerSettings(np.array([3.0]), np.array([1.0]))
    with pytest.raises(InputError, match="exactly one of max_harm, max_bytes, slope"):
        allocate([layer], max_harm=1.0, slope=1.0)
    with pytest.raises(InputError, match="exactly one of"):
        allocate([layer])
    with pytest.raises(InputError, match="the least harm is 1"):
        allocate([layer], max_harm=0.5)
    with pytest.raises(InputError, match="the fewest bytes are 3"):
        allocate([layer], max_bytes=2.0)
    with pytest.raises(InputError, match="must be a number that is not negative"):
        allocate([layer], max_harm=math.nan)
    with pytest.raises(InputError, match="at least one layer"):
        allocate([], max_harm=1.0)
    with pytest.raises(InputError, match="at least one setting"):
        LayerSettings(np.array([1.0, 2.0]), np.array([1.0]))
    with pytest.raises(InputError, match="harm"):
        LayerSettings(np.array([1.0]), np.array([-1.0]))
    with pytest.raises(InputError, match="need the same settings"):
        best_uniform([layer, LayerSettings(np.ones(2), np.ones(2))], max_harm=1.0)
    with pytest.raises(InputError, match="exactly one of max_harm, max_bytes"):
        best_uniform([layer])
    with pytest.raises(InputError, match="the least is 3"):
        best_uniform([layer], max_bytes=1.0)
