"""Forgetting moments against explicit weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ratedist.adaptive import ForgettingCurve
from ratedist.errors import InputError

GRID = np.array([0.5, 0.75, 1.0])


def test_moments_are_those_of_the_weighted_sample() -> None:
    rng = np.random.default_rng(0)
    curve = ForgettingCurve(GRID, 20.0)
    sample = rng.exponential(size=(60, 3))
    for row in sample:
        curve.update(row)
    weights = (19 / 21) ** np.arange(59, -1, -1)
    mean = weights @ sample / weights.sum()
    spread = weights @ (sample - mean) ** 2
    np.testing.assert_allclose(curve.mean, mean)
    np.testing.assert_allclose(
        curve.variance, spread / (weights.sum() - (weights**2).sum() / weights.sum()), rtol=1e-9
    )
    assert curve.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert curve.weight == pytest.approx(weights.sum())


def test_the_effective_number_tends_to_the_memory() -> None:
    curve = ForgettingCurve(GRID, 50.0)
    assert curve.effective == 0
    for count in range(1, 400):
        curve.update(np.ones(3))
        if count <= 3:
            assert curve.effective == pytest.approx(count, rel=0.01)
    assert curve.effective == pytest.approx(50.0, rel=1e-6)
    np.testing.assert_allclose(curve.variance, 0, atol=1e-12)


def test_nothing_is_known_before_two_requests() -> None:
    curve = ForgettingCurve(GRID, 50.0)
    assert (curve.mean == 0).all()
    curve.update(np.ones(3))
    assert np.isinf(curve.variance).all()
    curve.update(np.ones(3))
    assert np.isfinite(curve.variance).all()
    curve.reset()
    assert (curve.effective, curve.weight) == (0, 0)
    assert (curve.total == 0).all()


def test_state_survives_json_and_is_checked() -> None:
    curve = ForgettingCurve(GRID, 20.0)
    for row in np.random.default_rng(1).random((5, 3)):
        curve.update(row)
    state = json.loads(json.dumps(curve.to_dict()))
    again = ForgettingCurve.from_dict(state)
    for one in (curve, again):
        one.update(np.ones(3))
    assert again.to_dict() == curve.to_dict()
    with pytest.raises(InputError, match=r"sums = \(2, 2\): must have shape \(2, 3\)"):
        ForgettingCurve.from_dict(state | {"sums": [[0, 0], [0, 0]]})
    with pytest.raises(InputError, match=r"memory = 1.0: must be finite and at least 2"):
        ForgettingCurve(GRID, 1.0)
