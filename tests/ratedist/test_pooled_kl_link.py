"""The pooled law from distortion to divergence: found where it holds, and what pulling constants gains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.pooled_kl_link import between_variance, fit_pooled_kl_link

Cells = dict[str, np.ndarray]


def workloads(
    constants: dict[str, float], exponent: float, *, requests: int = 8, noise: float = 0.0, seed: int = 0
) -> tuple[Cells, Cells]:
    rng = np.random.default_rng(seed)
    errors = {name: rng.uniform(0.05, 0.6, (6, requests)) for name in constants}
    # What a request suffers beyond its error it suffers at every setting.
    excess = {name: np.exp(noise * rng.standard_normal(requests)) for name in constants}
    kl = {name: np.exp(a) * errors[name] ** exponent * excess[name] for name, a in constants.items()}
    return errors, kl


@given(exponent=st.floats(0.5, 3.5), a=st.floats(-2, 0.5), b=st.floats(-2, 0.5))
def test_the_law_is_found_again(exponent: float, a: float, b: float) -> None:
    """Without noise, whatever the requests; the law is ``ratedist.pooled_kl_link.fit_pooled_kl_link``'s."""
    errors, kl = workloads({"a": a, "b": b}, exponent)
    link = fit_pooled_kl_link(errors, kl, low=0, high=np.inf)
    assert link.exponent == pytest.approx(exponent, abs=1e-3)
    assert link.intercepts == pytest.approx({"a": a, "b": b}, abs=5e-3)
    assert link.intercept == pytest.approx((a + b) / 2, abs=5e-3)
    assert link.cells == 12
    for name in errors:
        np.testing.assert_allclose(link.predict(errors[name], name), kl[name].mean(axis=1), rtol=5e-3)
    np.testing.assert_allclose(
        link.predict(errors["a"]), link.predict(errors["a"], "never measured"), rtol=1e-12
    )


def test_power_is_taken_before_the_mean() -> None:
    """One request that suffers alone costs more than the same error spread over all."""
    errors, kl = workloads({"a": 0.0, "b": 0.0}, 2.0)
    link = fit_pooled_kl_link(errors, kl, low=0, high=np.inf)
    alone, spread = link.predict([[0.8, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2]], "a")
    assert alone / spread == pytest.approx(4, rel=1e-3)


def test_constants_are_pulled_by_what_their_requests_leave_open() -> None:
    """Noisy requests of equal workloads: pulled constants are nearer to the truth than each by itself, and
    new requests are predicted better; 60 repetitions, constants all 0."""
    pulled, own = [], []
    for seed in range(60):
        names = {f"w{number}": 0.0 for number in range(8)}
        errors, kl = workloads(names, 2.0, noise=0.8, seed=seed)
        link = fit_pooled_kl_link(errors, kl, low=0, high=np.inf)
        pulled += [abs(value - 0.32) for value in link.intercepts.values()]  # ln E[excess] = 0.8²/2
        own += [
            abs(np.log(kl[name].mean(axis=1) / (errors[name] ** link.exponent).mean(axis=1)).mean() - 0.32)
            for name in names
        ]
    assert np.mean(pulled) < 0.75 * np.mean(own)


def test_a_workload_that_differs_beyond_its_noise_keeps_its_constant() -> None:
    constants = {f"w{number}": 0.0 for number in range(6)} | {"other": 1.5}
    errors, kl = workloads(constants, 2.0, noise=0.2, seed=4)
    link = fit_pooled_kl_link(errors, kl, low=0, high=np.inf)
    means = kl["other"].mean(axis=1), (errors["other"] ** link.exponent).mean(axis=1)
    own = float(np.log(means[0] / means[1]).mean())
    assert link.intercepts["other"] == pytest.approx(own, rel=0.05)
    assert link.intercepts["other"] > link.intercept + 0.9


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_variance_between_groups_is_found_again(between: float) -> None:
    """200 draws of 20 groups with unequal errors; ``ratedist.pooled_kl_link.between_variance``."""
    rng = np.random.default_rng(7)
    within = np.linspace(0.05, 0.6, 20) ** 2
    found = np.array(
        [
            between_variance(2.0 + rng.standard_normal(20) * np.sqrt(between**2 + within), within)
            for _ in range(200)
        ]
    )
    assert found[:, 1].mean() == pytest.approx(2.0, abs=4 * found[:, 1].std() / np.sqrt(200))
    if between:
        assert found[:, 0].mean() == pytest.approx(between**2, abs=4 * found[:, 0].std() / np.sqrt(200))
    else:
        assert (found[:, 0] == 0).mean() > 0.4  # below its expectation about half of the time
    assert between_variance([3.0], [0.1]) == (0.0, 3.0)
    assert between_variance([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) == pytest.approx((1.0, 2.0), rel=1e-3)


def test_cells_outside_the_range_and_without_error_do_not_count() -> None:
    errors, kl = workloads({"a": -1.0, "b": -1.5}, 2.0)
    clean = fit_pooled_kl_link(errors, kl)
    errors["a"] = np.vstack([errors["a"], np.zeros(8), np.full(8, 0.3)])
    kl["a"] = np.vstack([kl["a"], np.full(8, 0.1), np.full(8, 7.0)])
    errors["none"], kl["none"] = np.full((2, 8), 0.5), np.full((2, 8), 1e-6)
    again = fit_pooled_kl_link(errors, kl)
    assert again == clean


def test_one_request_that_made_it_all_says_nothing_of_its_workload() -> None:
    errors, kl = workloads({"a": 0.0, "b": 0.0, "c": 1.0}, 2.0)
    errors["c"][:, 1:], kl["c"][:, 1:] = 0.0, 0.0
    link = fit_pooled_kl_link(errors, kl, low=0, high=np.inf)
    assert link.intercepts["c"] == link.intercept


def test_what_is_refused() -> None:
    errors, kl = workloads({"a": 0.0, "b": 0.0}, 2.0)
    with pytest.raises(InputError, match=r"errors = \['a', 'b'\]: must name the workloads of kl"):
        fit_pooled_kl_link(errors, {"a": kl["a"]})
    with pytest.raises(InputError, match=r"kl = \(6, 7\): must have the shape of errors, \(6, 8\)"):
        fit_pooled_kl_link({"a": errors["a"]}, {"a": kl["a"][:, :7]})
    with pytest.raises(InputError, match="two requests or more"):
        fit_pooled_kl_link({"a": errors["a"][:, :1]}, {"a": kl["a"][:, :1]})
    with pytest.raises(InputError, match="0 usable cells': must hold at least 2 cells"):
        fit_pooled_kl_link(errors, {name: 0 * values for name, values in kl.items()})
    with pytest.raises(InputError, match=r"errors = \(8,\): must have shape \(cells, requests\)"):
        fit_pooled_kl_link({"a": errors["a"][0]}, {"a": kl["a"]})
    link = fit_pooled_kl_link(errors, kl, low=0, high=np.inf)
    with pytest.raises(InputError, match=r"errors = -1.0: must be finite and at least 0"):
        link.predict([[-1.0, 0.0]])
    with pytest.raises(InputError, match=r"values = \(0,\): must be a list of one estimate or more"):
        between_variance([], [])
