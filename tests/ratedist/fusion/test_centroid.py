"""ratedist/fusion/centroid.py against real directions."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.fusion import batch_units, centroid, tree
from ratedist.montecarlo.chains import simulate_centroid
from ratedist.montecarlo.directions import simulate_directions
from ratedist.similarity import Spherical


@pytest.mark.parametrize(("dim", "units", "tau"), [(32, [6] * 24, 0.3), (10, [5, 9, 1, 7, 12, 3], 0.5)])
def test_agrees_with_directions(dim: int, units: list[int], tau: float) -> None:
    """Kept blocks are the tree's; the error comes out within 4 %."""
    sample = simulate_directions(dim, units, tau, variant="centroid", runs=300, rng=np.random.default_rng(2))
    result = centroid(Spherical(dim), units, [tau])
    kept, error2 = sample.mean_kept(), sample.mean_error2()
    assert result.kept[0] == pytest.approx(kept.mean, abs=4 * kept.standard_error + 0.01 * kept.mean)
    assert result.final_error2[0] == pytest.approx(error2.mean, abs=4 * error2.standard_error + 0.04)
    assert result.final_error2_low[0] <= error2.mean <= result.final_error2_high[0]


def test_error_of_the_process_within_its_bounds() -> None:
    law, units = Spherical(20), batch_units(30, 10)
    tau = np.array([0.1, 0.3, 0.5])
    result = centroid(law, units, tau, hard_core=False)
    for index, threshold in enumerate(tau):
        sample = simulate_centroid(law, units, threshold, runs=200, rng=np.random.default_rng(index))
        error2 = sample.mean_error2().mean
        assert result.final_error2_low[index] < error2 < result.final_error2_high[index]
        assert result.final_error2[index] == pytest.approx(error2, rel=0.05)


def test_a_pair_lies_between_its_members() -> None:
    """Two units of one block: both members stand at √((1 + s)/2) from their mean."""
    law, tau = Spherical(12), 0.4
    expected = law.expect(lambda s: 2 * (2 - np.sqrt(2 * (1 + s))), above=tau) / float(law.sf(tau))
    assert centroid(law, [1, 1], [tau]).final_error2[0] == pytest.approx(expected, rel=0.01)


def test_moving_representatives_are_nearer() -> None:
    law, units, tau = Spherical(16), batch_units(32, 8), np.linspace(0.1, 0.8, 8)
    moving, fixed = centroid(law, units, tau), tree(law, units, tau)
    np.testing.assert_array_equal(moving.kept, fixed.kept)
    assert (moving.final_error2 < fixed.final_error2).all()
    assert (moving.final_error2_low <= moving.final_error2).all()
    assert (moving.final_error2 <= moving.final_error2_high).all()


def test_limits() -> None:
    alone = centroid(Spherical(8), [12], [0.5])
    assert alone.kept[0] == 12
    assert np.isnan(alone.final_error2[0])


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"units = 0"):
        centroid(Spherical(8), [2, 0], [0.5])
