"""Transfer between models and workloads, on synthetic captures."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ratedist.cli import main
from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.predictors import predictor_class
from ratedist.records import Record, read_record
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.store import Capture
from ratedist.validate.measure import measure
from ratedist.validate.suite.splits import draw_calibration, draw_split
from ratedist.validate.transfer.matched import match_captures, matched_layers, pairs_of
from ratedist.validate.transfer.rows import relation
from ratedist.validate.transfer.run import SCHEMA, TransferPlan, run_transfer
from ratedist.validate.transfer.summary import describe
from ratedist.validate.transfer.thresholds import GRID, Goal

PLAN = TransferPlan(
    calibrate=4,
    measure=5,
    layers=2,
    goals=(Goal("k_error", 0.3), Goal("v_error", 0.3), Goal("compression", 1.3)),
    thresholds=(0.6, 0.7, 0.8),
    predictors=("gaussian", "position-marked"),
)

Maker = Callable[..., Capture]


@pytest.fixture
def make(make_capture: Maker, tmp_path: Path) -> Maker:
    """As ``make_capture``, in a folder that is named after the model too."""

    def moved(workload: str, model: str = "one", **options: Any) -> Capture:
        made = make_capture(workload, model=model, weights_hash=model.ljust(64, "0"), **options)
        folder = tmp_path / "models" / model / workload
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made.folder, folder)
        return Capture.open(folder)

    return moved


@pytest.fixture
def captures(make: Maker) -> list[Capture]:
    deep = {"layers": range(10), "model_layers": 10}
    return [
        make("a", "one", lengths=(64,) * 12),
        make("b", "one", lengths=(64,) * 12, seed=1, shared_tokens=32),
        make("a", "two", lengths=(80,) * 11, seed=2, **deep),
    ]


@pytest.fixture
def record(captures: list[Capture], tmp_path: Path) -> Record:
    return run_transfer(captures, PLAN, tmp_path / "out", command=["test"])


def kind(record: Record, name: str) -> list[dict[str, Any]]:
    return [row for row in record.rows if row["kind"] == name]


def test_layers_are_matched_by_depth(captures: list[Capture]) -> None:
    assert matched_layers(captures[2], 3) == [2, 4, 7]
    assert matched_layers(captures[2], 1) == [5]
    assert matched_layers(captures[0], 2) == [2, 3]
    for count in (0, 3):
        with pytest.raises(InputError, match=rf"layers = {count}: must lie in 1 … 2, the layers of .* fused"):
            matched_layers(captures[0], count)


def test_a_matched_capture_is_part_of_its_source(captures: list[Capture]) -> None:
    matched = match_captures(captures, 2)
    assert [m.manifest.requests for m in matched] == [11, 11, 11]
    assert [m.manifest.workload for m in matched] == ["one · a", "one · b", "two · a"]
    third = matched[2]
    for number, real in enumerate((2, 7)):
        mine, whole = third.layer(number), captures[2].layer(real, range(11))
        assert (mine.k == whole.k).all()
        assert (third.layer(number, [3, 1]).v == captures[2].layer(real, [3, 1]).v).all()
    with pytest.raises(InputError, match="must lie in 0 … 10"):
        matched[0].layer(0, [11])
    with pytest.raises(InputError, match="is not captured"):
        matched[0].layer(2)


def test_one_workload_is_split_alike_for_every_model(captures: list[Capture]) -> None:
    first, other, third = (m.manifest for m in match_captures(captures, 2))
    for seed in range(4):
        one, two = draw_split(first, 4, 5, seed), draw_split(third, 4, 5, seed)
        assert one == two
        assert not set(draw_calibration(third, 4, seed)) & set(one.held_out)
    assert any(draw_split(first, 4, 5, seed) != draw_split(other, 4, 5, seed) for seed in range(4))


def test_pairs_share_a_model_or_a_workload(captures: list[Capture]) -> None:
    one, two, three = match_captures(captures, 2)
    assert {
        (s.manifest.workload, t.manifest.workload): relation(s, t) for s, t in pairs_of([one, two, three])
    } == {
        ("one · a", "one · a"): "own",
        ("one · b", "one · b"): "own",
        ("two · a", "two · a"): "own",
        ("one · a", "one · b"): "other workload",
        ("one · b", "one · a"): "other workload",
        ("one · a", "two · a"): "other model",
        ("two · a", "one · a"): "other model",
    }


def test_rows_are_predicted_there_and_measured_here(record: Record, captures: list[Capture]) -> None:
    """By hand: two · a calibrates, one · a is fused."""
    source, target = captures[2], captures[0]
    rows = kind(record, "prediction")
    assert len(rows) == 7 * 2 * 2 * 3 * 2  # pairs, layers, seeds, thresholds, predictors
    ends = {"source_model": "two", "source_workload": "a", "model": "one", "workload": "a", "seed": 1}
    found = [row for row in rows if ends.items() <= row.items()]
    assert {(row["source_layer"], row["layer"]) for row in found} == {(2, 2), (7, 3)}
    split = draw_split(match_captures(captures, 2)[0].manifest, 4, 5, 1)
    held_out = target.layer(3, split.held_out)
    sample = pair_sample(source.layer(7, split.calibration))
    for row in (row for row in found if row["layer"] == 3):
        fusion = fuse(held_out, threshold=row["threshold"])
        assert row["compression_measured"] == pytest.approx(fusion.candidates / fusion.kept, rel=1e-5)
        prediction = predictor_class(row["predictor"])(sample, criterion="keys").predict(
            held_out.table.full_blocks.numpy(), [row["threshold"]], variant="leader"
        )
        assert row["compression_predicted"] == pytest.approx(float(prediction.compression[0]), rel=1e-5)
        ratio = abs(math.log(row["compression_predicted"] / row["compression_measured"]))
        assert row["abs_log_ratio"] == pytest.approx(ratio, abs=1e-5)
        assert row["relation"] == "other model"


def test_thresholds_are_chosen_there_and_applied_here(record: Record, captures: list[Capture]) -> None:
    source, target = captures[1], captures[0]
    rows = kind(record, "threshold")
    assert len(rows) == 7 * 2 * 2 * 3  # pairs, layers, seeds, goals
    matched = match_captures(captures, 2)
    for row in rows:
        if (row["source_workload"], row["workload"], row["layer"], row["seed"]) != ("b", "a", 2, 0):
            continue
        theirs = source.layer(2, draw_split(matched[1].manifest, 4, 5, 0).calibration)
        ours = target.layer(2, draw_split(matched[0].manifest, 4, 5, 0).held_out)
        name, goal = row["quantity"], row["goal"]
        if row["threshold"] is None:
            assert name == "compression"  # reached by exact duplicates alone
            assert next(measure(theirs, [GRID[-1]])).compression >= goal
            continue
        place = GRID.index(row["threshold"])
        chosen = getattr(next(measure(theirs, [GRID[place]])), name)
        beside = GRID[place + (1 if name == "compression" else -1)]
        neighbour = getattr(next(measure(theirs, [beside])), name)
        assert chosen == pytest.approx(row["chosen_value"], abs=2e-6)
        assert (neighbour < goal <= chosen) if name == "compression" else (chosen <= goal < neighbour)
        (measured,) = measure(ours, [row["threshold"]])
        assert row["value"] == pytest.approx(getattr(measured, name), abs=2e-6)
        assert row["value_over_goal"] == pytest.approx(row["value"] / goal, rel=1e-5)
        assert row["compression"] == pytest.approx(measured.compression, abs=2e-6)


def test_a_model_of_the_same_cache_transfers_as_its_own(make: Maker, tmp_path: Path) -> None:
    twins = [make("a", model, lengths=(64,) * 10, seed=5) for model in ("one", "two")]
    record = run_transfer(twins, PLAN, tmp_path / "out")
    for name, fields in (
        ("prediction", ("layer", "seed", "threshold", "predictor")),
        ("threshold", ("layer", "seed", "quantity")),
    ):
        by_end: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in kind(record, name):
            ignored = {"source_model", "model", "relation", "noise_draw"}
            kept = {field: value for field, value in row.items() if field not in ignored}
            by_end.setdefault((row["source_model"], row["model"]), []).append(kept)
        assert len(by_end) == 4
        for rows in by_end.values():
            rows.sort(key=lambda row: [row[field] for field in fields])
            assert rows == next(iter(by_end.values()))


def test_summary_is_that_of_the_rows(record: Record) -> None:
    rows = [row for row in kind(record, "prediction") if row["counts"]]
    for entry in (e for e in record.summary if e["kind"] in ("relation", "models", "matrix")):
        fields = {
            "relation": ("relation",),
            "models": ("source_model", "model"),
            "matrix": ("source_model", "source_workload", "model", "workload"),
        }[entry["kind"]]
        here = [row for row in rows if all(row[f] == entry[f] for f in (*fields, "predictor"))]
        if entry["kind"] == "models":
            here = [row for row in here if row["relation"] != "other workload"]
        assert entry["rows"] == len(here) > 0
        errors = [row["abs_log_ratio"] for row in here]
        assert entry["median_abs_log_ratio"] == pytest.approx(np.median(errors), rel=1e-4)
        assert entry["p90_abs_log_ratio"] == pytest.approx(np.quantile(errors, 0.9), rel=1e-4)
        guess = [math.log(row["compression_measured"]) for row in here]
        assert entry["unfused_median"] == pytest.approx(np.median(guess), rel=1e-4)
        assert entry["chosen"] == (entry["predictor"] == record.provenance["choice"]["chosen"])
    for entry in (e for e in record.summary if e["kind"] == "threshold"):
        ratios = [
            row["value_over_goal"]
            for row in kind(record, "threshold")
            if all(row[f] == entry[f] for f in ("relation", "quantity", "goal"))
        ]
        known = [ratio for ratio in ratios if ratio is not None]
        assert (entry["cells"], entry["undetermined"]) == (len(ratios), len(ratios) - len(known))
        assert entry["median_value_over_goal"] == pytest.approx(np.median(known))
        missed = [r < 0.8 if entry["quantity"] == "compression" else r > 1.25 for r in known]
        assert entry["beyond"] == pytest.approx(np.mean(missed))
    assert {entry["kind"] for entry in record.summary} == {
        *("relation", "models", "matrix", "threshold", "threshold matrix")
    }


def test_words_compare_with_calibrating_anew() -> None:
    def entry(relation: str, error: float, unfused: float = 0.5) -> dict[str, Any]:
        figures = {"median_abs_log_ratio": error, "noise_median": 0.04, "unfused_median": unfused}
        return {"kind": "relation", "relation": relation, "predictor": "p", **figures}

    def promise(relation: str, beyond: float) -> dict[str, Any]:
        ratios = {"p10_value_over_goal": 0.5, "median_value_over_goal": 1.2, "p90_value_over_goal": 2.5}
        goal = {"quantity": "k_error", "goal": 0.1, "beyond": beyond}
        return {"kind": "threshold", "relation": relation, **goal, **ratios}

    summary = [entry("own", 0.1), entry("other workload", 0.2), entry("other model", 0.21, 0.3)]

    def pair(error: float, source: str, target: str, workload: str = "w") -> dict[str, Any]:
        ends = {"source_model": source, "model": target, "source_workload": "w", "workload": workload}
        return {"kind": "matrix", "predictor": "p", "median_abs_log_ratio": error} | ends

    # One direction that fails is not hidden by those that hold; pairs of another relation do not count.
    one_way = [entry("own", 0.1), entry("other model", 0.15), pair(0.1, "a", "b"), pair(0.9, "b", "a")]
    (verdict,) = describe([*one_way, pair(2.0, "a", "a", "v")], "p")
    assert verdict.startswith("The law of p does not transfer from another model: median")
    assert "0.150 (worst: b for a, w, 0.900), calibrated" in verdict
    assert describe(one_way[:3], "p")[0].startswith("The law of p transfers from another model")
    summary += [promise("own", 0.25), promise("other model", 0.75)]
    alike, apart, kept = describe(summary, "p")
    assert alike.startswith("The law of p transfers from another workload: median")
    assert apart.startswith("The law of p does not transfer from another model: median")
    assert "0.210, calibrated on the same capture 0.100, noise of measuring 0.040; guessing" in apart
    assert apart.endswith("gives 0.300.")
    assert "keys' error at most 0.1, chosen on another model, gave 1.20 times that" in kept
    assert kept.endswith("missed by more than a quarter in 75% (its own requests: 25%).")
    assert describe(summary[:3], None) == [
        "No predictor was chosen: the captures have too few requests to tell."
    ]


def test_it_goes_on_where_it_stopped(captures: list[Capture], record: Record, tmp_path: Path) -> None:
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").rglob("*.json")}
    lost = sorted(cells)[::5]
    for path in lost:
        path.unlink()
    again = run_transfer(captures, PLAN, tmp_path / "out", command=["test"])
    assert again.rows == record.rows
    assert again.summary == record.summary
    assert all(path.exists() for path in lost)
    assert all(path.stat().st_mtime_ns == cells[path] for path in set(cells) - set(lost))
    with pytest.raises(
        InputError, match=r"other settings \(thresholds: .* name another folder, or pass --force"
    ):
        run_transfer(captures, replace(PLAN, thresholds=(0.5,)), tmp_path / "out")
    captures[0] = Capture(captures[0].folder, replace(captures[0].manifest, seed=7))
    with pytest.raises(InputError, match="holds cells of another capture of workload 'one · a'"):
        run_transfer(captures, PLAN, tmp_path / "out")


def test_captures_that_cannot_be_matched(make: Maker, captures: list[Capture]) -> None:
    with pytest.raises(InputError, match="transfer needs at least two captures: of several models, or of"):
        match_captures(captures[:1], 2)
    with pytest.raises(InputError, match=r"is of workload 'a' of model 'one' like .*; leave one out"):
        match_captures([captures[0], captures[0]], 2)
    with pytest.raises(InputError, match=r"no two share their model or their workload.*capture one workload"):
        match_captures(captures[1:], 2)
    other = Capture(captures[1].folder, replace(captures[1].manifest, weights_hash="f" * 64))
    with pytest.raises(InputError, match=r"is of other weights than .*both models are called 'one'; rename"):
        match_captures([captures[0], other], 2)
    other = Capture(captures[1].folder, replace(captures[1].manifest, block_size=8))
    with pytest.raises(InputError, match=r"has blocks of 8 tokens, .* of 16; capture them alike"):
        match_captures([captures[0], other], 2)


def test_what_else_is_refused(captures: list[Capture], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workload 'one · a' is too small for 8 → 5: it needs 13 requests"):
        run_transfer(captures, replace(PLAN, calibrate=8), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="names one twice; name each once"):
        replace(PLAN, goals=(Goal("k_error", 0.3), Goal("k_error", 0.3)))
    with pytest.raises(InputError, match="is too small: two requests are needed to calibrate on"):
        replace(PLAN, calibrate=1)


def test_the_command(captures: list[Capture], tmp_path: Path, monkeypatch, capsys) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", "transfer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    out = tmp_path / "out"
    arguments = ["--capture", *(capture.folder for capture in captures), "--calibrate", 4, "--measure", 5]
    arguments += ["--layers", 1, "--seeds", 0, "--threshold", 0.6, 0.7, "--goal", "k_error=0.3"]
    arguments += ["--predictor", "gaussian", "position-marked", "--out", out]
    code, shown, err = run(*arguments)
    assert code == 0, err
    assert "transferring: 100%" in err
    for text in ("another model", "another workload", "position-marked", str(out / "transfer.png")):
        assert text in shown
    whole = read_record(out / "transfer.json", SCHEMA)
    short = read_record(out / "transfer-summary.json", SCHEMA)
    assert short.rows == []
    assert short.summary == [e for e in whole.summary if e["kind"] != "matrix" or e["chosen"]]
    assert any(e["kind"] == "matrix" and not e["chosen"] for e in whole.summary)
    assert "matrix entries of predictors that were not chosen" in short.provenance["left_out"]
    assert {row["threshold"] for row in kind(whole, "prediction")} == {0.6, 0.7}
    assert (out / "transfer.png").stat().st_size > 10_000
    code, shown, err = run(*arguments, "--json")
    assert code == 0, err
    assert json.loads(shown)["rows"] == whole.rows
    for extra, message in (
        (["--seeds", 0.5], "seeds = 0.5: must be a whole number from 0 on"),
        (["--goal", "kl=1"], "goal = 'kl': unknown"),
        (["--predictor", "oracle"], "predictor = 'oracle': unknown"),
    ):
        code, shown, err = run(*arguments, *extra)
        assert (code, shown) == (2, "")
        assert message in " ".join(err.split())
    code, _, err = run("--out", tmp_path / "none")
    assert code == 2
    assert "transfer needs at least two captures" in err
