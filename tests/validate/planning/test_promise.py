"""The experiment on plans: a cell against measurements made by hand, its files, summary and command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tokenizer

from ratedist.cli import main as run_command
from ratedist.errors import InputError, RatedistError
from ratedist.records import read_record
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning import promise, promise_run
from ratedist.validate.planning.make import make_plan
from ratedist.validate.planning.measurements import Measured, Measurements
from ratedist.validate.planning.promise import PromiseSettings, promise_cell, uniform_curve
from ratedist.validate.planning.promise_run import PROMISE_SCHEMA, run_promise
from ratedist.validate.planning.promise_summary import summarise_promise
from ratedist.validate.planning.trials import default_settings
from ratedist.validate.quality.methods import Method

SETTINGS = PromiseSettings(
    max_kl=0.05,
    goals=(0.005, 0.5),
    requests=3,
    tokens=96,
    continuation=6,
    settings=tuple(default_settings(thresholds=(0.5, 0.8), criteria=("keys",), bits=(16,))),
    drift=("edited",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six layers, two of them between the first and last two, whose weights are large
    enough that fusion does harm."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("models") / "six-layers"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def cell(loaded: LoadedModel) -> dict[str, Any]:
    def held_out(workload: str, seed: int) -> Measurements:
        return Measurements(SETTINGS.session(loaded, SETTINGS.draw(loaded, workload, seed)[1]))

    return promise_cell(loaded, "templates", 1, SETTINGS, held_out)


def test_a_cell_against_measurements_by_hand(loaded: LoadedModel, cell: dict[str, Any]) -> None:
    """The plan is that of the first half of the requests, and what is measured is on the second."""
    first, second = SETTINGS.draw(loaded, "templates", 1)
    assert not {p.token_ids for p in first.prompts} & {p.token_ids for p in second.prompts}
    assert len(first.prompts) == len(second.prompts) == 3
    plan = make_plan(SETTINGS.session(loaded, first), "max_kl", 0.05, settings=SETTINGS.settings)
    held_out = SETTINGS.session(loaded, second)
    quality = held_out.measure(plan.settings)
    assert cell["plan"]["kl_predicted"] == pytest.approx(plan.predicted["kl"])
    assert cell["plan"]["kl_high"] == pytest.approx(plan.predicted["kl_high"])
    assert cell["plan"]["kl_high"] <= 1.5 * 0.05
    assert cell["plan"]["kl_measured"] == pytest.approx(quality.kl.mean())
    assert cell["plan"]["compression_measured"] == pytest.approx(quality.compression)
    assert cell["plan"]["saving_measured"] == pytest.approx(1 - 1 / quality.compression)
    assert cell["kl_kept"] == (quality.kl.mean() <= 0.075)
    assert cell["sensitivity"] == plan.predicted["sensitivity"]
    ((drift),) = cell["drift"]
    other = SETTINGS.session(loaded, SETTINGS.draw(loaded, "edited", 1)[1]).measure(plan.settings)
    assert (drift["to"], drift["kl"]) == ("edited", pytest.approx(other.kl.mean()))
    assert cell["by_mean"]["saving_predicted"] >= cell["plan"]["saving_predicted"] - 1e-9
    assert {(point["by"], point["goal"]) for point in cell["plans"]} == {
        ("band", 0.05),
        ("mean", 0.05),
        ("band", 0.005),
        ("band", 0.5),
    }
    json.dumps(cell, allow_nan=False)


def test_the_rival_is_the_best_single_setting_within_the_divergence(
    loaded: LoadedModel, cell: dict[str, Any]
) -> None:
    limit = cell["plan"]["kl_measured"]
    within = [point for point in cell["uniform"] if point["kl"] <= limit]
    best = max(within, key=lambda point: point["saving"])
    assert cell["hindsight"]["saving"] == best["saving"]
    assert cell["hindsight"]["kl"] <= limit
    held_out = SETTINGS.session(loaded, SETTINGS.draw(loaded, "templates", 1)[1])
    method = Method("fusion" if "fusion" in best["method"] else "exact", criterion="keys")
    again = held_out.measure(dict.fromkeys(held_out.layers, replace(method, threshold=best["threshold"])))
    assert again.kl.mean() == pytest.approx(best["kl"])
    enough = cell["plan"]["saving_measured"] >= 0.9 * best["saving"]
    assert cell["hindsight"]["kept"] == enough


class Law:
    """In the place of measurements: divergence (1 − threshold)², saving 1 − threshold; counts."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def uniform(self, method: Method) -> Measured:
        threshold = 1.0 if method.sharing == "exact" else method.threshold
        self.asked.append(threshold)
        return Measured(np.array([(1 - threshold) ** 2]), 1 / threshold, np.zeros(1))


def test_single_settings_are_walked_and_refined_where_the_limit_falls() -> None:
    """From 0.9 to 0.6, where the divergence exceeds 0.1; the limit of 0.02 falls between 0.85 and 0.875."""
    settings = default_settings(thresholds=(0.5, 0.6, 0.8, 0.9), criteria=("keys",), bits=(16,))
    law = Law()
    found = uniform_curve(law, settings, refine_at=0.02, beyond=0.1)  # type: ignore[arg-type]
    thresholds = [method.threshold for method, _ in found]
    assert thresholds == pytest.approx([1.0, 0.9, 0.875, 0.85, 0.8, 0.6])
    assert len(law.asked) == len(found)
    harmless = uniform_curve(Law(), settings, refine_at=1.0, beyond=2.0)  # type: ignore[arg-type]
    assert len(harmless) == len(settings)


def made_up(workload: str, seed: int, **changes: Any) -> dict[str, Any]:
    plan = {
        "kl_predicted": 0.02,
        "kl_low": 0.015,
        "kl_high": 0.025,
        "kl_measured": 0.022,
        "compression_predicted": 1.2,
        "compression_measured": 1.25,
        "saving_predicted": 1 - 1 / 1.2,
        "saving_measured": 0.2,
    }
    rival = {
        "method": "fusion",
        "criterion": "keys",
        "threshold": 0.9,
        "kl": 0.02,
        "saving": 0.1,
        "compression": 1 / 0.9,
        "share": 2.0,
        "kept": True,
    }
    row = {
        "workload": workload,
        "seed": seed,
        "max_kl": 0.02,
        "tolerance": 1.5,
        "plan": plan | changes.pop("plan", {}),
        "by_mean": plan | {"kl_measured": 0.031, "saving_measured": 0.25},
        "kl_kept": True,
        "hindsight": rival | changes.pop("hindsight", {}),
        "hindsight_within_goal": rival,
        "bd_rate": {"percent": -5.0},
        "sensitivity": {
            "exact_share": 0.5,
            "heaviest_share": 0.1 + 0.1 * seed,
            "ln_kl_per_hundredth": 0.1 * seed or None,
        },
        "drift": [{"to": "unrelated", "kl": 0.04, "saving": 0.05, "compression": 1 / 0.95}],
    }
    return row | changes


def entries(summary: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in summary if entry["kind"] == kind]


def test_the_summary_counts_and_names_failures_first() -> None:
    rows = [made_up("good", seed) for seed in range(8)]
    rows.append(made_up("bad", 0, kl_kept=False, plan={"kl_measured": 0.05}, bd_rate={"percent": 3.0}))
    rows.append(made_up("bad", 1, hindsight={"kept": False, "saving": 0.3}, bd_rate={"percent": None}))
    summary = summarise_promise(rows)
    goals = {entry["name"]: (entry["kept"], entry["of"], entry["met"]) for entry in entries(summary, "goal")}
    assert goals == {"divergence": (9, 10, True), "saving": (9, 10, True), "bd-rate": (1, 2, False)}
    (prediction,) = entries(summary, "prediction")
    assert prediction["kl_band_coverage"] == pytest.approx(0.9)
    expected = np.exp((9 * np.log(1.1) + np.log(2.5)) / 10)
    assert prediction["kl_ratio_geometric_mean"] == pytest.approx(expected)
    (tolerance,) = entries(summary, "tolerance")
    assert (tolerance["kept_by_band"], tolerance["kept_by_mean"]) == (9, 0)
    (drift,) = entries(summary, "drift")
    assert (drift["cells"], drift["kl_kept"], drift["kl_highest"]) == (10, 0, 0.04)
    words = [entry["text"] for entry in entries(summary, "words")]
    assert words[0].startswith("missed: fewer bytes than single settings")
    text = " ".join(words)
    assert "Divergence above the limit on bad (0.0500, 0.0220)." in text
    assert "fall short in some cell: bad (20.0% against 20.0%)." in text
    assert "does not beat single ones on bad (+3.0 %)." in text
    assert "9 of 10 cells" in text


def test_the_summary_ranks_sensitivities_against_what_was_off() -> None:
    """Heavier shares go with larger errors here; of the other measure too few cells have one."""
    rows = [made_up("one", seed, plan={"kl_measured": 0.02 * 1.1 ** (seed + 1)}) for seed in range(3)]
    (found,) = entries(summarise_promise(rows), "sensitivity")
    assert found["cells"] == 3
    assert found["rank_correlation_heaviest_share"] == pytest.approx(1.0)
    assert found["rank_correlation_ln_kl_per_hundredth"] is None


def test_a_run_goes_on_and_refuses_other_cells(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def fake(loaded: LoadedModel, workload: str, seed: int, *args: Any, **options: Any) -> dict[str, Any]:
        made.append((workload, seed))
        return made_up(workload, seed)

    monkeypatch.setattr(promise_run, "promise_cell", fake)
    workloads, seeds = ("templates", "mixture:edited=1,templates=3"), (0, 1)

    def run(folder: Path = tmp_path, settings: PromiseSettings = SETTINGS, **options: Any) -> Any:
        return run_promise(loaded, workloads, seeds, settings, folder, **options)

    assert run(stop_after=-1.0) is None
    assert made == []
    shares: list[float] = []
    record = run(progress=lambda share, what: shares.append(share), command=["me"])
    assert made == [(workload, seed) for seed in seeds for workload in workloads]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [(row["workload"], row["seed"]) for row in record.rows] == [
        (w, s) for w in workloads for s in seeds
    ]
    assert record.schema == PROMISE_SCHEMA
    assert record.provenance["max_kl"] == 0.05
    assert record.provenance["missing"] == []
    made.clear()
    next((tmp_path / "cells").glob("templates-seed-1*")).unlink()
    part = run(stop_after=-1.0)
    assert part.rows == [row for row in record.rows if (row["workload"], row["seed"]) != ("templates", 1)]
    assert part.provenance["missing"] == ["templates, seed 1"]
    words = [entry["text"] for entry in entries(part.summary, "words")]
    assert words[0] == "Not all is measured: 3 of 4 cells, without templates, seed 1."
    assert made == []
    assert run().rows == record.rows
    assert made == [("templates", 1)]
    made.clear()
    assert run(stop_after=-1.0).rows == record.rows
    assert made == []
    with pytest.raises(InputError, match=r"was made otherwise \(max_kl differ\); name another folder"):
        run(settings=replace(SETTINGS, max_kl=0.01))
    run(settings=replace(SETTINGS, max_kl=0.01), force=True)
    assert len(made) == 4
    for path in (tmp_path / "cells").iterdir():
        path.write_text("{")
    with pytest.raises(RatedistError, match=r"cannot be read .*; delete it and run the same command again"):
        run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workloads": ()}, r"workloads = \[\]: name at least one, and each once"),
        ({"seeds": (1, 1)}, r"seeds = \[1, 1\]: name at least one, and each once"),
        ({"workloads": ("weather",)}, "workload = 'weather': must be one of"),
    ],
)
def test_refuses(loaded: LoadedModel, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"workloads": ("templates",), "seeds": (0,)} | changes
    with pytest.raises(InputError, match=message):
        run_promise(loaded, given["workloads"], given["seeds"], SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_are_refused() -> None:
    with pytest.raises(InputError, match="requests = 1: needs at least two"):
        replace(SETTINGS, requests=1)
    with pytest.raises(InputError, match="must have exact sharing alone among them"):
        replace(SETTINGS, settings=(Method("fusion", threshold=0.9),))


def test_the_command_writes_record_and_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(loaded: LoadedModel, workload: str, seed: int, *args: Any, **options: Any) -> dict[str, Any]:
        return made_up(workload, seed, kl_kept=False)

    monkeypatch.setattr(promise_run, "promise_cell", fake)
    out = tmp_path / "out"

    def main(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ratedist", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command()
        return int(ended.value.code or 0)

    arguments = ["plan-check", "--model", str(folder), "--workload", "templates", "--seeds", "0", "1"]
    arguments += ["--requests", "2", "--tokens", "96", "--continue", "4", "--out", str(out)]
    assert main(*arguments, "--stop-after", "-1") == 0
    assert not (out / "plan-check.json").exists()
    assert main(*arguments, "--judge") == 1
    assert "missed: divergence at most 0.03 nats" in " ".join(capsys.readouterr().out.split())
    record = read_record(out / "plan-check.json", PROMISE_SCHEMA)
    assert len(record.rows) == 2
    assert (out / "plan-check.png").stat().st_size > 10_000
    assert main(*arguments, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    (tmp_path / "file").write_text("")
    assert main(*arguments[:-1], str(tmp_path / "file")) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_bd_rate_of_plans_that_take_a_tenth_less() -> None:
    points = ((0.01, 0.9), (0.02, 0.8), (0.05, 0.6))
    uniform = [Measured(np.array([kl]), 1 / share, np.zeros(1)) for kl, share in points]
    plans = [{"kl": found.mean_kl, "saving": 1 - 0.9 * (1 - found.saving)} for found in uniform]
    found = promise._bd_rate(uniform, plans)
    assert found["percent"] == pytest.approx(-10.0)
    assert found["overlap"] == pytest.approx(1.0)
    alone = promise._bd_rate(uniform, plans[:1])
    assert alone["percent"] is None
    assert "at least 2 are needed" in alone["reason"]
