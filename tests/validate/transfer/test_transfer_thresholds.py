"""Thresholds chosen for a goal: the choice by hand, and goals as text."""

from __future__ import annotations

import pytest

from ratedist.errors import InputError
from ratedist.validate.transfer.thresholds import GRID, CurveKey, Goal, parse_goal, pick


def curve(quantity: str, values: list[float]) -> dict[str, list[float]]:
    """Given values, then the last one for ever."""
    return {quantity: values + [values[-1]] * (len(GRID) - len(values))}


def test_pick_by_hand() -> None:
    # Not monotone: the limit is exceeded once more at place 2, and only from place 3 on it holds.
    errors = curve("k_error", [0.5, 0.2, 0.4, 0.3, 0.1, 0.0])
    assert pick(errors, Goal("k_error", 0.3)) == 3
    assert pick(errors, Goal("k_error", 0.39)) == 3
    assert pick(errors, Goal("k_error", 0.4)) == 1
    assert pick(errors, Goal("k_error", 0.05)) == 5
    assert pick(errors, Goal("k_error", 0.6)) is None  # any threshold would do
    assert pick(curve("v_error", [0.5, 0.4]), Goal("v_error", 0.3)) is None  # none does
    saved = curve("compression", [9.0, 4.0, 4.0, 2.0, 1.0])
    assert pick(saved, Goal("compression", 4)) == 2
    assert pick(saved, Goal("compression", 3.9)) == 2
    assert pick(saved, Goal("compression", 1.5)) == 3
    assert pick(saved, Goal("compression", 9.5)) is None
    assert pick(curve("compression", [2.0, 1.2]), Goal("compression", 1.1)) is None  # duplicates do


def test_goals_as_text() -> None:
    assert parse_goal("k_error=0.1") == Goal("k_error", 0.1)
    assert parse_goal("compression = 1.5") == Goal("compression", 1.5)
    for text in ("k_error", "k_error=much", "=", "0.1"):
        with pytest.raises(InputError, match=r"goal = .*: write a quantity and a number, as in k_error=0.1"):
            parse_goal(text)
    with pytest.raises(InputError, match="goal = 'kl': unknown; choose one of k_error, v_error, compression"):
        parse_goal("kl=0.1")
    with pytest.raises(InputError, match="goal = 'compression=1': must be above 1"):
        parse_goal("compression=1")
    with pytest.raises(InputError, match="goal = 'v_error=0': must be above 0"):
        parse_goal("v_error=0")
    with pytest.raises(InputError, match="goal = 'v_error=nan': must be above 0"):
        parse_goal("v_error=nan")


def test_curves_have_files_of_their_own() -> None:
    assert CurveKey("w", 3, 16, 8, 1).path == "w/layer-003/curve-8-16-seed-1.json"
