"""The power law from distortion to divergence: found again where it holds, judged as written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.kl_link import KL_RANGE, KLLink, fit_kl_link, link_accuracy


def cells(seed: int = 0, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.05, 1.2, count), rng.uniform(0.02, 0.6, count)


@given(a=st.floats(-3, 0), b=st.floats(0, 2.5), c=st.floats(0, 2.5))
def test_a_power_law_is_found_again(a: float, b: float, c: float) -> None:
    v, k = cells()
    kl = np.exp(a) * v**b * k**c
    link = fit_kl_link({"v": v, "k": k}, kl, low=0, high=np.inf if kl.max() > 1e6 else 1e9)
    np.testing.assert_allclose([link.intercept, *link.exponents], [a, b, c], atol=1e-6)
    np.testing.assert_allclose(link.predict({"k": k, "v": v}), kl, rtol=1e-6)
    assert link.spread < 1e-6


def test_noise_is_averaged_and_its_size_found() -> None:
    rng = np.random.default_rng(1)
    errors, slopes, spreads = [], [], []
    for _ in range(200):
        v = rng.uniform(0.05, 1.2, 40)
        kl = 0.3 * v**1.5 * np.exp(0.2 * rng.standard_normal(40))
        link = fit_kl_link({"v": v}, kl, low=0, high=1e9)
        x = np.log(v)
        slopes.append(link.exponents[0])
        errors.append(0.2 / math.sqrt(((x - x.mean()) ** 2).sum()))
        spreads.append(link.spread)
    z = (np.mean(slopes) - 1.5) / (np.mean(errors) / math.sqrt(200))
    assert abs(z) < 4
    assert np.std(slopes) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.2)
    assert np.mean(spreads) == pytest.approx(0.2, rel=0.05)


def test_more_error_never_predicts_less_divergence() -> None:
    v, k = cells()
    link = fit_kl_link({"v": v, "k": k}, 0.1 * v**1.2 / k**0.5, low=0, high=1e9)
    assert link.exponents[1] == 0
    assert link.exponents[0] > 0
    zero = link.predict({"v": np.array([0.0, 1.0]), "k": np.array([0.0, 0.0])})
    assert zero[0] == 0
    assert zero[1] == pytest.approx(math.exp(link.intercept))


def test_cells_outside_the_range_and_without_error_do_not_count() -> None:
    v, _ = cells()
    kl = 0.3 * v**1.5
    spoiled_v = np.concatenate([v, [0.0, 1e-6, 3.0]])
    spoiled_kl = np.concatenate([kl, [0.01, 1e-9, 8.0]])
    inside = int(((kl >= KL_RANGE[0] / 2) & (kl <= 2 * KL_RANGE[1])).sum())
    link = fit_kl_link({"v": spoiled_v}, spoiled_kl)
    assert link.cells == inside
    assert link.exponents[0] == pytest.approx(1.5)


def test_accuracy_by_hand() -> None:
    measured = np.array([0.01, 0.02, 0.1, 0.5, 0.6, 0.001, 0.04])
    predicted = np.array([0.0149, 0.0301, 0.1, 0.25, 9.0, 9.0, 0.0])
    found = link_accuracy(predicted, measured)
    assert found.cells == 5
    assert found.within == pytest.approx(2 / 5)
    assert found.median_abs_log_ratio == pytest.approx(math.log(0.0301 / 0.02))
    assert found.p90_abs_log_ratio == pytest.approx(math.log(2))
    assert found.bias == pytest.approx(0.0)
    assert link_accuracy([0.1], [0.9]).within is None


def test_bad_input_is_named() -> None:
    v, k = cells()
    with pytest.raises(InputError, match=r"kl.*2 usable cells.*at least 3 cells.*measure more"):
        fit_kl_link({"v": v[:2]}, v[:2])
    with pytest.raises(InputError, match=r"v.*must have shape"):
        fit_kl_link({"v": v[:5]}, v)
    with pytest.raises(InputError, match=r"errors.*at least one"):
        fit_kl_link({}, v)
    with pytest.raises(InputError, match=r"kl.*at least 0"):
        fit_kl_link({"v": v}, -k)
    with pytest.raises(InputError, match=r"errors.*must hold 'v'"):
        KLLink(("v",), 0.0, (1.0,), 9, 0.1).predict({"k": k})
    with pytest.raises(InputError, match=r"predicted.*must have shape"):
        link_accuracy(v, k[:3])
    with pytest.raises(InputError, match="factor"):
        link_accuracy(v, k, factor=1.0)
