"""Plans: what they promise on a tiny model, their file, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.errors import InputError, RatedistError
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.check import check_plan
from ratedist.validate.planning.make import Planner, foreseen, foreseen_kl, make_plan, mean_with_band
from ratedist.validate.planning.measurements import Measurements
from ratedist.validate.planning.plan_file import CachePlan, read_plan, write_plan
from ratedist.validate.planning.trials import default_settings
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method
from ratedist.validate.workloads.prompts import Prompt, PromptSet

SETTINGS = default_settings(thresholds=(0.0, 0.5, 0.8, 0.95), criteria=("keys",), bits=(16, 4))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    model = load_model(save_tiny_model(tmp_path_factory.mktemp("model"), "llama"), device="cpu")
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def make_session(loaded: LoadedModel, *, seed: int = 0, requests: int = 4) -> QualitySession:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, 250, (20,), generator=torch.Generator().manual_seed(99)).tolist()
    prompts = PromptSet(
        "tiny",
        tuple(
            Prompt((*start, *torch.randint(1, 250, (51,), generator=generator).tolist()))
            for _ in range(requests)
        ),
    )
    return QualitySession(
        loaded, prompts, continuation=6, layers=(0, 1, 2), block_size=4, store_dtype="float32", batch_size=4
    )


@pytest.fixture(scope="module")
def session(loaded: LoadedModel) -> QualitySession:
    return make_session(loaded)


@pytest.mark.parametrize("limit", [1e-3, 2e-2, 0.3])
def test_the_plan_keeps_its_divergence_where_it_was_made(session: QualitySession, limit: float) -> None:
    plan = make_plan(session, "max_kl", limit, settings=SETTINGS, command=["x"])
    quality = session.measure(plan.settings)
    assert quality.kl.mean() == pytest.approx(plan.predicted["kl_here"])
    assert plan.predicted["kl"] <= limit
    assert quality.compression == pytest.approx(plan.predicted["compression"])
    assert plan.predicted["kl_low"] <= plan.predicted["kl"] <= plan.predicted["kl_high"]
    # No allocation that the model of harm allows takes fewer bytes than its bound.
    assert 1 / quality.compression >= plan.predicted["bytes_bound"] - 1e-9
    assert set(plan.settings) == {0, 1, 2}
    uniform = plan.predicted["uniform"]
    assert uniform is not None
    assert uniform["kl"] <= limit
    assert Method(**uniform["setting"]) in SETTINGS
    again = session.measure(dict.fromkeys((0, 1, 2), Method(**uniform["setting"])))
    assert again.kl.mean() == pytest.approx(uniform["kl"])
    assert again.compression == pytest.approx(uniform["compression"])


def test_a_tolerance_limits_the_band(session: QualitySession) -> None:
    """The band ends within the tolerance, which costs saving; with room for any band the mean decides."""
    planner = Planner(session, settings=SETTINGS)
    limit = 1.01 * planner.plan("max_kl", 0.1, tolerance=1e6).predicted["kl"]
    tight, wide = (planner.plan("max_kl", limit, tolerance=times).predicted for times in (1.0, 1e6))
    by_mean = planner.plan("max_kl", limit, tolerance=None).predicted
    assert wide["kl"] <= limit < wide["kl_high"]
    assert tight["kl_high"] <= limit
    assert tight["tolerance"] == 1.0
    assert tight["saving"] < wide["saving"]
    assert by_mean["kl_here"] <= limit
    assert by_mean["tolerance"] is None
    for wrong, message in ((0.9, "tolerance = 0.9: must be at least 1"), (math.nan, "tolerance = nan")):
        with pytest.raises(InputError, match=message):
            planner.plan("max_kl", 0.1, tolerance=wrong)


def test_foreseen_divergence_is_that_of_moved_thresholds(session: QualitySession) -> None:
    """Request by request the mean of three measurements; without fusion nothing moves."""
    plan = {0: Method("fusion", threshold=0.1), 1: Method("exact"), 2: Method("fusion", threshold=0.99)}
    expected = np.zeros(session.requests)
    for first, third in ((0.08, 0.97), (0.1, 0.99), (0.12, 1.0)):
        moved = {
            0: Method("fusion", threshold=first),
            1: Method("exact"),
            2: Method("fusion", threshold=third),
        }
        expected += session.measure(moved).kl.mean(axis=1) / 3
    assert foreseen_kl(Measurements(session), plan) == pytest.approx(expected)
    assert expected.max() > 0
    exact = {0: Method("exact")}
    assert foreseen_kl(Measurements(session), exact) == pytest.approx(session.measure(exact).kl.mean(axis=1))


def test_one_calibration_serves_many_goals(session: QualitySession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured or tried twice, and plans do not depend on what was planned before."""
    measured: list[str] = []
    tried = 0
    measure, try_layer = session.measure, session.try_layer

    def counted(methods: Any) -> Any:
        measured.append(repr(sorted(methods.items())))
        return measure(methods)

    def counted_trial(*arguments: Any) -> Any:
        nonlocal tried
        tried += 1
        return try_layer(*arguments)

    monkeypatch.setattr(session, "measure", counted)
    monkeypatch.setattr(session, "try_layer", counted_trial)
    planner = Planner(session, settings=SETTINGS)
    trials = tried
    plans = [planner.plan("max_kl", limit) for limit in (0.3, 0.02, 0.02)]
    assert tried == trials
    assert len(measured) == len(set(measured))
    assert plans[1].settings == plans[2].settings
    assert plans[0].predicted["saving"] >= plans[1].predicted["saving"]
    sensitivity = plans[0].predicted["sensitivity"]
    low, high = sensitivity["kl_without_one"]
    assert low <= plans[0].predicted["kl_here"] <= high
    exact = session.measure(dict.fromkeys((0, 1, 2), Method("exact")))
    share = (1 - 1 / exact.compression) / plans[0].predicted["saving"]
    assert sensitivity["exact_share"] == pytest.approx(max(0.0, share))


def test_a_single_request_has_no_band(loaded: LoadedModel) -> None:
    alone = make_session(loaded, requests=1)
    with pytest.raises(InputError, match="requests = 1: give no band; plan on at least two requests"):
        make_plan(alone, "max_kl", 0.02, settings=SETTINGS[:1])
    assert make_plan(alone, "max_kl", 0.02, settings=SETTINGS[:1], tolerance=None).predicted["kl"] <= 0.02


@pytest.mark.parametrize("limit", [1e-3, 0.05, 0.3])
def test_the_plan_keeps_its_relative_error(loaded: LoadedModel, limit: float) -> None:
    """Root mean square over requests and layers, foreseen with moved thresholds; no layer is weighed."""
    session = make_session(loaded)
    planner = Planner(session, settings=SETTINGS)
    plan = planner.plan("max_error", limit)
    assert "weight" not in vars(planner)
    error2 = session.measure(plan.settings).attention_error2
    assert plan.predicted["error_here"] == pytest.approx(math.sqrt(error2.mean()))
    shifted2 = foreseen(planner.measurements, plan.settings, "error2")
    assert plan.predicted["error"] == pytest.approx(math.sqrt(shifted2.mean()))
    assert plan.predicted["error"] <= limit
    assert plan.predicted["error_low"] <= plan.predicted["error"] <= plan.predicted["error_high"]
    assert plan.predicted["error_high"] <= 1.5 * limit
    assert plan.goal == {"max_error": limit}
    by_mean = planner.plan("max_error", limit, tolerance=None)
    assert by_mean.predicted["error_here"] <= limit
    assert by_mean.predicted["saving"] >= plan.predicted["saving"] - 1e-12
    uniform = plan.predicted["uniform"]
    again = session.measure(dict.fromkeys((0, 1, 2), Method(**uniform["setting"])))
    assert uniform["error"] == pytest.approx(math.sqrt(again.attention_error2.mean()))
    assert uniform["error"] <= limit


def test_more_error_saves_more_and_too_little_is_refused(session: QualitySession) -> None:
    planner = Planner(session, settings=SETTINGS)
    saved = [planner.plan("max_error", limit).predicted["saving"] for limit in (1e-3, 0.1, 0.5)]
    assert saved == sorted(saved)
    assert saved[0] < saved[-1]
    lossy = Planner(session, settings=[Method("fusion", threshold=-1.0)])
    with pytest.raises(
        InputError, match=r"max_error = 0.001: is out of reach: the least that these"
    ) as found:
        lossy.plan("max_error", 0.001, tolerance=None)
    least = float(str(found.value).split()[-1])
    assert lossy.plan("max_error", 1.01 * least, tolerance=None).predicted["error_here"] <= 1.01 * least


def test_settings_are_needed(session: QualitySession) -> None:
    with pytest.raises(InputError, match=r"settings = \[\]: name at least one"):
        Planner(session, settings=[])


def test_checking_measures_plan_and_uniform_on_other_requests(
    session: QualitySession, loaded: LoadedModel
) -> None:
    plan = make_plan(session, "max_kl", 0.05, settings=SETTINGS)
    other = make_session(loaded, seed=7)
    checked = check_plan(plan, other)
    quality = other.measure(plan.settings)
    assert checked["kl_measured"] == pytest.approx(quality.kl.mean())
    assert checked["error_measured"] == pytest.approx(math.sqrt(quality.attention_error2.mean()))
    assert checked["compression_measured"] == pytest.approx(quality.compression)
    within = plan.predicted["kl_low"] <= quality.kl.mean() <= plan.predicted["kl_high"]
    assert checked["kl_within_band"] == within
    single = other.measure(dict.fromkeys((0, 1, 2), Method(**plan.predicted["uniform"]["setting"])))
    assert checked["uniform_kl_measured"] == pytest.approx(single.kl.mean())
    assert checked["uniform_compression_measured"] == pytest.approx(single.compression)
    without = dataclasses.replace(plan, predicted=plan.predicted | {"uniform": None})
    assert check_plan(without, other)["uniform_kl_measured"] is None
    with pytest.raises(InputError, match="plan again"):
        check_plan(dataclasses.replace(plan, weights_hash="0"), other)


def test_more_divergence_saves_more(session: QualitySession) -> None:
    saved = [
        make_plan(session, "max_kl", limit, settings=SETTINGS).predicted["compression"]
        for limit in (1e-6, 2e-2, 5.0)
    ]
    assert saved == sorted(saved)
    assert saved[0] < saved[-1]
    steep, flat = (
        make_plan(session, "slope", slope, settings=SETTINGS).predicted["kl"] for slope in (1e-5, 1e3)
    )
    assert steep < flat


def test_saving_is_what_was_asked_for(session: QualitySession) -> None:
    plan = make_plan(session, "min_saving", 0.5, settings=SETTINGS)
    quality = session.measure(plan.settings)
    assert 1 - 1 / quality.compression >= 0.5
    assert plan.predicted["saving"] == pytest.approx(1 - 1 / quality.compression)
    with pytest.raises(
        InputError, match=r"min_saving = 0.999: is out of reach: the most that these settings"
    ):
        make_plan(session, "min_saving", 0.999, settings=SETTINGS)


def test_a_layer_alone_is_the_layer_within_the_whole(session: QualitySession) -> None:
    """Bytes and attention error of a trial are those that measuring the same single layer gives."""
    method = Method("fusion", threshold=0.5)
    trial = session.try_layer(1, method)
    whole, nothing = session.measure({1: method}), session.measure({})
    assert trial.attention_error2 == pytest.approx(whole.attention_error2[1], rel=1e-9)
    assert whole.attention_error2[[0, 2]] == pytest.approx(0.0)
    layer_bytes = nothing.bytes.sum() / 3
    assert trial.bytes == pytest.approx(whole.bytes.sum() - 2 * layer_bytes)
    assert nothing.kl.max() == 0


def test_out_of_reach_says_what_the_best_is(session: QualitySession) -> None:
    lossy = [Method("fusion", threshold=-1.0)]
    with pytest.raises(
        InputError, match=r"max_kl = 1e-09: is out of reach: the least that these settings do is"
    ):
        make_plan(session, "max_kl", 1e-9, settings=lossy)


def test_the_band_covers_other_requests() -> None:
    """Of 2,000 pairs of means of 12 draws, 90 % of the second ones within 4 standard errors of that share."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        first, second = random.normal(5.0, 1.0, (2, 12))
        _, low, high = mean_with_band(first)
        covered += low <= second.mean() <= high
    assert abs(covered / 2000 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 2000)
    assert mean_with_band(np.array([1.0])) == (1.0, 0.0, math.inf)


def make_file_plan() -> CachePlan:
    return CachePlan(
        model="m",
        weights_hash="ab" * 32,
        layers=6,
        block_size=16,
        settings={2: Method("fusion", threshold=0.8), 3: Method("exact", coding="kivi", bits=4)},
        goal={"max_kl": 0.02},
        predicted={"kl": 0.019},
    )


def test_the_file_reads_back(tmp_path: Path) -> None:
    plan, path = make_file_plan(), tmp_path / "plan.json"
    write_plan(plan, path)
    assert read_plan(path) == plan
    with pytest.raises(InputError, match="exists already"):
        write_plan(plan, path)
    write_plan(dataclasses.replace(plan, layers=7), path, force=True)
    assert read_plan(path).layers == 7


def test_bad_files_are_named(tmp_path: Path, loaded: LoadedModel) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(InputError, match="no such file; make one with ratedist plan"):
        read_plan(path)
    data = json.loads(make_file_plan().to_json())
    for change, message in (
        ("nothing", "is not a plan"),
        ("[]", "has schema 'list'"),
        (data | {"schema": "ratedist/plan/9"}, "this version of ratedist reads 'ratedist/plan/1'"),
        ({key: value for key, value in data.items() if key != "goal"}, "is damaged"),
        (data | {"settings": {"x": {}}}, "is damaged"),
        (data | {"settings": {"1": {"threshold": 7.0}}}, "is damaged"),
    ):
        path.write_text(change if isinstance(change, str) else json.dumps(change))
        with pytest.raises(RatedistError, match=message):
            read_plan(path)
    with pytest.raises(InputError, match="plan again for this one"):
        make_file_plan().check(loaded)
    dataclasses.replace(make_file_plan(), weights_hash=loaded.weights_hash, layers=loaded.layers).check(
        loaded
    )


@pytest.mark.parametrize(
    ("goal", "value", "message"),
    [
        ("max_ppl", 1.0, "goal = 'max_ppl': must be one of max_kl"),
        ("max_kl", 0.0, "max_kl = 0.0: must be positive"),
        ("max_kl", math.nan, "max_kl = nan"),
        ("max_error", -1.0, "max_error = -1.0: must be positive"),
        ("min_saving", 1.0, "a share below 1"),
    ],
)
def test_refuses(session: QualitySession, goal: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(session, goal, value, settings=SETTINGS)


def test_settings_are_refused() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"bits": ()}, r"bits = \[\]: name at least one"),
        ({"bits": (9,)}, "bits = 9: must be 16, or 1 to 8"),
        ({"variants": ()}, r"variant = \[\]: name at least one"),
        ({"scales": ("raw", "raw")}, r"scale = \['raw', 'raw'\]: names one twice"),
        ({"modes": ("aff",)}, "mode = 'aff': must be one of bff, cff"),
        ({"modes": ("cff",), "chunk_blocks": 0}, "chunk_blocks = 0: must be a whole number of blocks"),
    )
    for given, message in refused:
        with pytest.raises(InputError, match=message):
            default_settings(**given)


def test_settings_are_all_combinations() -> None:
    options: dict[str, Any] = {"thresholds": (0.5,), "criteria": ("keys", "both"), "bits": (16, 3)}
    assert [(m.name, m.criterion) for m in default_settings(**options)] == [
        ("exact", "keys"),
        ("fusion", "keys"),
        ("fusion", "both"),
        ("exact+kivi3", "keys"),
        ("fusion+kivi3", "keys"),
        ("fusion+kivi3", "both"),
    ]
    options |= {"variants": ("leader", "tree"), "scales": ("raw", "projection"), "modes": ("bff", "cff")}
    found = default_settings(**options, chunk_blocks=3)
    assert len(found) == len(set(found)) == 2 * 2 * (1 + 2 * 2 * 2)
    assert {(m.mode, m.chunk_blocks) for m in found} == {("bff", None), ("cff", 3)}


def test_every_layer_takes_its_own_variant_scale_and_mode(session: QualitySession) -> None:
    """With more to choose from, a plan does no more harm, and what it is predicted to save is measured."""
    wide = default_settings(
        (0.0, 0.5, 0.8),
        ("keys",),
        (16,),
        variants=("leader", "tree"),
        scales=("own-norm", "raw"),
        modes=("bff", "cff"),
        chunk_blocks=3,
    )
    narrow = [m for m in wide if (m.variant, m.scale, m.mode) == ("leader", "own-norm", "bff")]
    few, many = (Planner(session, settings=chosen) for chosen in (narrow, wide))
    kinds = set()
    for saving in (0.1, 0.3, 0.5, 0.6):
        harm = [planner.choose("min_saving", saving).harm for planner in (few, many)]
        assert harm[1] <= harm[0]
        chosen = many.trials.methods(many.choose("min_saving", saving))
        assert set(chosen.values()) <= set(wide)
        assert 1 - 1 / session.measure(chosen).compression >= saving - 1e-9
        kinds |= {(method.variant, method.scale, method.mode) for method in chosen.values()}
    assert len(kinds) > 1
