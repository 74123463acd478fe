"""Plans from the laws of a capture, against predictors, bytes and all allocations by hand."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ratedist.cli import main
from ratedist.errors import InputError
from ratedist.predictors import predictor_class
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.store import Capture
from ratedist.validate.planning.from_laws import foretell, plan_from_laws
from ratedist.validate.planning.layer_bytes import LayerBytes
from ratedist.validate.planning.layer_settings import layer_settings
from ratedist.validate.planning.plan_file import read_plan
from ratedist.validate.planning.trials import default_settings
from ratedist.validate.planning.unseen import compare_plan
from ratedist.validate.quality.methods import Method

SETTINGS = default_settings((0.3, 0.5, 0.8), ("keys", "both"), (16,), variants=("leader", "tree"))


@pytest.fixture
def capture(make_capture) -> Capture:
    return make_capture("one", lengths=(64, 70, 64, 80, 64, 64, 96, 64))


def test_settings_are_foretold_by_the_predictor(capture: Capture) -> None:
    """Two layers, every setting, for three times the requests that laws are fitted to."""
    foretold, size = foretell(capture, SETTINGS, requests=4, serve=12)
    assert foretold.layers == (2, 3)
    lengths = (64, 70, 64, 80) * 3
    expected_size = LayerBytes(lengths, 16, 2, 8, 4)
    assert size == expected_size
    for row, layer in enumerate(foretold.layers):
        sample = pair_sample(capture.layer(layer, [0, 1, 2, 3]))
        for column, method in enumerate(SETTINGS):
            fitted = predictor_class("heterogeneous")(sample, criterion=method.criterion)
            threshold = 1.0 if method.sharing == "exact" else method.threshold
            blocks = [length // 16 for length in lengths]
            expected = fitted.predict(blocks, [threshold], variant=method.variant)
            stored = expected_size.stored(method, float(expected.kept[0]))
            assert foretold.bytes[row, column] == pytest.approx(stored)
            assert expected.kept_high is not None
            high = expected_size.stored(method, float(expected.kept_high[0]))
            assert foretold.bytes_high[row, column] == pytest.approx(high)
            assert foretold.k_error[row, column] == pytest.approx(expected.k_error[0])
            assert foretold.v_error[row, column] == pytest.approx(expected.v_error[0])


@pytest.mark.parametrize("limit", [0.01, 0.3, 2.0])
def test_a_plan_is_what_its_predictors_say(capture: Capture, limit: float) -> None:
    """It keeps the error, and saves nearly what the best of all allocations of two layers saves."""
    plan = plan_from_laws(capture, "max_kv_error", limit, settings=SETTINGS, command=["me"])
    foretold, size = foretell(capture, SETTINGS, requests=8, serve=8)
    columns = [SETTINGS.index(plan.settings[layer]) for layer in foretold.layers]

    def of(chosen: tuple[int, ...]) -> tuple[float, float]:
        rows = (0, 1)
        squares = [foretold.k_error[rows, chosen] ** 2, foretold.v_error[rows, chosen] ** 2]
        return float(foretold.bytes[rows, chosen].sum()), math.sqrt(np.mean(squares))

    stored, error = of(tuple(columns))
    unfused = 6 * size.unfused
    assert plan.predicted["compression"] == pytest.approx(unfused / (stored + 4 * size.unfused))
    assert plan.predicted["kv_error"] == pytest.approx(error)
    assert error <= limit * (1 + 1e-9)
    every = [of(chosen) for chosen in itertools.product(range(len(SETTINGS)), repeat=2)]
    best = min(found for found, cost in every if cost <= limit)
    assert stored <= 1.1 * best
    predicted = plan.predicted
    assert predicted["compression_low"] <= predicted["compression"] <= predicted["compression_high"]
    assert (predicted["requests"], predicted["calibration_requests"]) == (8, 8)
    assert predicted["kl"] is predicted["kl_low"] is None
    uniform = [
        (foretold.bytes[:, column].sum(), column)
        for column in range(len(SETTINGS))
        if of((column, column))[1] <= limit
    ]
    single = Method(**predicted["uniform"]["setting"])
    assert SETTINGS.index(single) == min(uniform)[1]
    assert predicted["uniform"]["compression"] == pytest.approx(
        unfused / (min(uniform)[0] + 4 * size.unfused)
    )
    assert (plan.model, plan.weights_hash, plan.layers) == ("random", "0" * 64, 6)


def test_a_saving_is_reached_and_unreachable_ones_name_the_best(capture: Capture) -> None:
    plan = plan_from_laws(capture, "min_saving", 0.1, settings=SETTINGS)
    assert plan.predicted["saving"] >= 0.1
    with pytest.raises(
        InputError, match=r"min_saving = 0.9: is out of reach: the most that these .* save is"
    ) as out:
        plan_from_laws(capture, "min_saving", 0.9, settings=SETTINGS)
    most = float(str(out.value).split()[-1])
    nearly = plan_from_laws(capture, "min_saving", most - 1e-4, settings=SETTINGS)
    assert nearly.predicted["saving"] == pytest.approx(most, abs=2e-4)


def test_more_requests_in_service_save_more(capture: Capture) -> None:
    few, many = (
        plan_from_laws(capture, "max_kv_error", 2.0, settings=SETTINGS, requests=4, serve=serve)
        for serve in (4, 32)
    )
    assert many.predicted["requests"] == 32
    assert many.predicted["saving"] > few.predicted["saving"]


def test_the_plan_is_usable_by_a_cache_and_by_validate(capture: Capture) -> None:
    plan = plan_from_laws(capture, "min_saving", 0.1, settings=SETTINGS)
    assert set(layer_settings(plan)) == {2, 3}
    (total,) = compare_plan([capture], plan).summary
    assert total["compression_measured"] > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"goal": "max_kl"},
            "goal = 'max_kl': must be one of max_kv_error, min_saving: a law of similarity does",
        ),
        ({"value": -1.0}, "max_kv_error = -1.0: must be positive"),
        ({"settings": default_settings((0.5,), bits=(16, 4))}, "bits = 4: are rounding, which laws"),
        (
            {"settings": [Method("fusion", criterion="mean")]},
            "settings: criterion = 'mean': is not predicted",
        ),
        ({"requests": 9}, "requests = 9: must lie in 2 … 8, which the capture holds"),
        ({"requests": 1}, "requests = 1: must lie in 2 … 8"),
        ({"serve": 4}, "serve = 4: must be at least the 8 requests that laws are fitted to"),
        (
            {"settings": [Method("fusion", threshold=-1.0)], "value": 1e-4},
            "max_kv_error = 0.0001: is out of reach: the least that these settings do is",
        ),
    ],
)
def test_refuses(capture: Capture, changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"goal": "max_kv_error", "value": 0.2, "settings": SETTINGS} | changes
    with pytest.raises(InputError, match=message):
        plan_from_laws(capture, given.pop("goal"), given.pop("value"), **given)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", "plan", "--from-laws", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, " ".join(printed.err.split())

    return call


def test_the_command(run, capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ratedist.validate.models.load_model", never)
    out = tmp_path / "plan.json"
    given = ("--capture", capture.folder, "--threshold", 0.3, 0.5, 0.8, "--variant", "leader", "tree")
    code, printed, err = run(*given, "--max-kv-error", 0.3, "--json", "--out", out)
    assert code == 0, err
    result, plan = json.loads(printed), read_plan(out)
    assert plan.settings == plan_from_laws(capture, "max_kv_error", 0.3, settings=SETTINGS).settings
    assert result["compression_predicted"] == plan.predicted["compression"]
    assert result["compression_low"] == plan.predicted["compression_low"]
    assert result["kv_error"] == plan.predicted["kv_error"]
    assert result["kl_predicted"] is result["error_predicted"] is None
    code, printed, err = run(*given, "--min-saving", 0.1)
    assert code == 0, err
    assert "foretold for 8 requests by heterogeneous, fitted to 8: " in printed
    assert "what the model makes of it is not known" in " ".join(printed.split())
    for arguments, message in (
        (
            ("--max-kl", 0.02),
            "max_kl = 0.02: cannot be planned from laws of similarity, which do not tell what",
        ),
        (("--max-kv-error", 0.1, "--min-saving", 0.1), "give exactly one of --max-kv-error, --min-saving"),
        (("--min-saving", 0.1, "--check"), "check = True: needs the model; leave it out, or --from-laws"),
        (("--min-saving", 0.1, "--bits", 4), "bits = 4: are rounding"),
        (("--min-saving", 0.1, "--out", out), "exists already; choose another path or pass --force"),
    ):
        code, _, err = run(*given, *arguments)
        assert code == 2
        assert message in err
    code, _, err = run("--min-saving", 0.1)
    assert code == 2
    assert "capture = None: name the folder whose laws to plan from" in err


def test_without_laws_there_is_another_error_to_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ratedist", "plan", "--max-kv-error", "0.1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "max_kv_error = 0.1: goes with --from-laws; with a model, --max-error" in printed
