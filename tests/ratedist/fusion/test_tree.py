"""ratedist/fusion/tree.py: exact laws, real directions, limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import HardCore, batch_units, leader, tree
from ratedist.fusion.tree import _binomial_of_void
from ratedist.montecarlo.directions import simulate_directions
from ratedist.similarity import Gaussian, Spherical

# (dim, requests, blocks, threshold); kept, direct and final e² of simulated directions (docs/theory.md).
TARGETS = [
    ((64, 64, 32, 0.4), 1383.3, 1.1392, 1.205, 0.005),
    ((24, 32, 24, 0.55), 423.3, 0.8033, 0.9018, 0.005),
    ((12, 32, 16, 0.6), 110.2, 0.6369, 0.8853, 0.01),
    ((8, 32, 16, 0.7), 94.4, 0.4338, 0.6539, 0.01),
]


@pytest.mark.parametrize(("setting", "kept", "direct", "final", "tolerance"), TARGETS)
def test_published_simulations(
    setting: tuple[int, int, int, float], kept: float, direct: float, final: float, tolerance: float
) -> None:
    dim, requests, blocks, tau = setting
    result = tree(Spherical(dim), batch_units(requests, blocks), [tau])
    assert result.kept[0] == pytest.approx(kept, rel=tolerance)
    assert result.direct_error2[0] == pytest.approx(direct, rel=0.005)
    assert result.final_error2[0] == pytest.approx(final, rel=0.01)


@pytest.mark.parametrize(
    ("dim", "units", "tau"),
    [(5, [9] * 21, 0.75), (10, [4, 17, 1, 8, 30, 2, 9], 0.5), (30, [3] * 40, 0.3), (16, [1] * 120, 0.45)],
)
def test_agrees_with_directions(dim: int, units: list[int], tau: float) -> None:
    """Within 1 % or 4 standard errors of real vectors, the band over the runs of real vectors."""
    sample = simulate_directions(dim, units, tau, variant="tree", runs=250, rng=np.random.default_rng(dim))
    result = tree(Spherical(dim), units, [tau])
    kept = sample.mean_kept()
    assert result.kept[0] == pytest.approx(kept.mean, abs=4 * kept.standard_error + 0.01 * kept.mean)
    for which in ("direct", "final"):
        error2 = sample.mean_error2(which)
        predicted = float(getattr(result, f"{which}_error2")[0])
        assert predicted == pytest.approx(error2.mean, abs=4 * error2.standard_error + 0.01 * error2.mean)
    assert result.kept_std[0] == pytest.approx(sample.std_kept(), rel=0.25)
    assert 0.8 <= sample.coverage(result.kept_low[0], result.kept_high[0]) <= 0.98


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.sampled_from([0.002, 0.02, 0.1, 0.3, 0.6, 0.9]),
)
def test_moments_of_the_exact_law(
    exact_moments: dict[str, Callable], units: list[int], chance: float
) -> None:
    law = Spherical(16)
    result = tree(law, units, law.isf(chance), hard_core=False)
    mean, std = exact_moments["tree"](units, chance)
    assert result.kept[0] == pytest.approx(mean, rel=0.006)
    assert result.kept_std[0] == pytest.approx(std, rel=0.06, abs=0.03)


@given(st.integers(1, 30), st.integers(1, 20), st.sampled_from([4.0, 12.0, 64.0]), st.booleans())
def test_bounds_and_monotony(requests: int, blocks: int, dim: float, hard_core: bool) -> None:
    tau = np.linspace(-1, 1, 41)
    result = tree(Spherical(dim), batch_units(requests, blocks), tau, hard_core=hard_core)
    assert (result.kept >= blocks).all()
    assert (result.kept <= requests * blocks).all()
    assert (np.diff(result.kept) >= -1e-6 * result.kept[:-1]).all()
    some = np.isfinite(result.direct_error2)
    assert (result.direct_error2[some] <= 2 * (1 - tau[some]) + 1e-9).all()


def test_members_drift_from_their_representative() -> None:
    """The final error is never below the direct one at positive similarities, and equal at one level."""
    law, tau = Spherical(16), np.linspace(0.1, 0.8, 8)
    result = tree(law, batch_units(32, 8), tau)
    assert (result.final_error2 >= result.direct_error2).all()
    pair = tree(law, batch_units(2, 8), tau)
    np.testing.assert_allclose(pair.final_error2, pair.direct_error2)
    np.testing.assert_allclose(pair.final_similarity2, pair.direct_similarity2)


def test_two_units_are_the_leader() -> None:
    law, tau = Spherical(16), np.linspace(0.0, 0.8, 9)
    for name in ("kept", "kept_std", "direct_error2"):
        np.testing.assert_allclose(
            getattr(tree(law, [7, 11], tau), name), getattr(leader(law, [7, 11], tau), name), rtol=1e-9
        )


def test_three_levels_of_similarity_multiply() -> None:
    """Second moment of the final similarity against sampled vectors that form a chain of matches."""
    dim, tau = 12, 0.55
    sample = simulate_directions(dim, [4] * 32, tau, variant="tree", runs=300, rng=np.random.default_rng(1))
    result = tree(Spherical(dim), [4] * 32, [tau])
    final = sample.mean_error2("final")
    assert result.final_error2[0] == pytest.approx(final.mean, abs=4 * final.standard_error)
    assert result.final_similarity2[0] >= result.final_similarity[0] ** 2


def test_unrelated_members_stay_unrelated() -> None:
    """At τ = −1 everything is absorbed by whatever is there, so final scores are those of random pairs."""
    result = tree(Spherical(9), [1] * 8, [-1.0], hard_core=False)
    assert result.kept[0] == pytest.approx(1)
    assert result.final_similarity[0] == pytest.approx(0, abs=1e-6)
    assert result.final_similarity2[0] == pytest.approx(1 / 9, rel=1e-3)
    assert result.error2("projection")[0] == pytest.approx(8 / 9, rel=1e-3)


def test_common_direction_is_the_baseline() -> None:
    """Around a common direction similarity falls towards the mean along the path, not towards 0."""
    law, units = Gaussian(0.5, 0.1), batch_units(64, 16)
    towards_mean, towards_zero = tree(law, units, [0.7]), tree(law, units, [0.7], baseline=0.0)
    assert towards_zero.kept[0] == towards_mean.kept[0]
    assert towards_zero.final_error2[0] > towards_mean.final_error2[0] > towards_mean.direct_error2[0]


def test_odd_unit_passes_up_unchanged() -> None:
    """Three units: the third meets what the first two kept."""
    law, tau = Spherical(9), 0.4
    chance = float(law.sf(tau))
    result = tree(law, [1, 1, 1], [tau], hard_core=False)
    both = 2 - chance
    last = chance * (1 - chance) + (1 - chance) * (1 - chance) ** 2
    assert result.kept[0] == pytest.approx(both + last, rel=1e-3)


def test_limits() -> None:
    law = Spherical(8)
    ends = tree(law, batch_units(5, 7), [-1.0, 1.0])
    np.testing.assert_allclose(ends.kept, [7, 35], atol=1e-6)
    alone = tree(law, [12], [0.1, 0.5])
    np.testing.assert_array_equal(alone.kept, [12, 12])
    assert np.isnan(alone.final_error2).all()
    far_apart = tree(Spherical(1e6), batch_units(64, 32), [0.1])
    assert far_apart.kept[0] == pytest.approx(64 * 32)


def test_hard_core_vanishes_with_transitivity() -> None:
    law, units, tau = Spherical(10), [9, 4, 7, 7, 1, 12, 3], np.linspace(0.2, 0.8, 7)
    plain = tree(law, units, tau, hard_core=False)
    none = tree(law, units, tau, hard_core=HardCore.of_transitivity(1e-12, 7))
    for name in ("kept", "kept_std", "direct_error2", "final_error2"):
        np.testing.assert_allclose(getattr(none, name), getattr(plain, name), rtol=1e-6)


@given(st.floats(0.01, 50.0), st.floats(-4.0, 0.999))
def test_binomial_of_void_inverts(mean: float, success: float) -> None:
    if abs(success) < 1e-9:
        return
    logarithm = -mean * np.log1p(-success) / success
    found = _binomial_of_void(np.array([mean]), np.array([logarithm]))
    assert found[0] == pytest.approx(success, rel=1e-6, abs=1e-6)


def test_large_tree_is_quick_enough_to_sweep() -> None:
    """Not timed: the size that the benchmark times, for its bounds."""
    result = tree(Spherical(64), batch_units(65_536, 512), np.linspace(0, 0.9, 50))
    assert (result.kept >= 512).all()
    assert (np.diff(result.kept) >= 0).all()
    assert (result.kept_high >= result.kept_low).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda law: tree(law, [3, 3], [0.5, 0.4]), r"thresholds = \[0.5, 0.4\]: must be sorted"),
        (lambda law: tree(law, [3, 3], [0.4, 0.4]), r"thresholds = 0.4: is given twice"),
        (lambda law: tree(law, [3, 3], [float("nan")]), r"thresholds = nan"),
        (lambda law: tree(law, [3, 0], [0.5]), r"units = 0: must be a whole number of at least 1"),
        (lambda law: tree(law, [3, 3], [0.5], baseline=1.0), r"baseline = 1.0: must be within \[-1, 1\)"),
        (lambda law: tree(law, [3, 3], [0.5], baseline=float("nan")), r"baseline = nan"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(Spherical(8))
