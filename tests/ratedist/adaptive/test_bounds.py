"""Coverage of the bounds of the mean error of the next requests."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.adaptive import BOUNDS, ForgettingCurve, bernstein_upper, student_upper

REPLICATES = 3000


def law(name: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Errors of requests within [0, 1]."""
    if name == "smooth":
        return rng.beta(2, 20, size)
    if name == "skewed":
        return np.minimum(0.02 * rng.lognormal(0, 1, size), 1.0)
    # Hardly ever, but then badly.
    return np.where(rng.random(size) < 0.004, rng.uniform(0.5, 1, size), 0.0)


@pytest.mark.parametrize("bound", sorted(BOUNDS))
@pytest.mark.parametrize("name", ["smooth", "skewed", "rare"])
@pytest.mark.parametrize(("count", "memory"), [(60, 1000.0), (400, 60.0)])
def test_coverage(bound: str, name: str, count: int, memory: float) -> None:
    """``student_upper``, ``bernstein_upper`` hold as often as they say at least (columns are replicates)."""
    rng = np.random.default_rng(7)
    curve = ForgettingCurve(np.linspace(-1, 1, REPLICATES), memory)
    for row in law(name, (count, REPLICATES), rng):
        curve.update(row)
    ahead = law(name, (50, REPLICATES), rng).mean(axis=0)
    upper = BOUNDS[bound](curve, np.ones(REPLICATES), window=50, confidence=0.9)
    missed = float((ahead > upper).mean())
    assert missed <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / REPLICATES)


def test_student_is_exact_for_normal_errors() -> None:
    rng = np.random.default_rng(1)
    curve = ForgettingCurve(np.linspace(-1, 1, REPLICATES), 1e9)
    for row in rng.normal(0.5, 0.1, (10, REPLICATES)):
        curve.update(row)
    ahead = rng.normal(0.5, 0.1, (20, REPLICATES)).mean(axis=0)
    # As bad as can be is here the mean itself, so that the further request does not count.
    upper = student_upper(curve, curve.mean, window=20, confidence=0.9)
    missed = float((ahead > upper).mean())
    assert abs(missed - 0.1) < 4 * np.sqrt(0.1 * 0.9 / REPLICATES)


def test_expected_error_of_the_next_request_keeps_the_promise() -> None:
    """``student_upper`` without its margin (Student's median is 0) is conformal risk control."""
    rng = np.random.default_rng(2)
    grid = np.linspace(0, 1, 51)
    chosen_errors = []
    for _ in range(3000):
        curve = ForgettingCurve(grid, 1e9)
        scores = rng.beta(1, 3, 31)
        for score in scores[:-1]:
            curve.update((score > grid).astype(float))
        worst = student_upper(curve, np.ones(51), window=1, confidence=0.5)
        worst[-1] = 0.0
        tau = grid[int(np.flatnonzero(worst > 0.1)[-1]) + 1]
        chosen_errors.append(float(scores[-1] > tau))
    mean, se = np.mean(chosen_errors), np.std(chosen_errors) / np.sqrt(3000)
    assert mean <= 0.1 + 3 * se
    assert mean > 0.03


def test_nothing_is_bounded_by_two_requests() -> None:
    curve = ForgettingCurve([0.5, 1.0], 100.0)
    for _ in range(2):
        for bound in (student_upper, bernstein_upper):
            assert np.isinf(bound(curve, np.ones(2), window=10, confidence=0.9)).all()
        curve.update(np.zeros(2))


def test_bernstein_by_hand() -> None:
    """``bernstein_upper`` on 0, ½, 1, which have mean ½ and variance ¼; ln(4/0.04) = ln 100."""
    curve = ForgettingCurve([0.5, 1.0], 1e12)
    for error in (0.0, 0.5, 1.0):
        curve.update(np.full(2, error))
    nats = np.log(100.0)
    past = 0.5 + np.sqrt(2 * 0.25 * nats / 3) + 7 * 2.0 * nats / 6
    ahead = np.sqrt(2 * 0.25 * nats / 8) + 2.0 * nats / 24
    upper = bernstein_upper(curve, np.array([2.0, 0.0]), window=8, confidence=0.96)
    assert upper[0] == pytest.approx(past + ahead, rel=1e-4)
    assert upper[1] == pytest.approx(0.5 + np.sqrt(nats / 6) + np.sqrt(nats / 16), rel=1e-4)
