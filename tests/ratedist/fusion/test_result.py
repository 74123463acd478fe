"""ratedist/fusion/result.py."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.fusion import FusionResult, batch_units, leader, prediction_band, tree
from ratedist.similarity import Spherical


def a_result() -> FusionResult:
    return tree(Spherical(12), batch_units(8, 6), [0.3, 0.6])


@given(st.floats(5.0, 900.0), st.floats(2.0, 15.0), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_band_covers_counts(mean: float, std: float, level: float) -> None:
    """Of a rounded normal count; one whole number more or less moves it by at most 5 % at these spreads."""
    low, high = prediction_band(np.array([mean]), np.array([std]), low=-1e9, high=1e9, level=level)
    law = scipy.stats.norm(mean, std)
    covered = float(law.cdf(high[0] + 0.5) - law.cdf(low[0] - 0.5))
    assert abs(covered - level) <= 0.5 * law.pdf(min(abs(low[0] - mean), abs(high[0] - mean)) + mean) + 0.03
    assert low[0] == np.floor(low[0]) <= high[0] == np.floor(high[0])


def test_band_stays_within_the_bounds() -> None:
    mean, std = np.array([10.0, 10.4, 99.9, 100.0]), np.array([0.0, 3.0, 4.0, 0.0])
    low, high = prediction_band(mean, std, low=10, high=100)
    np.testing.assert_array_equal(low[[0, 3]], [10, 100])
    np.testing.assert_array_equal(high[[0, 3]], [10, 100])
    assert (low >= 10).all()
    assert (high <= 100).all()


def test_band_of_another_level_is_wider() -> None:
    result = a_result()
    narrow, wide = result.band(0.5), result.band(0.99)
    assert (wide[1] - wide[0] > narrow[1] - narrow[0]).all()
    np.testing.assert_array_equal(result.band(0.9)[0], result.kept_low)


def test_shares_add_up() -> None:
    result = a_result()
    np.testing.assert_allclose(result.kept + result.absorbed, 48)
    np.testing.assert_allclose(result.absorbed_share, 1 - 1 / result.compression)


def test_scale_rules_of_vectors() -> None:
    """Own norm, raw and projection against restored vectors whose norms are independent of directions."""
    rng = np.random.default_rng(0)
    law = Spherical(10)
    result = leader(law, batch_units(12, 8), [0.3], hard_core=False)
    draws = rng.choice(result.matches.scores[:, 0], 4000)  # any scores will do: moments of them are compared
    norm, other = rng.lognormal(0, 0.3, 4000), rng.lognormal(0, 0.3, 4000)
    first, second = np.array([draws.mean()]), np.array([(draws**2).mean()])
    moved = FusionResult(
        **{**vars(result), "final_similarity": first, "final_similarity2": second},
    )
    ratio = other / norm
    own = 2 - 2 * draws
    raw = 1 + ratio**2 - 2 * ratio * draws
    projected = 1 - draws**2
    assert moved.error2()[0] == pytest.approx(own.mean())
    assert moved.error2("projection")[0] == pytest.approx(projected.mean())
    expected = moved.error2("raw", ratio=ratio.mean(), ratio2=(ratio**2).mean())[0]
    assert abs(raw.mean() - expected) < 4 * np.cov(ratio, draws)[0, 1] + 4 * raw.std() / np.sqrt(4000)
    np.testing.assert_allclose(result.error2(), result.final_error2)
    np.testing.assert_allclose(result.error2(final=False), result.direct_error2)


def test_matches_carry_every_moment() -> None:
    result = a_result()
    np.testing.assert_allclose(result.matches.expected_sum(np.ones_like), result.absorbed, rtol=1e-9)
    for power, moment in ((1, result.direct_similarity), (2, result.direct_similarity2)):
        found = result.matches.expected_sum(lambda s, power=power: s**power)
        np.testing.assert_allclose(found, moment * result.absorbed, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a_result().error2("scaled"), r"rule = 'scaled': must be one of own-norm, raw, projection"),
        (lambda: a_result().error2("raw", ratio=0.0), r"ratio = 0.0: .*above 0"),
        (
            lambda: a_result().error2("raw", ratio=1.0, ratio2=0.5),
            r"ratio2 = 0.5: must be at least the square",
        ),
        (lambda: a_result().band(1.0), r"level = 1.0: must lie between 0 and 1"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
