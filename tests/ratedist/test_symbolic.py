"""ratedist.symbolic: every derived result, evaluated beside the function that implements it."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from ratedist import symbolic
from ratedist.bounds import spherical_code_bound, spherical_code_limit
from ratedist.distortion import absorbed_error2, centroid_error2, centroid_similarity, error2
from ratedist.errors import InputError, RatedistError
from ratedist.fusion.sequential import matern_share, sequential_share
from ratedist.similarity import Gaussian, Spherical
from ratedist.symbolic import DERIVATIONS, Derivation, derive, to_latex

sp = pytest.importorskip("sympy")

FloatArray = NDArray[np.float64]


@pytest.fixture(scope="module")
def derived() -> dict[str, Derivation]:
    return {name: derive(name) for name in DERIVATIONS}


def numeric(expression: Any, *symbols: str) -> Callable[..., Any]:
    """A function of the named symbols, whatever sympy assumes about each."""
    by_name = {str(symbol): symbol for symbol in expression.free_symbols}
    unknown = set(by_name) - set(symbols)
    assert not unknown, f"{expression} also depends on {unknown}"
    arguments = [by_name.get(symbol, sp.Symbol(symbol)) for symbol in symbols]
    return sp.lambdify(arguments, expression, modules=["scipy", "numpy"])


def test_scale_rules(derived: dict[str, Derivation]) -> None:
    results = derived["scale-rules"].results
    s = np.linspace(-1, 1, 11)
    np.testing.assert_allclose(
        numeric(results["raw"], "s", "rho")(s, 1.3), error2(s, "raw", norm_ratio=1.3), atol=1e-14
    )
    np.testing.assert_allclose(numeric(results["own-norm"], "s")(s), error2(s, "own-norm"), atol=1e-14)
    np.testing.assert_allclose(numeric(results["projection"], "s")(s), error2(s, "projection"), atol=1e-14)
    assert numeric(results["best-scale"], "s", "n")(0.4, 3.0) == pytest.approx(1.2)


def test_centroid(derived: dict[str, Derivation]) -> None:
    results = derived["centroid"].results
    s = np.linspace(-0.15, 1, 9)
    np.testing.assert_allclose(numeric(results["two"], "s")(s), centroid_error2(s), atol=1e-14)
    np.testing.assert_allclose(numeric(results["many"], "s", "m")(s, 7), centroid_error2(s, 7), atol=1e-14)
    np.testing.assert_allclose(numeric(results["similarity"], "s", "m")(s, 7), centroid_similarity(s, 7))


def test_best_match(derived: dict[str, Derivation]) -> None:
    """The closed form on the sphere of three dimensions, where S is uniform."""
    conditional = numeric(derived["best-match"].results["sphere-3-conditional"], "N", "tau")
    whole = numeric(derived["best-match"].results["sphere-3"], "N", "tau")
    law = Spherical(3)
    for count, tau in [(0.5, 0.1), (5.0, -0.5), (40.0, 0.8), (300.0, 0.2)]:
        expected = absorbed_error2(law, count, tau)
        assert conditional(count, tau) == pytest.approx(float(expected), rel=1e-9)
        absorbed = -np.expm1(-count * law.sf(tau))
        assert whole(count, tau) == pytest.approx(float(expected * absorbed), rel=1e-9)


def test_small_rate_error(derived: dict[str, Derivation]) -> None:
    """absorbed_error2 to first order in N: f(τ) + ∫ f′(leading + N·correction)."""
    results = derived["small-rate-error"].results
    leading = numeric(results["leading"], "F_s", "F_tau")
    correction = numeric(results["correction"], "F_s", "F_tau")
    law, tau, count = Spherical(16), 0.3, 0.02
    at_tau = float(law.sf(tau))

    def integral(function: Callable[[float, float], float]) -> float:
        return scipy.integrate.quad(lambda s: -2 * function(float(law.sf(s)), at_tau), tau, 1)[0]

    first = 2 - 2 * tau + integral(leading)
    second = first + count * integral(correction)
    exact = float(absorbed_error2(law, count, tau))
    assert abs(exact - second) < 1e-3 * abs(exact - first)
    assert exact < first


def test_gaussian_truncated(derived: dict[str, Derivation]) -> None:
    results = derived["gaussian-truncated"].results
    law = Gaussian(0.4, 0.07)  # 1 is 8 standard deviations away
    for tau in (0.2, 0.4, 0.55):
        assert numeric(results["tail"], "mu", "sigma", "tau")(0.4, 0.07, tau) == pytest.approx(
            float(law.sf(tau)), rel=1e-10
        )
        for name, power in (("first", 1), ("second", 2)):
            derived_moment = numeric(results[name], "mu", "sigma", "tau")(0.4, 0.07, tau)
            assert derived_moment == pytest.approx(law.expect(lambda s, k=power: s**k, above=tau), rel=1e-8)
        for rule in ("own-norm", "projection"):
            small_rate = numeric(results[rule], "mu", "sigma", "tau")(0.4, 0.07, tau)
            assert small_rate == pytest.approx(float(absorbed_error2(law, 1e-9, tau, rule)), rel=1e-6)


def simulate_kept(intensity: float, offered: int, runs: int, *, deleted_delete: bool) -> FloatArray:
    """Share kept of blocks that arrive one at a time and exceed each earlier one with chance Λ/n."""
    rng = np.random.default_rng(17)
    kept = np.ones((runs, offered), dtype=bool)
    for i in range(1, offered):
        hit = rng.random((runs, i)) < intensity / offered
        kept[:, i] = ~(hit if deleted_delete else hit & kept[:, :i]).any(axis=1)
    return kept.mean(axis=1)


@pytest.mark.parametrize(("name", "deleted_delete"), [("sequential-share", False), ("matern-share", True)])
def test_shares_against_simulation(derived: dict[str, Derivation], name: str, deleted_delete: bool) -> None:
    share = numeric(derived[name].results["share"], "Lambda")
    simulated = simulate_kept(3.0, 400, 500, deleted_delete=deleted_delete)
    error = simulated.std() / math.sqrt(simulated.size)
    # A finite number of arrivals differs from the limit by terms of order 1/n.
    assert abs(simulated.mean() - share(3.0)) < 4 * error + 2 / 400


def test_shares_at_small_and_large_rates(derived: dict[str, Derivation]) -> None:
    for name in ("sequential-share", "matern-share"):
        results = derived[name].results
        exact, series = numeric(results["share"], "Lambda"), numeric(results["small-rate"], "Lambda")
        errors = [abs(exact(rate) - series(rate)) for rate in (0.02, 0.04)]
        assert math.log2(errors[1] / errors[0]) == pytest.approx(4, abs=0.15)
    rates = np.geomspace(1e-3, 1e2, 6)
    for name, function in (("sequential-share", sequential_share), ("matern-share", matern_share)):
        np.testing.assert_allclose(
            numeric(derived[name].results["share"], "Lambda")(rates), function(rates), rtol=1e-9
        )
    gap = numeric(derived["matern-share"].results["gap"], "Lambda")
    sequential = numeric(derived["sequential-share"].results["share"], "Lambda")
    matern = numeric(derived["matern-share"].results["share"], "Lambda")
    assert sequential(0.001) - matern(0.001) == pytest.approx(gap(0.001), rel=5e-3)
    assert derived["sequential-share"].results["growth"] == 1
    assert sequential(1e12) * 1e12 / math.log(1e12) == pytest.approx(1, rel=0.01)


def test_tree_large_batch(derived: dict[str, Derivation]) -> None:
    """Levels between two sizes by Ei, beside the doubling carried out."""
    results = derived["tree-large-batch"].results
    doubling, levels = numeric(results["doubling"], "x"), numeric(results["levels"], "x")
    x, steps = 6.0, 0
    start = x
    while x < 10:
        x, steps = doubling(x), steps + 1
    assert levels(x) - levels(start) == pytest.approx(steps, rel=0.002)
    assert results["tail"] == 1


def test_gaussian_closure(derived: dict[str, Derivation]) -> None:
    results = derived["gaussian-closure"].results
    rng = np.random.default_rng(4)
    number = rng.normal(30, 5, 400_000)
    void = np.exp(-0.05 * number)
    names = ("mu", "q", "sigma")
    assert numeric(results["mean"], *names)(30, 0.05, 5) == pytest.approx(void.mean(), rel=2e-3)
    assert numeric(results["square"], *names)(30, 0.05, 5) == pytest.approx((void**2).mean(), rel=4e-3)
    covariance = np.cov(number, void)[0, 1]
    assert numeric(results["covariance"], *names)(30, 0.05, 5) == pytest.approx(covariance, rel=0.02)


def test_spherical_limit(derived: dict[str, Derivation]) -> None:
    results = derived["spherical-limit"].results
    s = np.array([0.1, 0.4, 0.9])
    np.testing.assert_allclose(numeric(results["limit"], "s")(s), spherical_code_limit(s), rtol=1e-12)
    np.testing.assert_allclose(numeric(results["limit"], "s")(s), spherical_code_bound(s, 1e7), rtol=1e-3)
    # The cap is what lies between: cap ≤ ∫_s^1 (1 − u²)^((r−3)/2) du ≤ cap/s.
    cap = numeric(results["cap"], "s", "r")
    for dim in (8, 64):
        whole = float(Spherical(dim).sf(0.4)) * scipy.special.beta((dim - 1) / 2, 0.5)
        assert cap(0.4, dim) <= whole <= cap(0.4, dim) / 0.4


def test_named_functions_exist(derived: dict[str, Derivation]) -> None:
    import importlib

    for derivation in derived.values():
        for path in derivation.implemented_by:
            module, _, attribute = path.rpartition(".")
            try:
                owner = importlib.import_module(module)
            except ModuleNotFoundError:
                module, _, name = module.rpartition(".")
                owner = getattr(importlib.import_module(module), name)
            assert hasattr(owner, attribute) or importlib.import_module(path), path


def test_latex(derived: dict[str, Derivation], tmp_path: Path) -> None:
    text = to_latex(list(derived.values()))
    assert text.count(r"\subsection*") == len(DERIVATIONS)
    assert text.count(r"\[") == text.count(r"\]") == sum(len(d.steps) for d in derived.values())
    assert text.count("{") == text.count("}")
    assert text.count(r"\(") == text.count(r"\)")
    assert text.isascii()
    if shutil.which("pdflatex"):
        source = tmp_path / "derivations.tex"
        source.write_text(text, encoding="utf-8")
        subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", source.name],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )


def test_a_wrong_step_is_caught() -> None:
    s = sp.Symbol("s")
    with pytest.raises(RatedistError, match=r"derivation failed: s\*\*2 - s does not simplify to 0"):
        symbolic._prove_zero(s**2 - s)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"name = 'entropy': must be one of scale-rules, centroid"):
        derive("entropy")
    import sys

    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(RatedistError, match=r"pip install 'ratedist\[symbols\]'"):
        derive("centroid")
