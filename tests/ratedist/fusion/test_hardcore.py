"""ratedist/fusion/hardcore.py against points sampled in caps of the sphere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import HardCore
from ratedist.similarity import Spherical


def in_cap(dim: int, tau: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform points of the cap {x: x₁ > τ}."""
    law = Spherical(dim)
    first = law.isf(law.sf(tau) * rng.random(count))
    rest = rng.standard_normal((count, dim - 1))
    rest *= (np.sqrt(1 - first**2) / np.linalg.norm(rest, axis=1))[:, None]
    return np.column_stack([first, rest])


@pytest.mark.parametrize(("dim", "tau"), [(4, 0.8), (8, 0.7), (12, 0.6), (24, 0.35), (8, -0.2)])
def test_spherical_against_sampled_caps(dim: int, tau: float) -> None:
    rng = np.random.default_rng(dim)
    count = 150_000
    y1, y2, y3 = (in_cap(dim, tau, count, rng) for _ in range(3))
    near12, near13, near23 = (np.einsum("ij,ij->i", a, b) > tau for a, b in ((y1, y2), (y1, y3), (y2, y3)))
    transitivity = near12.mean()
    diamond = (near12 & near13).mean()
    clique = (near12 & near13 & near23).mean()
    # Share of a cap that y₁ and y₂ cover jointly: points of the pole's cap, reflected to that of y₁.
    pole = np.zeros(dim)
    pole[0] = 1.0
    mirror = y1 - pole
    mirror /= np.linalg.norm(mirror, axis=1, keepdims=True)
    w = in_cap(dim, tau, count, rng)
    w -= 2 * np.einsum("ij,ij->i", w, mirror)[:, None] * mirror
    far = ((np.einsum("ij,ij->i", w, y2) > tau) & ~near12).mean()

    core = HardCore.spherical(dim, [tau])
    assert core.transitivity[0] == pytest.approx(transitivity, rel=0.02)
    crowding = far + transitivity**2 - 1.5 * diamond + 0.5 * clique
    # Standard errors of the four shares are about 0.001.
    assert core.crowding[0] == pytest.approx(crowding, abs=0.006)
    assert core.common[0] == pytest.approx((far - diamond + clique) / (1 - transitivity), abs=0.008)


def test_circle_of_latitude() -> None:
    """On the sphere of R³ the mean overlap of two small caps is that of disks in the plane: 1 − 3√3/(4π)."""
    core = HardCore.spherical(3.1, [0.9999])
    assert core.transitivity[0] == pytest.approx(1 - 3 * np.sqrt(3) / (4 * np.pi), abs=0.02)


@given(st.floats(3.1, 300.0), st.floats(-0.5, 0.99))
def test_numbers_are_shares(dim: float, tau: float) -> None:
    core = HardCore.spherical(dim, [tau])
    assert 0 <= core.transitivity[0] <= 1
    assert 0 <= core.crowding[0] <= 1
    assert 0 <= core.common[0] <= 1


@pytest.mark.parametrize("dim", [4.0, 64.0])
def test_interpolation_between_thresholds(dim: float) -> None:
    tau = np.linspace(-0.3, 0.95, 200)
    core = HardCore.spherical(dim, tau)
    for index in (0, 17, 101, 199):
        alone = HardCore.spherical(dim, tau[[index]])
        for name in ("transitivity", "crowding", "common"):
            assert getattr(core, name)[index] == pytest.approx(getattr(alone, name)[0], rel=0.01, abs=1e-5)


def test_vanishes_in_high_dimension() -> None:
    core = HardCore.spherical(3072, np.linspace(0.3, 0.9, 40))
    assert core.transitivity.max() < 1e-6
    assert core.crowding.max() < 1e-6


def test_ends_of_the_range() -> None:
    core = HardCore.spherical(16, [-1.0, 1.0])
    for name in ("transitivity", "crowding", "common"):
        assert np.isfinite(getattr(core, name)).all()


def test_estimate_from_scores() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1200, 8))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    sampled = HardCore.from_scores(np.clip(x @ x.T, -1, 1), [0.5, 0.65])
    exact = HardCore.spherical(8, [0.5, 0.65])
    np.testing.assert_allclose(sampled.transitivity, exact.transitivity, rtol=0.05)
    np.testing.assert_allclose(sampled.crowding, exact.crowding, rtol=0.2)
    np.testing.assert_allclose(sampled.common, exact.common, rtol=0.2)


def test_estimate_of_independent_exceedances_is_small() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random((300, 300))
    scores = np.triu(scores, 1) + np.triu(scores, 1).T
    core = HardCore.from_scores(scores, [0.9])
    assert core.transitivity[0] == pytest.approx(0.1, abs=0.02)  # an edge is there with its own chance


def test_of_transitivity() -> None:
    core = HardCore.of_transitivity(0.2, 3)
    np.testing.assert_array_equal(core.transitivity, [0.2, 0.2, 0.2])
    assert not core.crowding.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HardCore.spherical(1.0, [0.5]), r"dim = 1.0: must be a finite number above 1"),
        (lambda: HardCore.spherical(8, [0.5, 0.5]), r"thresholds = 0.5: is given twice"),
        (lambda: HardCore.of_transitivity(1.5, 2), r"transitivity = 1.5"),
        (lambda: HardCore.of_transitivity([0.1, 0.2, 0.3], 2), r"must be one number or 2, one per threshold"),
        (lambda: HardCore.from_scores(np.zeros((3, 3)), [0.5]), r"scores = 'shape \(3, 3\)': .*at least 4"),
        (lambda: HardCore.from_scores(np.triu(np.ones((5, 5))), [0.5]), r"scores = 'not symmetric'"),
        (lambda: HardCore.from_scores(np.zeros((5, 5)), [0.5]), r"thresholds = 0.5: leaves no block"),
        (lambda: HardCore.from_scores(np.full((5, 5), np.nan), [0.5]), r"scores = nan"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
