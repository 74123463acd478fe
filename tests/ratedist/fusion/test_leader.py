"""ratedist/fusion/leader.py: exact laws, real directions, limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import HardCore, batch_units, leader
from ratedist.montecarlo.directions import simulate_directions
from ratedist.similarity import Gaussian, Spherical

# (dim, requests, blocks, threshold), kept blocks and e² of simulated directions (docs/theory.md).
TARGETS = [
    ((64, 64, 32, 0.4), 1430.9, 1.1362, 0.005),
    ((24, 32, 24, 0.55), 449.6, 0.7965, 0.005),
    ((12, 32, 16, 0.6), 133.6, 0.6121, 0.01),
    ((8, 32, 16, 0.7), 114.7, 0.4078, 0.01),
]


@pytest.mark.parametrize(("setting", "kept", "error2", "tolerance"), TARGETS)
def test_published_simulations(
    setting: tuple[int, int, int, float], kept: float, error2: float, tolerance: float
) -> None:
    dim, requests, blocks, tau = setting
    result = leader(Spherical(dim), batch_units(requests, blocks), [tau])
    assert result.kept[0] == pytest.approx(kept, rel=tolerance)
    assert result.final_error2[0] == pytest.approx(error2, rel=0.005)


@pytest.mark.parametrize(
    ("dim", "units", "tau"),
    [(5, [9] * 20, 0.75), (10, [4, 17, 1, 8, 30, 2, 9, 9], 0.5), (30, [3] * 40, 0.3), (16, [1] * 120, 0.45)],
)
def test_agrees_with_directions(dim: int, units: list[int], tau: float) -> None:
    """Within 1 % or 4 standard errors of real vectors, the band over the runs of real vectors."""
    sample = simulate_directions(dim, units, tau, variant="leader", runs=250, rng=np.random.default_rng(dim))
    result = leader(Spherical(dim), units, [tau])
    kept, error2 = sample.mean_kept(), sample.mean_error2()
    assert result.kept[0] == pytest.approx(kept.mean, abs=4 * kept.standard_error + 0.01 * kept.mean)
    assert result.final_error2[0] == pytest.approx(error2.mean, abs=4 * error2.standard_error + 0.01)
    assert result.kept_std[0] == pytest.approx(sample.std_kept(), rel=0.25)
    assert 0.8 <= sample.coverage(result.kept_low[0], result.kept_high[0]) <= 0.98


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=9),
    st.sampled_from([0.002, 0.02, 0.1, 0.3, 0.6, 0.9]),
)
def test_moments_of_the_exact_law(
    exact_moments: dict[str, Callable], units: list[int], chance: float
) -> None:
    law = Spherical(16)
    result = leader(law, units, law.isf(chance), hard_core=False)
    mean, std = exact_moments["leader"](units, chance)
    assert result.kept[0] == pytest.approx(mean, rel=0.006)
    assert result.kept_std[0] == pytest.approx(std, rel=0.06, abs=0.03)


def test_two_units_by_hand() -> None:
    """Kept p₁ + p₂(1 − F̄)^p₁, and the best of p₁ scores, by quadrature."""
    law, tau = Spherical(9), 0.4
    result = leader(law, [3, 5], [tau], hard_core=False)
    void = (1 - law.sf(tau)) ** 3
    assert result.kept[0] == pytest.approx(3 + 5 * void)
    assert result.kept_std[0] == pytest.approx(np.sqrt(5 * void * (1 - void)))
    better, _ = scipy.integrate.quad(lambda s: 1 - (1 - law.sf(s)) ** 3, tau, 1)
    expected = (2 * (1 - tau) * (1 - void) - 2 * better) / (1 - void)
    assert result.direct_error2[0] == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 30), st.integers(1, 20), st.sampled_from([4.0, 12.0, 64.0]), st.booleans())
def test_bounds_and_monotony(requests: int, blocks: int, dim: float, hard_core: bool) -> None:
    """Kept blocks rise with the threshold, between the first unit and all blocks; e² stays below 2(1 − τ).

    With a hard core from τ = 0 on: where a block covers more than half of the sphere, geometry allows two or
    three kept blocks of one unit each, and the moments are coarse.
    """
    tau = np.linspace(-1, 1, 41)
    result = leader(Spherical(dim), batch_units(requests, blocks), tau, hard_core=hard_core)
    assert (result.kept >= blocks).all()
    assert (result.kept <= requests * blocks).all()
    rising = np.diff(result.kept) >= -1e-6 * result.kept[:-1]
    assert rising[tau[:-1] >= 0].all()
    assert hard_core or rising.all()
    assert (result.kept_low <= result.kept + 0.5).all()
    assert (result.kept_high >= result.kept - 0.5).all()
    absorbed = np.isfinite(result.final_error2)
    assert (result.final_error2[absorbed] <= 2 * (1 - tau[absorbed]) + 1e-9).all()
    assert (result.final_error2[absorbed] >= 0).all()


def test_limits() -> None:
    law = Spherical(8)
    ends = leader(law, batch_units(5, 7), [-1.0, 1.0])
    np.testing.assert_allclose(ends.kept, [7, 35], atol=1e-6)
    alone = leader(law, [12], [0.1, 0.5])
    np.testing.assert_array_equal(alone.kept, [12, 12])
    np.testing.assert_array_equal(alone.kept_std, [0, 0])
    assert np.isnan(alone.final_error2).all()
    one_block = leader(law, [1, 1], [0.2], hard_core=False)
    assert one_block.kept[0] == pytest.approx(2 - float(law.sf(0.2)))
    far_apart = leader(Spherical(1e6), batch_units(64, 32), [0.1])
    assert far_apart.kept[0] == pytest.approx(64 * 32)


def test_hard_core_vanishes_with_transitivity() -> None:
    law, units, tau = Spherical(10), batch_units(20, 9), np.linspace(0.2, 0.8, 7)
    plain = leader(law, units, tau, hard_core=False)
    none = leader(law, units, tau, hard_core=HardCore.of_transitivity(1e-12, 7))
    for name in ("kept", "kept_std", "final_error2"):
        np.testing.assert_allclose(getattr(none, name), getattr(plain, name), rtol=1e-6)


def test_hard_core_keeps_fewer() -> None:
    law, units, tau = Spherical(8), batch_units(32, 16), np.linspace(0.3, 0.9, 13)
    assert (leader(law, units, tau).kept <= leader(law, units, tau, hard_core=False).kept + 1e-9).all()


def test_law_without_dimension_has_no_hard_core() -> None:
    law, units = Gaussian(0.4, 0.1), batch_units(16, 8)
    np.testing.assert_array_equal(
        leader(law, units, [0.6]).kept, leader(law, units, [0.6], hard_core=False).kept
    )


def test_thresholds_do_not_meet() -> None:
    """A threshold gives the same alone and among others."""
    law, units, tau = Spherical(12), [5, 9, 9, 9, 2], np.linspace(0.1, 0.9, 40)
    together = leader(law, units, tau, hard_core=False)
    for index in (0, 13, 39):
        alone = leader(law, units, tau[[index]], hard_core=False)
        assert alone.kept[0] == pytest.approx(together.kept[index])
        assert alone.final_error2[0] == pytest.approx(together.final_error2[index], rel=1e-5)


def test_rare_matches_keep_their_digits() -> None:
    """Where exceedances are far below the resolution of 1 − ε, their number and similarity still come out."""
    law = Spherical(400)
    tau = 0.5
    result = leader(law, [10, 10], [tau], hard_core=False)
    count = 100 * float(law.sf(tau))
    assert count < 1e-20
    assert result.matches.expected_sum(np.ones_like)[0] == pytest.approx(count, rel=1e-9)
    expected = law.expect(lambda s: 2 - 2 * s, above=tau) / float(law.sf(tau))
    assert result.direct_error2[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda law: leader(law, [3, 3], [0.5, 0.4]), r"thresholds = \[0.5, 0.4\]: must be sorted"),
        (lambda law: leader(law, [3, 3], [0.4, 0.4]), r"thresholds = 0.4: is given twice"),
        (lambda law: leader(law, [3, 3], []), r"thresholds = 'shape \(0,\)'"),
        (lambda law: leader(law, [3, 3], [float("nan")]), r"thresholds = nan"),
        (lambda law: leader(law, [3, 3], [1.5]), r"thresholds = 1.5: .*\[-1, 1\]"),
        (lambda law: leader(law, [3, 0], [0.5]), r"units = 0: must be a whole number of at least 1"),
        (lambda law: leader(law, [], [0.5]), r"units = 'shape \(0,\)'"),
        (
            lambda law: leader(law, [3, 3], [0.5], hard_core=HardCore.none(2)),
            r"hard_core = '2 thresholds': must be made for the 1 thresholds",
        ),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(Spherical(8))
