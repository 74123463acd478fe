"""Thresholds that follow the traffic: steered, forecast, and watched for changes (docs/adaptive.md)."""

from ratedist.adaptive.bounds import BOUNDS, bernstein_upper, student_upper
from ratedist.adaptive.ceiling import error_ceiling
from ratedist.adaptive.controller import DRIVERS, STATE_SCHEMA, AdaptiveThreshold, Decision
from ratedist.adaptive.detector import ChangeDetector
from ratedist.adaptive.forgetting import ForgettingCurve
from ratedist.adaptive.integral import IntegralController, aim_for, window_guarantee
from ratedist.adaptive.observation import Observation, error_curve
from ratedist.adaptive.replay import FixedThreshold, Policy, Replay, oracle_threshold, replay

__all__ = [
    "BOUNDS",
    "DRIVERS",
    "STATE_SCHEMA",
    "AdaptiveThreshold",
    "ChangeDetector",
    "Decision",
    "FixedThreshold",
    "ForgettingCurve",
    "IntegralController",
    "Observation",
    "Policy",
    "Replay",
    "aim_for",
    "bernstein_upper",
    "error_ceiling",
    "error_curve",
    "oracle_threshold",
    "replay",
    "student_upper",
    "window_guarantee",
]
