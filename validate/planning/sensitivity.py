"""How a plan would fare if the traffic drifted, from the calibration requests alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.validate.planning.measurements import Measurements
from ratedist.validate.quality.methods import Method

__all__ = ["SHIFT", "plan_sensitivity", "shifted", "without_one"]

FloatArray = NDArray[np.float64]

SHIFT = 0.02
"""By how much all thresholds are moved, either way."""


def plan_sensitivity(
    measurements: Measurements, methods: Mapping[int, Method], exact_saving: float | None
) -> dict[str, Any]:
    """What a plan's divergence and saving hang on; two measurements of moved thresholds, no other requests.

    Traffic whose similarities all rise by δ brings the matches that thresholds lower by δ would have brought
    here; the error of these is smaller there, so that the divergence of looser thresholds is an upper
    estimate, and the saving is what such traffic would save. Traffic that becomes less alike is the
    reverse. Neither says what requests of another kind would do.

    Args:
        measurements: of the calibration requests.
        methods: the plan, one per layer.
        exact_saving: share of the cache that exact duplicates alone save; None where unknown.

    Returns:
        ``shift``; ``kl_looser, kl_stricter, saving_looser, saving_stricter`` with all thresholds moved by it;
        ``ln_kl_per_hundredth``, rise of ln KL for every hundredth that thresholds fall, None where a
        divergence is 0; ``saving_per_hundredth``; ``exact_share``, part of the saving that exact duplicates
        alone give, None where nothing is saved or unknown; ``kl_without_one``, lowest and highest mean
        divergence with any one request left out; ``heaviest_share``, part of the divergence that falls on
        the request that suffers most.

    Test: tests/validate/planning/test_plan_sensitivity.py::test_thresholds_are_moved_and_measured.
    """
    here = measurements(methods)
    looser, stricter = (measurements(shifted(methods, by)) for by in (-SHIFT, SHIFT))
    step = 2 * SHIFT * 100
    both_positive = looser.mean_kl > 0 and stricter.mean_kl > 0
    saved = here.saving
    total = float(here.kl.sum())
    return {
        "shift": SHIFT,
        "kl_looser": looser.mean_kl,
        "kl_stricter": stricter.mean_kl,
        "saving_looser": looser.saving,
        "saving_stricter": stricter.saving,
        "ln_kl_per_hundredth": math.log(looser.mean_kl / stricter.mean_kl) / step if both_positive else None,
        "saving_per_hundredth": (looser.saving - stricter.saving) / step,
        "exact_share": None if exact_saving is None or saved <= 0 else max(0.0, exact_saving) / saved,
        "kl_without_one": list(without_one(here.kl)),
        "heaviest_share": float(here.kl.max()) / total if total > 0 else None,
    }


def shifted(methods: Mapping[int, Method], by: float) -> dict[int, Method]:
    """A plan with all its thresholds of fusion moved, within −1 and 1."""
    return {
        layer: replace(method, threshold=min(1.0, max(-1.0, method.threshold + by)))
        if method.sharing == "fusion"
        else method
        for layer, method in methods.items()
    }


def without_one(kl: FloatArray) -> tuple[float, float]:
    """Lowest and highest mean over requests with any one left out; the mean itself where there is one."""
    if len(kl) < 2:
        return float(kl.mean()), float(kl.mean())
    rest = (kl.sum() - kl) / (len(kl) - 1)
    return float(rest.min()), float(rest.max())
