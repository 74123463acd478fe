"""The integral controller against adversaries."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ratedist.adaptive import IntegralController, Observation, aim_for, window_guarantee
from ratedist.errors import InputError


def seen(error: float | None) -> Observation:
    return Observation(np.ones(1), np.zeros(1), error)


def most_excess(errors: list[float], window: int) -> float:
    total = np.concatenate([[0.0], np.cumsum(errors)])
    return float((total[window:] - total[:-window]).max() / window)


ceilings = st.lists(st.floats(0.0, 4.0), min_size=2, max_size=5).map(lambda c: sorted(c, reverse=True))


@settings(max_examples=100)
@given(
    moves=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=30),
    ceiling=ceilings,
    aim=st.floats(0.01, 0.5),
    gain=st.floats(0.01, 3.0),
    low=st.floats(-1, 0.95),
    start=st.floats(0, 1),
    stretch=st.integers(1, 20),
)
def test_mean_error_of_every_window_of_every_sequence(
    moves: list[tuple[float, float]],
    ceiling: list[float],
    aim: float,
    gain: float,
    low: float,
    start: float,
    stretch: int,
) -> None:
    """``window_guarantee`` for errors that someone chooses who sees the threshold, also with one above θ."""
    thresholds = np.linspace(low, 1, len(ceiling))
    controller = IntegralController(aim, gain=gain, low=low, start=low + start * (1 - low))
    errors = []
    for share, above in np.repeat(moves, stretch, axis=0).tolist():
        threshold = min(1.0, controller.threshold + above)
        cell = int(np.searchsorted(thresholds, threshold, side="right")) - 1
        error = share * ceiling[cell] if threshold < 1 else 0.0
        errors.append(error)
        controller.update(seen(error))
        assert controller.threshold >= low
    for window in {1, 1 + len(errors) // 9, 1 + len(errors) // 3, len(errors)}:
        bound = window_guarantee(aim, gain=gain, window=window, thresholds=thresholds, ceiling=ceiling)
        assert most_excess(errors, window) <= bound + 1e-9


def test_the_guarantee_is_nearly_reached() -> None:
    """Who waits until the threshold is lowest and then does all harm that can be done."""
    controller = IntegralController(0.05, gain=0.5, low=0.5)
    errors = []
    for step in range(400):
        error = 0.0 if step < 100 or controller.threshold >= 1 else 1.0
        errors.append(error)
        controller.update(seen(error))
    bound = window_guarantee(0.05, gain=0.5, window=22, thresholds=[0.5, 1.0], ceiling=[1.0, 0.0])
    worst = most_excess(errors, 22)
    assert 0.05 + 0.9 * (bound - 0.05) < worst <= bound


def test_a_windows_mean_is_the_aim_and_what_the_threshold_moved() -> None:
    rng = np.random.default_rng(4)
    controller = IntegralController(0.1, gain=0.3, low=-1.0, start=0.5)
    before = controller.value
    errors = rng.exponential(0.1, 50)
    for error in errors:
        controller.update(seen(float(error)))
    assert errors.mean() == pytest.approx(0.1 + (controller.value - before) / (0.3 * 50))


@given(
    target=st.floats(0.01, 1.0),
    gain=st.floats(0.05, 3.0),
    window=st.integers(2, 2000),
    low=st.floats(-1, 0.9),
    ceiling=ceilings,
)
def test_aim_is_the_largest_that_keeps_the_promise(
    target: float, gain: float, window: int, low: float, ceiling: list[float]
) -> None:
    """``aim_for`` solves ``window_guarantee`` = target."""
    thresholds = np.linspace(low, 1, len(ceiling))
    case = {"gain": gain, "window": window, "thresholds": thresholds, "ceiling": ceiling}
    try:
        aim = aim_for(target, **case)  # type: ignore[arg-type]
    except InputError:
        assume(False)
    assert window_guarantee(aim, **case) == pytest.approx(target)  # type: ignore[arg-type]
    assert window_guarantee(aim * 1.01, **case) > target  # type: ignore[arg-type]


def test_a_window_that_is_too_short_says_how_long_it_must_be() -> None:
    case = {"gain": 0.5, "thresholds": [0.5, 1.0], "ceiling": [2.5, 0.0]}
    with pytest.raises(InputError, match=r"window = 50: is too short .* of 0.05 .* at least 71") as caught:
        aim_for(0.05, window=50, **case)
    assert caught.value.argument == "window"
    assert aim_for(0.05, window=71, **case) > 0
    with pytest.raises(InputError, match="too short"):
        aim_for(0.05, window=69, **case)
    with pytest.raises(InputError, match=r"gain = 0.0: guarantees nothing"):
        aim_for(0.05, gain=0.0, window=100, thresholds=[0.5, 1.0], ceiling=[1.0, 0.0])
    assert window_guarantee(0.05, gain=0.0, window=9, thresholds=[0.5, 1.0], ceiling=[1.0, 0.0]) == np.inf


def test_state_and_what_is_refused() -> None:
    controller = IntegralController(0.1, gain=0.5, low=0.25)
    controller.update(seen(2.0))
    assert (controller.value, controller.threshold) == (pytest.approx(1.95), 1.0)
    again = IntegralController.from_dict(json.loads(json.dumps(controller.to_dict())))
    assert again.to_dict() == controller.to_dict()
    for _ in range(100):
        controller.update(seen(0.0))
    assert controller.threshold == 0.25
    with pytest.raises(InputError, match=r"observation = None: has no realised error"):
        controller.update(seen(None))
    with pytest.raises(InputError, match=r"aim = 0.0: must be finite and above 0"):
        IntegralController(0.0)
    with pytest.raises(InputError, match=r"start = 0.2: must be finite and lie in \[0.5, 1\]"):
        IntegralController(0.1, start=0.2)
