"""What a plan says about drift, against measurements made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.validate.planning.measurements import Measured
from ratedist.validate.planning.sensitivity import SHIFT, plan_sensitivity, shifted, without_one
from ratedist.validate.quality.methods import Method

PLAN = {
    2: Method("fusion", threshold=0.8),
    3: Method("fusion", "kivi", 4, criterion="both", threshold=0.995),
    4: Method("exact"),
}


class Law:
    """In the place of measurements: more divergence and a larger saving the lower thresholds are."""

    def __init__(self, harmless: bool = False) -> None:
        self.harmless = harmless

    def __call__(self, methods: dict[int, Method]) -> Measured:
        slack = sum(1 - method.threshold for method in methods.values() if method.sharing == "fusion")
        kl = np.zeros(3) if self.harmless else math.exp(10 * slack) * np.array([1.0, 2.0, 5.0])
        return Measured(kl, 1 / (1 - 0.1 - slack), np.zeros(3))


def test_thresholds_are_moved_and_measured() -> None:
    """The second threshold cannot rise above 1, so that thresholds rise by 0.02 and 0.005 only."""
    found = plan_sensitivity(Law(), PLAN, exact_saving=0.1)  # type: ignore[arg-type]
    slack = 0.2 + 0.005
    assert found["shift"] == SHIFT == 0.02
    assert found["saving_looser"] == pytest.approx(0.1 + slack + 0.04)
    assert found["saving_stricter"] == pytest.approx(0.1 + slack - 0.025)
    assert found["kl_looser"] == pytest.approx(math.exp(10 * (slack + 0.04)) * 8 / 3)
    assert found["kl_stricter"] == pytest.approx(math.exp(10 * (slack - 0.025)) * 8 / 3)
    assert found["ln_kl_per_hundredth"] == pytest.approx(10 * 0.065 / 4)
    assert found["saving_per_hundredth"] == pytest.approx(0.065 / 4)
    assert found["exact_share"] == pytest.approx(0.1 / (0.1 + slack))
    assert found["heaviest_share"] == pytest.approx(5 / 8)
    low, high = (math.exp(10 * slack) * mean for mean in (1.5, 3.5))
    assert found["kl_without_one"] == pytest.approx([low, high])


def test_what_does_not_exist_is_none() -> None:
    found = plan_sensitivity(Law(harmless=True), PLAN, exact_saving=None)  # type: ignore[arg-type]
    assert found["ln_kl_per_hundredth"] is found["heaviest_share"] is found["exact_share"] is None
    assert found["kl_without_one"] == [0, 0]


def test_only_thresholds_of_fusion_move() -> None:
    for by in (-SHIFT, SHIFT):
        moved = shifted(PLAN, by)
        assert moved[4] == PLAN[4]
        assert {layer: replace(m, threshold=PLAN[layer].threshold) for layer, m in moved.items()} == PLAN
    assert shifted({0: Method("fusion", threshold=-1.0)}, -SHIFT)[0].threshold == -1
    assert shifted(PLAN, SHIFT)[3].threshold == 1


@given(st.lists(st.floats(0, 10), min_size=2, max_size=6))
def test_without_one_against_every_choice(kl: list[float]) -> None:
    means = [np.mean(kl[:n] + kl[n + 1 :]) for n in range(len(kl))]
    assert without_one(np.array(kl)) == pytest.approx((min(means), max(means)), abs=1e-12)


def test_a_single_request_is_its_own_range() -> None:
    assert without_one(np.array([0.25])) == (0.25, 0.25)
