"""Adaptive thresholds on streams that change: the promise, the savings, the alarms, and the baselines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ratedist.adaptive import (
    AdaptiveThreshold,
    FixedThreshold,
    Observation,
    Replay,
    oracle_threshold,
    replay,
)
from ratedist.adaptive.replay import Request
from ratedist.errors import InputError
from ratedist.sim.score_stream import ScoreWorkload, score_stream

TARGET, WINDOW, BLOCKS, CEILING = 0.05, 200, 24, 2.5
GRID = np.linspace(0.5, 1, 101)

# Near-duplicates that fusing serves well; others, on which the same threshold does four times the harm; and
# traffic in which nothing matches, under which a threshold sinks to the lowest.
CLEAN = ScoreWorkload()
LOOSE = ScoreWorkload(exact=0.05, edited=0.6, edited_distance=0.12, other_distance=0.3, value_factor=4.0)
FOREIGN = ScoreWorkload(exact=0.02, edited=0.0, other_distance=0.75, spread=0.1)

STREAMS: dict[str, Callable[[np.random.Generator], Iterator[Request]]] = {
    "A-B-A": lambda rng: score_stream([(CLEAN, 400), (LOOSE, 400), (CLEAN, 400)], BLOCKS, rng=rng),
    "drift": lambda rng: score_stream([(CLEAN, 300), (LOOSE, 600)], BLOCKS, ramp=400, rng=rng),
    "to and fro": lambda rng: score_stream([(CLEAN, 50), (LOOSE, 50)] * 9, BLOCKS, rng=rng),
    "from nothing": lambda rng: score_stream([(FOREIGN, 400), (LOOSE, 400)], BLOCKS, rng=rng),
}


def run(stream: str, policy: AdaptiveThreshold | FixedThreshold, seed: int) -> Replay:
    rng = np.random.default_rng([seed, sorted(STREAMS).index(stream)])
    return replay(STREAMS[stream](rng), policy, probes=8, rng=rng)


def calibrated(workload: ScoreWorkload, target: float = TARGET) -> float:
    rng = np.random.default_rng(12)
    return oracle_threshold([workload.request(BLOCKS, rng) for _ in range(1500)], target, GRID)


@pytest.mark.parametrize("stream", sorted(STREAMS))
@pytest.mark.parametrize("driver", ["integral", "bound"])
def test_promise_is_kept_through_changes(stream: str, driver: str) -> None:
    """``AdaptiveThreshold`` keeps every window, without delay; a threshold calibrated before does not."""
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW, driver=driver)
    assert policy.guarantee(WINDOW) == pytest.approx(TARGET)
    course = run(stream, policy, 0)
    assert course.window_errors(WINDOW).max() <= TARGET
    fixed = run(stream, FixedThreshold(calibrated(CLEAN)), 0)
    assert fixed.window_errors(WINDOW).max() > 2 * TARGET


def test_integral_driver_saves_what_its_aim_allows_and_more_than_the_bound() -> None:
    """Beside an oracle that knows both laws and the moment of every change, at the same mean error."""
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW)
    course = run("A-B-A", policy, 1)
    bound = run("A-B-A", AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW, driver="bound"), 1)
    known = []
    for workload in (CLEAN, LOOSE, CLEAN):
        threshold = calibrated(workload, policy.aim)
        rng = np.random.default_rng(2)
        known.append(np.mean([(workload.request(BLOCKS, rng)[0] > threshold).mean() for _ in range(400)]))
    assert course.absorbed.mean() > 0.95 * np.mean(known)
    assert course.absorbed.mean() > 1.05 * bound.absorbed.mean()
    assert course.errors.mean() == pytest.approx(policy.aim, rel=0.05)


def test_aiming_at_the_target_keeps_the_long_run_mean() -> None:
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW, aim=TARGET, gain=0.2)
    course = run("to and fro", policy, 3)
    assert course.errors.mean() <= policy.guarantee(len(course.errors))
    assert course.errors.mean() == pytest.approx(TARGET, rel=0.05)
    assert course.window_errors(WINDOW).max() <= policy.guarantee(WINDOW)


def test_a_change_is_said_within_fifty_requests_and_forecasts_follow() -> None:
    late = []
    for seed in range(4):
        course = run("A-B-A", AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW), seed)
        for change in (400, 800):
            late.append(min((alarm - change for alarm in course.alarms if alarm >= change), default=9999))
    assert max(late) < 50


def test_stationary_traffic_raises_no_more_alarms_than_allowed() -> None:
    """Expected: 12 streams of 400 requests at 1e-4 raise at most 0.48 alarms in the mean."""
    alarms = 0
    for seed in range(12):
        rng = np.random.default_rng([4, seed])
        policy = AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW, seed=seed)
        course = replay(score_stream([(CLEAN, 400)], BLOCKS, rng=rng), policy, probes=8, rng=rng)
        alarms += len(course.alarms)
    assert alarms <= 0.48 + 3 * np.sqrt(0.48)


def test_forecast_of_the_threshold_in_force() -> None:
    rng = np.random.default_rng(8)
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW, memory=300)
    for scores, errors in score_stream([(CLEAN, 300)], BLOCKS, rng=rng):
        shared = np.where(scores > policy.threshold, errors, 0.0).mean()
        decision = policy.update(Observation(scores[:8], errors[:8], float(shared)))
    at = decision.threshold
    truth = [np.where(s > at, e, 0.0).mean() for s, e in (CLEAN.request(BLOCKS, rng) for _ in range(2000))]
    assert decision.estimate < np.mean(truth) * 1.3
    assert decision.estimate > np.mean(truth) * 0.8
    assert np.mean(truth) < decision.upper
    assert decision.effective > 100
    assert decision.allowed > calibrated(CLEAN)


def test_driver_bound_stops_at_a_change_and_probes_bring_it_back() -> None:
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING, window=WINDOW, driver="bound", hysteresis=0.02)
    rng = np.random.default_rng(9)
    moves, previous, stopped = [], policy.threshold, False
    for scores, errors in score_stream([(CLEAN, 300), (LOOSE, 300)], BLOCKS, rng=rng):
        shared = np.where(scores > policy.threshold, errors, 0.0).mean()
        decision = policy.update(Observation(scores[:8], errors[:8], float(shared)))
        stopped |= decision.calibration_due
        if decision.calibration_due:
            assert decision.threshold == 1
            assert decision.effective == 1
        moves.append(decision.threshold - previous)
        previous = decision.threshold
    assert stopped
    assert previous < 1
    falls = [-move for move in moves if move < 0]
    assert falls
    assert min(falls) >= 0.02 - 1e-9


def test_state_goes_on_where_it_stopped() -> None:
    """``AdaptiveThreshold.from_json`` of ``to_json``, in the middle of a stream."""
    requests = list(STREAMS["A-B-A"](np.random.default_rng(0)))[300:500]
    for driver in ("integral", "bound"):
        policy = AdaptiveThreshold(0.1, ceiling=CEILING, driver=driver, memory=1000, alarm_rate=1e-3)
        for step, (scores, errors) in enumerate(requests):
            if step == 90:
                assert policy.threshold < 1
                again = AdaptiveThreshold.from_json(policy.to_json())
                assert again.threshold == policy.threshold
            for one in (policy,) if step < 90 else (policy, again):
                shared = float(np.where(scores > one.threshold, errors, 0.0).mean())
                one.update(Observation(scores, errors, shared))
        assert json.loads(again.to_json()) == json.loads(policy.to_json())
        assert again.threshold == policy.threshold
    for text, message in (
        ("{", r"state = '{': is not JSON"),
        ("[]", r"state = None: must have schema 'ratedist/adaptive/1'"),
        ('{"schema": "ratedist/adaptive/2"}', r"state = 'ratedist/adaptive/2': must have schema"),
        ('{"schema": "ratedist/adaptive/1"}', r"state = .*is not a whole state"),
        (json.dumps(json.loads(policy.to_json()) | {"chosen": 2.0}), r"chosen = 2.0: must be finite and lie"),
    ):
        with pytest.raises(InputError, match=message):
            AdaptiveThreshold.from_json(text)


def test_requests_that_are_only_looked_at_inform_the_forecast_alone() -> None:
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING)
    rng = np.random.default_rng(1)
    for _ in range(30):
        decision = policy.update(Observation(*CLEAN.request(BLOCKS, rng)))
    assert policy.threshold == 1
    assert decision.effective > 25


def test_it_takes_hundreds_of_requests_a_second() -> None:
    rng = np.random.default_rng(1)
    seen = [Observation(*CLEAN.request(BLOCKS, rng), 0.03) for _ in range(300)]
    policy = AdaptiveThreshold(TARGET, ceiling=CEILING)
    start = time.process_time()
    for one in seen:
        policy.update(one)
    assert len(seen) / (time.process_time() - start) > 500


def test_what_is_refused() -> None:
    good = {"target": TARGET, "ceiling": CEILING}
    for change, message in (
        ({"target": 0}, r"target = 0.0: must be finite and above 0"),
        ({"ceiling": [1.0, 2.0]}, r"ceiling = 'shape \(2,\)': must be one number or 101"),
        ({"ceiling": [1.0, 2.0], "thresholds": [0.5, 1]}, r"ceiling = .*must never rise"),
        ({"thresholds": [0.5, 0.9]}, r"thresholds = \[0.5, 0.9\]: must be at least two and end at 1"),
        ({"thresholds": [1.0]}, r"thresholds = \[1.0\]: must be at least two"),
        ({"window": 40}, r"window = 40: is too short to promise a mean error of 0.05"),
        ({"window": 0}, r"window = 0: must be a whole number of at least"),
        ({"aim": 0.06}, r"aim = 0.06: must be at most the target, 0.05"),
        ({"gain": 0}, r"gain = 0.0: must be finite and above 0"),
        ({"driver": "hope"}, r"driver = 'hope': must be one of integral, bound"),
        ({"bound": "hope"}, r"bound = 'hope': must be one of student, bernstein"),
        ({"confidence": 1.0}, r"confidence = 1.0: must be below 1"),
        ({"hysteresis": -1}, r"hysteresis = -1.0: must be finite and at least 0"),
        ({"alarm_rate": 1}, r"rate = 1: must be below 1"),
    ):
        with pytest.raises(InputError, match=message):
            AdaptiveThreshold(**(good | change))  # type: ignore[arg-type]
    policy = AdaptiveThreshold(**good)  # type: ignore[arg-type]
    before = policy.to_json()
    for observation in (
        Observation(np.array([0.9]), np.array([0.1]), 2.6),
        Observation(np.array([0.9]), np.array([2.6])),
    ):
        with pytest.raises(
            InputError, match=r"observation = 2.6: is above the ceiling 2.5; give the largest"
        ):
            policy.update(observation)
    assert policy.to_json() == before
    # What no threshold would absorb may cost anything.
    policy.update(Observation(np.array([0.4]), np.array([9.0])))
