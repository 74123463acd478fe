"""What a policy would have done on a stream of which every block is known: baselines beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import as_numbers, as_thresholds, whole_number
from ratedist.adaptive.observation import Observation, error_curve
from ratedist.errors import InputError

__all__ = ["FixedThreshold", "Policy", "Replay", "Request", "oracle_threshold", "replay"]

FloatArray = NDArray[np.float64]

Request = tuple[FloatArray, FloatArray]
"""(blocks,) best-match scores of all full blocks of a request, and (blocks,) the errors they would have."""


class Policy(Protocol):
    """Anything that chooses the threshold of the next request from what the last ones showed."""

    @property
    def threshold(self) -> float:
        """Threshold for the next request."""
        ...

    def update(self, observation: Observation) -> object:
        """Take in the request that was fused under it."""
        ...


@dataclass(frozen=True)
class FixedThreshold:
    """The baseline: a threshold that was calibrated once.

    Attributes:
        threshold: never changes.
    """

    threshold: float

    def update(self, observation: Observation) -> None:
        """Learn nothing."""


@dataclass(frozen=True)
class Replay:
    """Course of a stream under a policy.

    Attributes:
        thresholds: (requests,) in force for each.
        errors: (requests,) mean squared relative error over the blocks of each, kept ones 0.
        absorbed: (requests,) share of its blocks that were absorbed.
        alarms: indices of the requests after which a new calibration was said to be due.
    """

    thresholds: FloatArray
    errors: FloatArray
    absorbed: FloatArray
    alarms: tuple[int, ...]

    def window_errors(self, window: int) -> FloatArray:
        """(requests − window + 1,) mean error over every window of so many requests."""
        if not 1 <= window <= len(self.errors):
            raise InputError("window", window, f"must lie in 1 … {len(self.errors)}, the requests")
        total = np.concatenate([[0.0], np.cumsum(self.errors)])
        return (total[window:] - total[:-window]) / window


def replay(stream: Iterable[Request], policy: Policy, *, probes: int, rng: np.random.Generator) -> Replay:
    """Show a stream to a policy, request by request.

    The best matches do not depend on the threshold here, as they do in a real cache, where a lower one leaves
    fewer representatives.

    Args:
        stream: requests.
        policy: is changed.
        probes: blocks of a request that it sees, drawn without replacement; at most all.
        rng: source of the draws.

    Test: tests/ratedist/adaptive/test_replay.py::test_replay_by_hand.
    """
    probes = whole_number("probes", probes, low=1)
    thresholds, errors, absorbed, alarms = [], [], [], []
    for index, (scores, costs) in enumerate(stream):
        threshold = policy.threshold
        shared = scores > threshold
        error = float(np.where(shared, costs, 0.0).mean())
        seen = rng.permutation(len(scores))[:probes]
        decision = policy.update(Observation(scores[seen], costs[seen], error))
        thresholds.append(threshold)
        errors.append(error)
        absorbed.append(float(shared.mean()))
        if getattr(decision, "calibration_due", False):
            alarms.append(index)
    return Replay(np.array(thresholds), np.array(errors), np.array(absorbed), tuple(alarms))


def oracle_threshold(
    requests: Sequence[Request], target: float, thresholds: Sequence[float] | FloatArray
) -> float:
    """Lowest of the thresholds from which on the mean error of these requests is at most ``target``.

    What someone who knows the law would set, if the requests are many; a calibration, if they are a sample.

    Raises:
        InputError: no requests, or thresholds none of which keeps to the target.
    """
    grid = as_thresholds("thresholds", thresholds)
    limit = float(as_numbers("target", target, low=0.0))
    if not requests:
        raise InputError("requests", [], "needs at least one")
    mean = np.mean([error_curve(Observation(*request), grid) for request in requests], axis=0)
    above = np.flatnonzero(mean > limit)
    if len(above) and above[-1] == len(grid) - 1:
        raise InputError("thresholds", float(grid[-1]), f"has error {mean[-1]:.4g}; offer higher ones")
    return float(grid[above[-1] + 1]) if len(above) else float(grid[0])
