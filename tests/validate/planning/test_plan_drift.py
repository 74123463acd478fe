"""A plan on mixtures with other traffic, against mixtures made and measured by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.drift import breaking_share, drift_of, mixture, promise_of
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method
from ratedist.validate.workloads.prompts import Prompt, PromptSet


def made(name: str, requests: int, seed: int, length: int = 40) -> PromptSet:
    """Requests that begin alike, another beginning for every name."""
    start = torch.randint(1, 250, (16,), generator=torch.Generator().manual_seed(len(name))).tolist()
    generator = torch.Generator().manual_seed(seed)
    return PromptSet(
        name,
        tuple(
            Prompt((*start, *torch.randint(1, 250, (length - 16,), generator=generator).tolist()))
            for _ in range(requests)
        ),
    )


def plan_of(goal: dict[str, float], loaded: Any, **predicted: Any) -> CachePlan:
    settings = {0: Method("fusion", threshold=0.3), 1: Method("fusion", threshold=0.6), 2: Method("exact")}
    return CachePlan(
        loaded.name, loaded.weights_hash, loaded.layers, 4, settings, goal, {"tolerance": 1.5, **predicted}
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def test_mixtures_are_fused_and_measured(loaded: LoadedModel) -> None:
    def open_session(prompts: PromptSet) -> QualitySession:
        return QualitySession(loaded, prompts, continuation=4, layers=(0, 1, 2), block_size=4)

    home, other = made("home", 4, 0), made("elsewhere", 5, 1)
    plan = plan_of({"min_saving": 0.2}, loaded)
    said: list[str] = []
    found = drift_of(
        plan,
        open_session(home),
        other,
        open_session,
        seed=3,
        progress=lambda what, share: said.append(what),
    )
    assert (found["to"], found["requests"]) == ("elsewhere", 4)
    assert said[1] == "fusing with 25% from elsewhere"
    for foreign, point in zip((0, 1, 2, 4), found["points"], strict=True):
        assert point["share"] == foreign / 4
        prompts = home if not foreign else mixture(home, other, foreign, 3)[0]
        assert set(prompts.prompts) == {*home.prompts[: 4 - foreign], *other.prompts[:foreign]}
        quality = open_session(prompts).measure(plan.settings)
        assert point["kl"] == pytest.approx(quality.kl.mean())
        assert point["error"] == pytest.approx(np.sqrt(quality.attention_error2.mean()))
        assert point["compression"] == pytest.approx(quality.compression)
        assert point["saving"] == pytest.approx(1 - 1 / quality.compression)
    assert len({point["saving"] for point in found["points"]}) > 2
    assert found["promise"] == {"of": "saving", "limit": 0.2}
    again = plan.with_drift(found)
    assert again.predicted["sensitivity"]["drift"] == json.loads(json.dumps(found, allow_nan=False))
    assert again.settings == plan.settings


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 9))
def test_a_mixture_says_where_its_requests_come_from(count: int, foreign: int, seed: int) -> None:
    foreign = min(foreign, count)
    home, other = made("home", count, 0, 17), made("elsewhere", count, 1, 17)
    prompts, elsewhere, source = mixture(home, other, foreign, seed)
    assert elsewhere.sum() == foreign
    for prompt, is_other, number in zip(prompts.prompts, elsewhere, source, strict=True):
        assert prompt == (other if is_other else home).prompts[number]
    assert sorted(source[elsewhere]) == list(range(foreign))
    assert sorted(source[~elsewhere]) == list(range(count - foreign))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=5))
def test_the_first_crossing_is_found(excess: list[float]) -> None:
    """Before it nothing is above the limit on a fine grid of straight lines, and there it is on it."""
    shares = np.linspace(0, 1, len(excess)) ** 2
    (found,) = breaking_share(shares, np.array(excess)[:, None])
    grid = np.linspace(0, 1, 401)
    line = np.interp(grid, shares, excess)
    if math.isinf(found):
        assert max(excess) <= 0
        return
    assert (line[grid < found] <= 1e-9).all()
    assert np.interp(found, shares, excess) >= -1e-9
    if found > 0:
        assert np.interp(found, shares, excess) == pytest.approx(0, abs=1e-9)


class Fake:
    """In the place of a session: every request has a divergence and bytes of its own."""

    def __init__(self, prompts: PromptSet, kl: dict[int, tuple[float, float]]) -> None:
        self.prompts, self.requests = prompts, len(prompts.prompts)
        self.loaded = SimpleNamespace(name="m", weights_hash="h", layers=3)
        self._kl = kl

    def measure(self, methods: Any) -> Any:
        found = [self._kl[prompt.token_ids[0]] for prompt in self.prompts.prompts]
        kl = np.array([[harm, harm] for harm, _ in found])
        return SimpleNamespace(
            kl=kl,
            attention_error2=kl.T**2,
            bytes=np.array([size for _, size in found]),
            unfused_bytes=np.full(len(found), 2.0),
        )


def fake_drift(
    plan: CachePlan, at_home: list[tuple[float, float]], other: list[tuple[float, float]], **options: Any
) -> Any:
    kl = dict(enumerate([*at_home, *other]))
    sets = [
        PromptSet(name, tuple(Prompt((number + offset,)) for number in range(len(values))))
        for name, values, offset in (("home", at_home, 0), ("other", other, len(at_home)))
    ]
    return drift_of(
        plan,
        Fake(sets[0], kl),  # type: ignore[arg-type]
        sets[1],
        lambda prompts: Fake(prompts, kl),  # type: ignore[arg-type,return-value]
        **options,
    )


LOADED = SimpleNamespace(name="m", weights_hash="h", layers=3)


def test_equal_requests_break_at_a_known_share_without_spread() -> None:
    """Divergence is 1 + 2p and may reach 1.5 · 1.2 = 1.8; saving is 0.5 − 0.25p and may fall to 0.4."""
    numbers = [(1.0, 1.0)] * 8, [(3.0, 1.5)] * 8
    kl = fake_drift(plan_of({"max_kl": 1.2}, LOADED), *numbers)
    assert kl["promise"] == {"of": "kl", "limit": pytest.approx(1.8)}
    for name in ("breaks_at", "breaks_low", "breaks_high"):
        assert kl[name] == pytest.approx(0.4)
    assert kl["breaks_in"] == 1
    saving = fake_drift(plan_of({"min_saving": 0.4}, LOADED), *numbers)
    assert saving["breaks_at"] == pytest.approx(0.4)
    error = fake_drift(plan_of({"max_error": 1.2}, LOADED), *numbers)
    assert error["promise"] == {"of": "error", "limit": pytest.approx(1.8)}
    # Squared errors are mixed: √(1 + 8p) at 0.25 and 0.5, a straight line between, here from √3 to √5.
    line = (1.8 - math.sqrt(3)) / (math.sqrt(5) - math.sqrt(3))
    assert error["breaks_at"] == pytest.approx(0.25 * (1 + line))
    assert kl["words"].endswith(
        "a divergence of at most 1.8 is broken from a share of 40% on (in 90 % of bootstrap draws of the "
        "requests 40% to 40%)."
    )
    assert "a saving of at least 40.0% is broken" in saving["words"]
    # Without a tolerance the goal itself is promised, which is broken at home already.
    strict = fake_drift(plan_of({"max_kl": 0.9}, LOADED, tolerance=None), *numbers)
    assert (strict["breaks_at"], strict["breaks_low"], strict["breaks_high"]) == (0, 0, 0)
    kept = fake_drift(plan_of({"max_kl": 2.1}, LOADED), *numbers)
    assert (kept["breaks_at"], kept["breaks_low"], kept["breaks_high"], kept["breaks_in"]) == (
        *(None,) * 3,
        0,
    )


def test_unequal_requests_spread_the_share() -> None:
    """With two shares the crossing of a straight line between two weighted means, drawn here by Dirichlet
    weights; an end beyond 1 is None."""
    rng = np.random.default_rng(0)
    at_home, other = (base * np.exp(0.3 * rng.normal(size=8)) for base in (1.0, 4.0))
    numbers = [[(float(kl), 1.0) for kl in part] for part in (at_home, other)]
    found = fake_drift(plan_of({"max_kl": 1.4}, LOADED), *numbers, shares=(0, 1))
    home_mean, other_mean = (rng.dirichlet(np.ones(8), 20_000) @ part for part in (at_home, other))
    crossing = (1.5 * 1.4 - home_mean) / (other_mean - home_mean)
    assert found["breaks_at"] == pytest.approx((2.1 - at_home.mean()) / (other.mean() - at_home.mean()))
    low, high = np.quantile(crossing, [0.05, 0.95])
    assert found["breaks_low"] == pytest.approx(low, abs=0.05 * (high - low))
    assert found["breaks_high"] == pytest.approx(high, abs=0.05 * (high - low))
    rare = fake_drift(plan_of({"max_kl": 1.0}, LOADED), [(0.5, 1.0)] * 8, [(0.5, 1.0)] * 7 + [(8.0, 1.0)])
    assert rare["breaks_high"] is None
    assert "is kept at every share" in rare["words"] or "to beyond 100%)." in rare["words"]
    assert 0 < rare["breaks_in"] < 1


def test_a_slope_promises_nothing() -> None:
    plan = plan_of({"slope": 0.1}, LOADED)
    assert promise_of(plan) is None
    found = fake_drift(plan, [(1.0, 1.0)] * 2, [(2.0, 1.0)] * 2)
    assert found["promise"] is found["breaks_at"] is found["breaks_in"] is None
    assert found["words"] == "With requests from other: the goal promises nothing that drift could break."
    assert len(found["points"]) == 3  # of two requests a quarter is none


def test_refuses() -> None:
    plan = plan_of({"max_kl": 0.1}, LOADED)
    with pytest.raises(InputError, match="drift_to = 'other': gives 1 requests, needs 2"):
        fake_drift(plan, [(1.0, 1.0)] * 2, [(1.0, 1.0)])
    wrong = plan_of({"max_kl": 0.1}, SimpleNamespace(name="m", weights_hash="x", layers=3))
    with pytest.raises(InputError, match="plan again for this one"):
        fake_drift(wrong, [(1.0, 1.0)], [(1.0, 1.0)])
    home = Fake(PromptSet("home", (Prompt((0,)),)), {0: (1.0, 1.0)})
    for shares in ((), (0.5, 0.25), (0.0, 1.5)):
        with pytest.raises(InputError, match="must be different, ascending and within"):
            drift_of(plan, home, home.prompts, lambda _: home, shares=shares)  # type: ignore[arg-type,return-value]
