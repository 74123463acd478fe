"""Streams of scores and errors: shares, medians, dependence within a request, and the ramp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.sim.score_stream import ScoreWorkload, score_stream


def test_shares_medians_and_dependence() -> None:
    work = ScoreWorkload(
        exact=0.25, edited=0.75, edited_distance=0.1, spread=0.4, value_factor=1.0, ceiling=9.0
    )
    rng = np.random.default_rng(0)
    drawn = [work.request(40, rng) for _ in range(1500)]
    scores, errors = np.array([s for s, _ in drawn]), np.array([e for _, e in drawn])
    same = scores == 1
    assert (errors[same] == 0).all()
    assert abs(same.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / same.size)
    logs = np.where(same, np.nan, np.log1p(-np.where(same, 0.0, scores)))
    of_request = np.nanmean(logs, axis=1)
    assert abs(of_request.mean() - np.log(0.1)) < 4 * of_request.std() / np.sqrt(1500)
    assert np.nanstd(logs) == pytest.approx(0.4, rel=0.05)
    # Half of the variance is the request's, the rest averages out over its thirty blocks.
    assert of_request.std() == pytest.approx(0.4 * np.sqrt(0.5 + 0.5 / 30), rel=0.08)
    factor = (errors / (1 - np.where(same, 0.0, scores)))[~same] - 1
    assert np.median(factor) == pytest.approx(1.0, rel=0.03)


def test_bounds() -> None:
    work = ScoreWorkload(other_distance=0.9, spread=1.0, ceiling=0.5)
    scores, errors = work.request(2000, np.random.default_rng(1))
    assert scores.min() == 0
    assert errors.max() == 0.5


def test_phases_and_ramp() -> None:
    exact, none = ScoreWorkload(exact=1.0, edited=0.0), ScoreWorkload(exact=0.0, edited=0.0)

    def kinds(ramp: int) -> np.ndarray:
        stream = score_stream([(exact, 50), (none, 150)], 3, ramp=ramp, rng=np.random.default_rng(2))
        return np.array([float(scores.min() == 1) for scores, _ in stream])

    np.testing.assert_array_equal(kinds(0), [1] * 50 + [0] * 150)
    drifting = kinds(100)
    assert drifting[:50].all()
    assert 0.5 < drifting[50:100].mean() < 0.95
    assert 0.05 < drifting[100:150].mean() < 0.5
    assert not drifting[150:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edited": 0.9}, r"edited = 0.9: and exact are shares and must not exceed 1 together"),
        ({"spread": -1.0}, r"spread = -1.0: must be finite and not negative"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreWorkload(**change)
    with pytest.raises(InputError, match=r"phases = 0: needs at least one"):
        next(score_stream([], 3, rng=np.random.default_rng(0)))
