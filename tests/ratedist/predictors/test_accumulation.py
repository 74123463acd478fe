"""predictors.accumulation: how it continues what the sample shows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ratedist.predictors.accumulation import AccumulationPredictor, _later_errors


def test_later_errors_follow_the_power_of_the_sample() -> None:
    """Errors that fall as m^−0.4 over 16 requests are within 12 % of it at 64; those that rise stay."""
    step = np.arange(1.0, 65.0)
    count = np.full((1, 16), 3.0)
    falling = 2 * step**-0.4
    later = _later_errors(count * falling[:16] * np.ones((2, 1, 1)), count, 64)
    assert len(later) == 48
    assert later[-1] == pytest.approx(np.full((2, 1), falling[-1]), rel=0.12)
    rising = 2 * step**0.4
    flat = _later_errors(count * rising[:16] * np.ones((2, 1, 1)), count, 64)
    assert flat[-1] == pytest.approx(np.full((2, 1), rising[8:16].mean()))


def test_tree_over_leader_continues_in_proportion_to_ln_m() -> None:
    """A tenth less per doubling goes on so; half of what is added is uncertain, none within the sample."""
    predictor = object.__new__(AccumulationPredictor)
    predictor._rehearsal = SimpleNamespace(  # type: ignore[assignment]
        requests=16, tree=lambda thresholds, m: np.full((3, thresholds.size), 0.9 ** np.log2(m))
    )
    ratio, form = predictor._tree_ratio(np.array([0.7]), 64)
    assert np.exp(ratio) == pytest.approx(np.full((3, 1), 0.9**6))
    assert form == pytest.approx([-np.log(0.9)])
    within, sure = predictor._tree_ratio(np.array([0.7]), 8)
    assert np.exp(within) == pytest.approx(np.full((3, 1), 0.9**3))
    assert sure.tolist() == [0.0]


def test_final_errors_of_the_tree_continue_like_its_blocks() -> None:
    def absorbed(thresholds: np.ndarray, m: int, variant: str) -> SimpleNamespace:
        mean = 0.5 * (1.1 ** np.log2(m) if variant == "tree" else 1.0)
        count = np.full((thresholds.size, m), 2.0)
        return SimpleNamespace(count=count, squared=np.stack([count * mean, count * mean * 3]))

    predictor = object.__new__(AccumulationPredictor)
    predictor._rehearsal = SimpleNamespace(requests=16, absorbed=absorbed)  # type: ignore[assignment]
    for requests, doublings in ((8, 3), (16, 4), (64, 6)):
        found = np.exp(predictor._tree_errors(np.array([0.7]), requests))
        assert found == pytest.approx(np.full((2, 1), 1.1**doublings))
