"""False alarms and delay of the change detector."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ratedist.adaptive import ChangeDetector
from ratedist.errors import InputError


def first_alarm(detector: ChangeDetector, values: np.ndarray) -> int | None:
    return next((i for i, row in enumerate(values.tolist()) if detector.update(row)), None)


@pytest.mark.parametrize("law", ["normal", "ties"])
def test_false_alarms_stay_within_the_rate(law: str) -> None:
    """``ChangeDetector``: at most T·rate, for dependent statistics, ties, and through renewals of ranks."""
    runs, requests, rate = 150, 300, 1e-3
    alarms = 0
    for run in range(runs):
        rng = np.random.default_rng([1, run])
        values = rng.standard_normal((requests, 2))
        values[:, 1] += values[:, 0]
        if law == "ties":
            values = np.round(values)
        alarms += first_alarm(ChangeDetector(rate, statistics=2, capacity=120, seed=run), values) is not None
    allowed = requests * rate
    assert alarms / runs <= allowed + 3 * np.sqrt(allowed * (1 - allowed) / runs)
    # And not idle: the bound is within a few times of what happens.
    assert alarms / runs > allowed / 10


def test_mean_of_the_evidence_is_the_number_of_requests() -> None:
    evidence = []
    for run in range(600):
        detector = ChangeDetector(1e-9, seed=run)
        for value in np.random.default_rng([2, run]).standard_normal(12).tolist():
            detector.update([value])
        evidence.append(detector.evidence)
    assert abs(np.mean(evidence) - 12) < 4 * np.std(evidence) / np.sqrt(len(evidence))


@pytest.mark.parametrize(
    ("shift", "spread", "within"), [(2.0, 1.0, 25), (-2.0, 1.0, 25), (1.0, 1.0, 60), (0.0, 4.0, 40)]
)
def test_delay(shift: float, spread: float, within: int) -> None:
    """A shift of two standard deviations after 200 requests is seen within 25 more; the others as stated."""
    delays = []
    for run in range(20):
        rng = np.random.default_rng([3, run])
        values = rng.standard_normal((400, 1))
        values[200:] = shift + spread * values[200:]
        alarm = first_alarm(ChangeDetector(1e-4, seed=run), values)
        assert alarm is None or alarm >= 200, "a false alarm, which this seed does not raise"
        delays.append(400 if alarm is None else alarm - 200 + 1)
    assert np.median(delays) <= within
    assert max(delays) <= 2 * within


def test_restart_calibrates_anew() -> None:
    rng = np.random.default_rng(0)
    detector = ChangeDetector(1e-3)
    assert first_alarm(detector, rng.standard_normal((100, 1))) is None
    assert first_alarm(detector, 5 + rng.standard_normal((60, 1))) is not None
    detector.restart()
    assert (detector.calibration, detector.evidence) == (0, 0)
    assert first_alarm(detector, 5 + rng.standard_normal((100, 1))) is None
    assert detector.calibration == 100


def test_capacity_bounds_the_state() -> None:
    detector = ChangeDetector(1e-6, capacity=10)
    for value in range(25):
        detector.update([value % 3])
        assert detector.calibration <= 10
    assert len(detector.to_dict()["seen"][0]) == detector.calibration


def test_state_goes_on_where_it_stopped() -> None:
    values = np.round(np.random.default_rng(5).standard_normal((60, 2)), 1)
    detector = ChangeDetector(1e-6, statistics=2, capacity=40, seed=3)
    first_alarm(detector, values[:30])
    again = ChangeDetector.from_dict(json.loads(json.dumps(detector.to_dict())))
    for one in (detector, again):
        first_alarm(one, values[30:])
    assert again.to_dict() == detector.to_dict()
    state = detector.to_dict()
    for change, message in (
        ({"seen": [[1.0], []]}, r"seen = \[1, 0\]: must be as many values per statistic"),
        ({"sums": [[1.0]]}, r"sums = \(1, 1\): must have shape \(2, 2, 4\)"),
        ({"generator": {"bit_generator": "none"}}, r"generator = .*: is no state of a generator"),
    ):
        with pytest.raises(InputError, match=message):
            ChangeDetector.from_dict(state | change)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"rate = 1.0: must be below 1"):
        ChangeDetector(1.0)
    with pytest.raises(InputError, match=r"rate = 0.0: must be finite and lie in \(0, 1\]"):
        ChangeDetector(0.0)
    with pytest.raises(InputError, match=r"values = 1: must be 2, one per statistic"):
        ChangeDetector(0.1, statistics=2).update([1.0])
    with pytest.raises(InputError, match=r"values = nan: must be finite"):
        ChangeDetector(0.1).update([float("nan")])
