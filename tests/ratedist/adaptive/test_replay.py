"""Replaying a stream under a policy, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.adaptive import FixedThreshold, Observation, oracle_threshold, replay
from ratedist.errors import InputError

STREAM = [
    (np.array([0.9, 0.5, 1.0, 0.7]), np.array([0.2, 1.0, 0.0, 0.6])),
    (np.array([0.6, 0.8]), np.array([0.8, 0.4])),
]


class Recorder:
    """Lowers its threshold by 0.2 after every request."""

    def __init__(self) -> None:
        self.threshold = 0.85
        self.seen: list[Observation] = []

    def update(self, observation: Observation) -> None:
        self.threshold -= 0.2
        self.seen.append(observation)


def test_replay_by_hand() -> None:
    """``replay``: errors of all blocks under the threshold that was in force, probes among them."""
    policy = Recorder()
    course = replay(STREAM, policy, probes=3, rng=np.random.default_rng(0))
    np.testing.assert_allclose(course.thresholds, [0.85, 0.65])
    np.testing.assert_allclose(course.errors, [0.2 / 4, 0.4 / 2])
    np.testing.assert_allclose(course.absorbed, [2 / 4, 1 / 2])
    assert course.alarms == ()
    assert [len(one.scores) for one in policy.seen] == [3, 2]
    assert [one.realised for one in policy.seen] == pytest.approx([0.05, 0.2])
    for one, (scores, errors) in zip(policy.seen, STREAM, strict=True):
        pairs = dict(zip(scores.tolist(), errors.tolist(), strict=True))
        assert len(set(one.scores.tolist())) == len(one.scores)
        assert all(pairs[s] == e for s, e in zip(one.scores.tolist(), one.errors.tolist(), strict=True))
    np.testing.assert_allclose(course.window_errors(1), course.errors)
    np.testing.assert_allclose(course.window_errors(2), [0.125])
    with pytest.raises(InputError, match=r"window = 3: must lie in 1 … 2, the requests"):
        course.window_errors(3)


def test_fixed_threshold_and_oracle() -> None:
    grid = [0.55, 0.65, 0.75, 0.85, 0.95]
    # Mean errors at the thresholds: 0.4, 0.2, 0.125, 0.025, 0.
    for target, expected in ((0.4, 0.55), (0.39, 0.65), (0.2, 0.65), (0.1, 0.85), (0.0, 0.95)):
        assert oracle_threshold(STREAM, target, grid) == expected
    policy = FixedThreshold(0.65)
    course = replay(STREAM, policy, probes=1, rng=np.random.default_rng(0))
    assert course.errors.mean() == pytest.approx(0.2)
    assert policy.threshold == 0.65
    with pytest.raises(InputError, match=r"thresholds = 0.85: has error 0.025; offer higher ones"):
        oracle_threshold(STREAM, 0.0, grid[:-1])
    with pytest.raises(InputError, match=r"requests = \[\]: needs at least one"):
        oracle_threshold([], 0.1, grid)
