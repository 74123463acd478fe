"""The threshold in force: steered by the errors that occur, forecast from probes, and watched for changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, as_thresholds, whole_number
from ratedist.adaptive.bounds import BOUNDS
from ratedist.adaptive.detector import ChangeDetector
from ratedist.adaptive.forgetting import ForgettingCurve
from ratedist.adaptive.integral import IntegralController, aim_for, window_guarantee
from ratedist.adaptive.observation import Observation, error_curve
from ratedist.errors import InputError
from ratedist.records import earlier_name

__all__ = ["DRIVERS", "STATE_SCHEMA", "AdaptiveThreshold", "Decision"]

FloatArray = NDArray[np.float64]

STATE_SCHEMA = "ratedist/adaptive/1"

DRIVERS = ("integral", "bound")
"""What sets the threshold: the errors that occurred, or the bound of those that are forecast."""

# What the detector watches of a request: mean best-match score and mean error of its probes.
_STATISTICS = 2


@dataclass(frozen=True)
class Decision:
    """What one request changed.

    Attributes:
        threshold: for the next request.
        allowed: lowest threshold whose forecast keeps the promise with confidence.
        estimate: mean squared relative error forecast at ``threshold``.
        upper: its upper bound; infinite before three requests, 0 at threshold 1.
        effective: effective number of requests behind the forecast.
        evidence: of a change; the alarm is at 1/alarm_rate.
        calibration_due: whether the traffic is no longer what it was. What was estimated on it was then
            dropped, and the calibration starts anew from this request on.
    """

    threshold: float
    allowed: float
    estimate: float
    upper: float
    effective: float
    evidence: float
    calibration_due: bool


class AdaptiveThreshold:
    """Follows traffic request by request, keeps a promised mean error, and says when to calibrate anew.

    The promise: over every ``window`` requests, the mean over requests of the mean over their full blocks of
    e² (kept blocks count 0) is at most ``target``. Three parts, each with a claim of its own:

    - an ``IntegralController`` steers by the errors that occur. By default it aims as far below the target as
      makes the promise hold for **every** sequence of requests, whatever changes and when;
    - a ``ForgettingCurve`` of the probes forecasts the error at every threshold, with an upper bound. With
      ``driver="bound"`` the lowest threshold that the bound allows is in force, the controller standing
      guard: steadier, holding by a statistical forecast instead of by feedback, and it saves less;
    - a ``ChangeDetector`` watches mean score and mean error of the probes and says when the traffic is not
      what it was, so that what was planned, predicted or calibrated on it is due again. Forecasts then start
      anew. The driver "integral" goes on as it was; "bound" goes to threshold 1, where fusing harms nothing,
      until probes have shown the new traffic: a false alarm costs it that saving.

    Why the integral controller is the default, and what was measured: docs/adaptive.md.
    Test: tests/ratedist/adaptive/test_controller.py::test_promise_is_kept_through_changes.
    """

    def __init__(
        self,
        target: float,
        *,
        ceiling: ArrayLike,
        thresholds: ArrayLike | None = None,
        window: int = 200,
        aim: float | None = None,
        gain: float = 0.5,
        driver: str = "integral",
        confidence: float = 0.95,
        memory: float = 500.0,
        hysteresis: float = 0.01,
        alarm_rate: float = 1e-4,
        bound: str = "student",
        seed: int = 0,
    ) -> None:
        """Start at threshold 1, with nothing seen.

        Args:
            target: D, promised mean squared relative error, above 0.
            ceiling: largest error a request can have, one number or one per threshold, never rising: see
                ``error_ceiling``.
            thresholds: those that are forecast, sorted, the last 1; by default 0.5 to 1 by 0.005. The first
                is the lowest that is ever in force.
            window: W, requests over which the promise is kept.
            aim: mean error that is steered to, at most ``target``; by default the largest for which every
                sequence keeps the promise. At ``target`` itself more is saved, the long-run mean keeps the
                promise, and a window exceeds it by up to ``guarantee(window) − target``.
            gain: γ of the integral controller, above 0.
            driver: one of ``DRIVERS``.
            confidence: of the forecast's bound, within (0, 1).
            memory: effective number of requests that the forecast remembers.
            hysteresis: least step by which driver "bound" lowers the threshold.
            alarm_rate: false alarms per request, within (0, 1).
            bound: one of ``BOUNDS``.
            seed: of the detector's ties.

        Raises:
            InputError: an argument outside what is listed, or a window too short for the promise.
        """
        grid = np.linspace(0.5, 1.0, 101) if thresholds is None else as_thresholds("thresholds", thresholds)
        if grid[-1] != 1 or len(grid) < 2:
            raise InputError(
                "thresholds", grid.tolist(), "must be at least two and end at 1, where fusing is harmless"
            )
        for name, value, known in (("driver", driver, DRIVERS), ("bound", bound, tuple(BOUNDS))):
            if value not in known:
                raise InputError(name, value, f"must be one of {', '.join(known)}")
        self.target = float(as_numbers("target", target, low=0.0, low_open=True))
        self.window = whole_number("window", window, low=1)
        self.confidence = float(as_numbers("confidence", confidence, low=0.0, high=1.0, low_open=True))
        if self.confidence == 1:
            raise InputError("confidence", confidence, "must be below 1")
        self.hysteresis = float(as_numbers("hysteresis", hysteresis, low=0.0))
        gain = float(as_numbers("gain", gain, low=0.0, low_open=True))
        self.driver = driver
        self.bound = bound
        limits = as_numbers("ceiling", ceiling, low=0.0)
        if limits.ndim and limits.shape != grid.shape:
            raise InputError("ceiling", f"shape {limits.shape}", f"must be one number or {len(grid)}")
        self.ceiling: FloatArray = np.array(np.broadcast_to(limits, grid.shape))
        if (np.diff(self.ceiling) > 0).any():
            raise InputError("ceiling", "a larger one at a higher threshold", "must never rise")
        if aim is None:
            aim = aim_for(self.target, gain=gain, window=self.window, thresholds=grid, ceiling=self.ceiling)
        elif aim > self.target:
            raise InputError("aim", aim, f"must be at most the target, {self.target:g}")
        self._curve = ForgettingCurve(grid, memory)
        self._integral = IntegralController(
            aim, gain=gain, low=float(grid[0]), start=1.0 if driver == "integral" else float(grid[0])
        )
        self._detector = ChangeDetector(alarm_rate, statistics=_STATISTICS, seed=seed)
        self._chosen = 1.0

    @property
    def aim(self) -> float:
        """Mean error that is steered to."""
        return self._integral.aim

    @property
    def threshold(self) -> float:
        """Threshold for the next request."""
        steered = self._integral.threshold
        return max(self._chosen, steered) if self.driver == "bound" else steered

    @property
    def thresholds(self) -> FloatArray:
        """(thresholds,) those that are chosen from."""
        return self._curve.thresholds

    def guarantee(self, window: int) -> float:
        """Bound of the mean error over every window of so many requests, whatever comes."""
        return window_guarantee(
            self.aim,
            gain=self._integral.gain,
            window=window,
            thresholds=self.thresholds,
            ceiling=self.ceiling,
        )

    def update(self, observation: Observation) -> Decision:
        """Take in a request that was fused under the threshold in force, or that was only looked at.

        Raises:
            InputError: an error above the ceiling, under which no bound would hold. Nothing was changed.
        """
        limit = float(self.ceiling.max()) * (1 + 1e-3)
        curve = error_curve(observation, self.thresholds)
        worst = max(observation.realised or 0.0, float(curve[0]))
        if worst > limit:
            raise InputError(
                "observation",
                worst,
                f"is above the ceiling {self.ceiling.max():.6g}; give the largest error of this scale rule",
            )
        due = self._detector.update([float(observation.scores.mean()), float(observation.errors.mean())])
        evidence = self._detector.evidence
        if due:
            self.recalibrate()
        self._curve.update(curve)
        if observation.realised is not None:
            self._integral.update(observation)

        upper = self._upper()
        above = np.flatnonzero(upper > self.target)
        lowest = int(above[-1]) + 1 if len(above) else 0
        allowed = float(self.thresholds[lowest])
        if allowed > self._chosen or allowed <= self._chosen - self.hysteresis:
            self._chosen = allowed
        # The error is a step function of the threshold: between two of the grid the lower one bounds it.
        at = int(np.searchsorted(self.thresholds, self.threshold, side="right")) - 1
        return Decision(
            threshold=self.threshold,
            allowed=allowed,
            estimate=float(self._curve.mean[at]),
            upper=float(upper[at]),
            effective=self._curve.effective,
            evidence=evidence,
            calibration_due=due,
        )

    def recalibrate(self) -> None:
        """Drop what was estimated; what comes from now on is the calibration. The integral remembers."""
        self._curve.reset()
        self._detector.restart()
        self._chosen = 1.0

    def _upper(self) -> FloatArray:
        upper = BOUNDS[self.bound](self._curve, self.ceiling, window=self.window, confidence=self.confidence)
        # Nothing but byte-equal blocks shares at threshold 1.
        upper[-1] = 0.0
        return upper

    def to_json(self) -> str:
        """The whole state as JSON; a controller made of it goes on as this one would."""
        return json.dumps(
            {
                "schema": STATE_SCHEMA,
                "target": self.target,
                "ceiling": self.ceiling.tolist(),
                "window": self.window,
                "confidence": self.confidence,
                "hysteresis": self.hysteresis,
                "driver": self.driver,
                "bound": self.bound,
                "chosen": self._chosen,
                "curve": self._curve.to_dict(),
                "integral": self._integral.to_dict(),
                "detector": self._detector.to_dict(),
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Test: tests/ratedist/adaptive/test_controller.py::test_state_goes_on_where_it_stopped.

        Raises:
            InputError: not JSON, of another schema, or with a part that is missing or outside its domain.
        """
        try:
            data: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError("state", text[:40], f"is not JSON: {error}") from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != STATE_SCHEMA:
            raise InputError("state", schema, f"must have schema {STATE_SCHEMA!r}{earlier_name(schema)}")
        try:
            curve = ForgettingCurve.from_dict(data["curve"])
            integral = IntegralController.from_dict(data["integral"])
            detector = ChangeDetector.from_dict(data["detector"])
            controller = cls(
                data["target"],
                ceiling=data["ceiling"],
                thresholds=curve.thresholds,
                window=data["window"],
                confidence=data["confidence"],
                memory=curve.memory,
                hysteresis=data["hysteresis"],
                aim=integral.aim,
                gain=integral.gain,
                driver=data["driver"],
                alarm_rate=detector.rate,
                bound=data["bound"],
            )
            chosen = float(as_numbers("chosen", data["chosen"], low=curve.thresholds[0], high=1.0))
        except (KeyError, TypeError) as error:
            raise InputError("state", repr(error), "is not a whole state of an AdaptiveThreshold") from None
        controller._curve, controller._integral, controller._detector = curve, integral, detector
        controller._chosen = chosen
        return controller
