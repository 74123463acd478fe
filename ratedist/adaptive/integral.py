"""A threshold that rises with every excess of error and falls with every shortfall."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, whole_number
from ratedist.adaptive.observation import Observation
from ratedist.errors import InputError

__all__ = ["IntegralController", "aim_for", "window_guarantee"]

FloatArray = NDArray[np.float64]


class IntegralController:
    """θ ← max(low, θ + γ·(ℓ − D′)) after a request of error ℓ; the threshold is min(θ, 1).

    **For every sequence of requests, also one chosen by an adversary who sees θ, the mean error over every
    window of W requests is at most D′ + (peak − low)/(γW)**, where peak is the highest value that θ can take.
    Proof: at θ >= 1 nothing is absorbed, so that ℓ = 0 and θ falls; below, a step from θ ends at most at θ +
    γ(c(θ) − D′), with c(θ) the largest error at that threshold. A step adds at least γ(ℓ − D′) to θ (the
    maximum only adds). Summed over the window, γ·Σ(ℓ − D′) is at most θ at its end less θ at its start, and
    so at most peak − low. No law is needed, only that ℓ is the error that occurred. It holds likewise where a
    threshold *above* θ was in force, 1 wherever θ >= 1: so the controller can stand guard over another one.

    In between, the sum telescopes to what θ has moved, so that a window's mean misses D′ by O(1/W) and not by
    the O(1/√W) of a threshold that is held.

    This is the step of adaptive conformal inference (Gibbs and Candès, NeurIPS 2021) on a bounded risk
    instead of on miscoverage, with a floor against wind-up, which is what makes the bound hold over windows.

    Test: tests/ratedist/adaptive/test_integral.py::test_mean_error_of_every_window_of_every_sequence.
    """

    def __init__(self, aim: float, *, gain: float = 0.5, low: float = 0.5, start: float = 1.0) -> None:
        """Start at a threshold.

        Args:
            aim: D′, mean error that is steered to; ``aim_for`` derives it from a promise.
            gain: γ, change of the threshold per unit of error in excess; 0 never moves and guarantees
                nothing.
            low: lowest threshold, within [−1, 1].
            start: first θ, within [low, 1].

        Raises:
            InputError: an argument outside what is listed.
        """
        self.aim = float(as_numbers("aim", aim, low=0.0, low_open=True))
        self.gain = float(as_numbers("gain", gain, low=0.0))
        self.low = float(as_numbers("low", low, low=-1.0, high=1.0))
        self.value = float(as_numbers("start", start, low=self.low, high=1.0))

    @property
    def threshold(self) -> float:
        """Threshold for the next request."""
        return min(self.value, 1.0)

    def update(self, observation: Observation) -> None:
        """Take in the error of the request that was fused under the threshold in force."""
        if observation.realised is None:
            raise InputError("observation", None, "has no realised error; give that of the fused request")
        self.value = max(self.low, self.value + self.gain * (observation.realised - self.aim))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state, read back by ``from_dict``."""
        return {"aim": self.aim, "gain": self.gain, "low": self.low, "value": self.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``; raises InputError where it is not such a state."""
        controller = cls(data["aim"], gain=data["gain"], low=data["low"])
        controller.value = float(as_numbers("value", data["value"], low=controller.low))
        return controller


def window_guarantee(
    aim: float, *, gain: float, window: int, thresholds: ArrayLike, ceiling: ArrayLike
) -> float:
    """D′ + (peak − low)/(γW): bound of the mean error over every window of W requests of any sequence.

    Args:
        aim: D′.
        gain: γ; infinite at 0.
        window: W, at least 1.
        thresholds: at least two, sorted from the lowest to 1.
        ceiling: largest error of a request at each of them, never rising; the last one does not count.

    Test: tests/ratedist/adaptive/test_integral.py::test_mean_error_of_every_window_of_every_sequence.
    """
    whole_number("window", window, low=1)
    if gain == 0:
        return math.inf
    grid, free = np.asarray(thresholds, dtype=np.float64), _highest_step(gain, thresholds, ceiling)
    peak = max(1.0, free - gain * aim)
    return float(aim + (peak - grid[0]) / (gain * window))


def aim_for(target: float, *, gain: float, window: int, thresholds: ArrayLike, ceiling: ArrayLike) -> float:
    """The largest D′ whose ``window_guarantee`` is ``target``; arguments as there.

    Test: tests/ratedist/adaptive/test_integral.py::test_aim_is_the_largest_that_keeps_the_promise.

    Raises:
        InputError: there is none above 0; the message says over how many requests there would be one.
    """
    limit = float(as_numbers("target", target, low=0.0, low_open=True))
    whole_number("window", window, low=2)
    if gain == 0:
        raise InputError("gain", gain, "guarantees nothing: a promise over every window needs one above 0")
    grid, free = np.asarray(thresholds, dtype=np.float64), _highest_step(gain, thresholds, ceiling)
    # Both cases of the peak rise with the aim, so the smaller solution keeps to both.
    steep = (limit - (free - grid[0]) / (gain * window)) / (1 - 1 / window)
    aim = float(min(steep, limit - (1 - grid[0]) / (gain * window)))
    if not aim > 0:
        needed = math.floor((max(free, 1.0) - grid[0]) / (gain * limit)) + 1
        raise InputError(
            "window",
            window,
            f"is too short to promise a mean error of {limit:g} to every sequence: it takes at least "
            f"{needed} (more is better), or a higher lowest threshold, or a lower ceiling",
        )
    return aim


def _highest_step(gain: float, thresholds: ArrayLike, ceiling: ArrayLike) -> float:
    """max θ + γ·c(θ) over θ below 1, with the ceiling of the next lower threshold."""
    grid = np.asarray(thresholds, dtype=np.float64)
    return float(np.max(grid[1:] + gain * np.asarray(ceiling, dtype=np.float64)[:-1]))
