"""Suites on synthetic captures: cells, resuming, what is refused, and the record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ratedist.errors import InputError, RatedistError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.predictors import Predictor, held_out_errors, predictor_class
from ratedist.suite_record import SuiteRecord, read_suite_record, write_suite_record
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.compare import count_exceedances
from ratedist.validate.suite.folder import CELLS, SETTINGS, CellKey, SuiteFolder
from ratedist.validate.suite.noise import noise_floor
from ratedist.validate.suite.noise_cell import noise_cell
from ratedist.validate.suite.protocol import Calibration, layer_cells, split_cell
from ratedist.validate.suite.rows import choose
from ratedist.validate.suite.run import fingerprint, plan_work, run_cells, suite_settings
from ratedist.validate.suite.scored_layer import ScoredLayer, select_requests
from ratedist.validate.suite.splits import draw_calibration, draw_split
from ratedist.validate.suite.summary import make_record
from ratedist.validate.suite.tasks import Suite, Task

TIMES = ("calibration_seconds",)


def small_suite(**changes: object) -> Suite:
    return replace(
        Suite(
            "small",
            (Task(("all",), ((3, 4), (3, 6)), "all"),),
            seeds=(0, 1),
            thresholds=(0.6, 0.7, 0.8),
            predictors=("gaussian", "position-marked"),
            noise_draws=1,
        ),
        **changes,
    )


def run(suite: Suite, captures: list, path: Path, *, force: bool = False, **options: object) -> SuiteRecord:
    work = plan_work(suite, captures)
    marks = {capture.manifest.workload: fingerprint(capture.manifest) for capture in captures}
    folder = SuiteFolder.claim(path, suite_settings(suite, captures), marks, force=force)
    run_cells(suite, work, folder, **options)
    return make_record(suite, work, folder, command=["test"])


@pytest.fixture
def captures(make_capture) -> list:
    return [make_capture("one", lengths=(64,) * 10), make_capture("two", lengths=(70, 64, 50) * 4, seed=1)]


def without_times(record: SuiteRecord) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in record.rows]


def test_splits_are_random_disjoint_and_nested(make_capture) -> None:
    manifest = make_capture(lengths=(64,) * 12 + (8,)).manifest
    drawn = [draw_split(manifest, 3, 4, seed) for seed in range(12)]
    for split in drawn:
        assert not set(split.calibration) & set(split.held_out)
        assert len(set(split.held_out)) == 4
        assert max(split.calibration + split.held_out) < 12
    assert len({split.calibration for split in drawn}) > 8
    assert any(list(split.held_out) != sorted(split.held_out) for split in drawn)
    assert draw_split(manifest, 3, 9, 5).calibration == drawn[5].calibration
    other = replace(manifest, workload="other")
    assert draw_split(other, 3, 4, 0) != drawn[0]
    with pytest.raises(
        InputError, match=r"requests = 12: workload 'synthetic' is too small for 4 → 9: it needs 13"
    ):
        draw_split(manifest, 4, 9, 0)


def test_a_cell_holds_the_split_predicted_and_measured(captures) -> None:
    """By hand: fusion of the measured requests in their order, predictions from the calibration requests."""
    capture, suite = captures[1], small_suite()
    layer = capture.layer(2)
    split = draw_split(capture.manifest, 3, 6, 1)
    calibration = Calibration("two", split.calibration, select_requests(layer, split.calibration))
    cell = split_cell(capture.manifest, ScoredLayer(layer), 2, (3, 6), suite, 1, calibration)
    cell = json.loads(json.dumps(cell))
    assert (cell["calibration"], cell["held_out"]) == (list(split.calibration), list(split.held_out))
    cells, refused = layer_cells(cell, suite.plan(1))
    assert not refused
    assert {(c.variant, c.criterion) for c in cells} == {
        (v, c) for v in ("leader", "tree") for c in ("keys", "both")
    }
    sample = pair_sample(capture.layer(2, split.calibration))
    held_out = capture.layer(2, split.held_out)
    for found in cells:
        assert found.exceedances == count_exceedances(sample, suite.thresholds, found.criterion)
        for measured in found.measured:
            fusion = fuse(
                held_out, threshold=measured.threshold, variant=found.variant, criterion=found.criterion
            )
            assert (measured.kept, measured.candidates) == (fusion.kept, fusion.candidates)
        for name, prediction in found.predicted.items():
            expected = predictor_class(name)(sample, criterion=found.criterion).predict(
                held_out.table.full_blocks.numpy(), suite.thresholds, variant=found.variant
            )
            np.testing.assert_allclose(prediction.kept, expected.kept)
            np.testing.assert_allclose(prediction.v_error, expected.v_error)
    blocks = int(capture.layer(2, split.calibration).table.full_blocks.sum())
    assert cell["calibration_bytes"] == blocks * 16 * 2 * 8 * 4 * 2
    assert cell["calibration_pairs"] == int(sample.comparable.sum()) // 2


def test_noise_is_that_of_exchanged_drawings(captures) -> None:
    capture, suite = captures[0], small_suite()
    scored = ScoredLayer(capture.layer(3))
    cell = noise_cell(capture.manifest, scored, 3, 6, suite)
    assert cell["share"] == pytest.approx(4 / 6)
    assert len(cell["results"]) == 2 * 2 * 3
    assert all(len(result["deviations"]) == 4 for result in cell["results"])
    assert any(max(result["deviations"]) > 0 for result in cell["results"])
    assert noise_cell(capture.manifest, scored, 3, 6, suite) == cell
    assert noise_cell(capture.manifest, scored, 3, 10, suite)["share"] is None


def test_noise_of_a_suite_is_the_spread_of_its_measurements(make_capture) -> None:
    """Many workloads of independent requests: noise_floor² against the variance of ln(compression) of fresh
    requests, within 4 standard errors of the two means."""
    suite = small_suite(variants=("leader",), criteria=("keys",), thresholds=(0.7,), noise_draws=2)
    squared, spread = [], []
    for seed in range(25):
        capture = make_capture(f"w{seed}", lengths=(80,) * 24, layers=(2,), seed=seed, shared_tokens=0)
        scored = ScoredLayer(capture.layer(2))
        cell = noise_cell(capture.manifest, scored, 2, 6, suite)
        squared.append(noise_floor(cell["results"][0]["deviations"]) ** 2)
        # Four disjoint drawings: their variance is that of one measurement of this workload.
        logs = [
            math.log(draw.candidates / draw.kept(0.7, "leader", "keys"))
            for draw in (scored.draw(range(start, start + 6)) for start in (0, 6, 12, 18))
        ]
        spread.append(np.var(logs, ddof=1))
    error = math.hypot(np.std(squared), np.std(spread)) / math.sqrt(len(squared))
    assert np.mean(spread) > 0
    assert abs(np.mean(squared) - np.mean(spread)) / error < 4
    assert abs(np.mean(squared) / np.mean(spread) - 1) < 0.5


def test_record_has_every_row_with_noise_and_cost(captures, tmp_path: Path) -> None:
    shares = []
    record = run(small_suite(), captures, tmp_path / "out", progress=lambda share, name: shares.append(share))
    rows = record.rows
    # workloads, layers, splits, seeds, variants, criteria, thresholds, predictors
    assert len(rows) == 2 * 2 * 2 * 2 * 2 * 2 * 3 * 2
    key = ("workload", "layer", "n", "m", "seed", "variant", "criterion", "threshold", "predictor")
    assert len({tuple(row[name] for name in key) for row in rows}) == len(rows)
    for row in rows:
        assert row["noise_floor"] >= 0
        assert row["noise_draw"] >= 0
        assert row["calibration_seconds"] > 0
        assert row["refused"] == ""
        assert row["requests"] == row["m"]
        ratio = abs(math.log(row["compression_predicted"] / row["compression_measured"]))
        assert row["abs_log_ratio"] == pytest.approx(ratio, rel=1e-3, abs=1e-5)
        assert row["counts"] == int(1.05 <= row["compression_measured"] <= 0.9 * row["requests"])
    assert {row["counts"] for row in rows} == {0, 1}
    floors = {(row["workload"], row["layer"], row["m"], row["noise_floor"]) for row in rows if row["counts"]}
    assert len(floors) > 4
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert record.provenance["cells"] == {"finished": 2 * 2 * (4 + 2), "all": 2 * 2 * (4 + 2)}
    assert record.provenance["rechecked"]["fusions"] == 2 * 2 * 4
    assert record.provenance["rechecked"]["other_kept"] == 0
    assert "24 of 24 cells are finished" in record.words[-1]
    path = tmp_path / "record.json"
    write_suite_record(record, path)
    again = read_suite_record(path)
    assert again.rows == rows
    assert (again.summary, again.goals, again.words) == (record.summary, record.goals, record.words)
    short = json.loads((tmp_path / "record-summary.json").read_text(encoding="utf-8"))
    assert short["sampled_from"] == len(rows)
    assert (short["schema"], short["summary"], short["goals"]) == (
        "ratedist/suite/1",
        record.summary,
        record.goals,
    )


def test_an_interrupted_run_resumes_to_the_same_record(captures, tmp_path: Path, monkeypatch) -> None:
    suite = small_suite()
    whole = run(suite, captures, tmp_path / "whole")
    real, calls = SuiteFolder.write, []

    def write(self: SuiteFolder, key: CellKey, cell: dict[str, object]) -> None:
        calls.append(key)
        if len(calls) == 8:
            raise KeyboardInterrupt
        real(self, key, cell)

    monkeypatch.setattr(SuiteFolder, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(suite, captures, tmp_path / "parts")
    done = sorted((tmp_path / "parts" / CELLS).rglob("*.json"))
    assert len(done) == 7
    stamps = {path: path.stat().st_mtime_ns for path in done}
    calls.clear()
    monkeypatch.setattr(
        SuiteFolder, "write", lambda self, key, cell: (calls.append(key), real(self, key, cell))
    )
    resumed = run(suite, captures, tmp_path / "parts")
    assert len(calls) == 24 - 7
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    assert without_times(resumed) == without_times(whole)
    assert [e["median_abs_log_ratio"] for e in resumed.summary] == [
        e["median_abs_log_ratio"] for e in whole.summary
    ]
    calls.clear()
    run(suite, captures, tmp_path / "parts")
    assert not calls


def test_more_seeds_and_workloads_go_on_in_the_same_folder(captures, tmp_path: Path) -> None:
    run(small_suite(seeds=(0,)), captures[:1], tmp_path)
    record = run(small_suite(), captures, tmp_path)
    assert record.provenance["cells"]["finished"] == 24
    assert {row["seed"] for row in record.rows} == {0, 1}


def test_processes_of_their_own_give_the_same_record(captures, tmp_path: Path) -> None:
    suite = small_suite(thresholds=(0.7,), variants=("leader",), criteria=("keys",))
    alone = run(suite, captures, tmp_path / "alone")
    beside = run(suite, captures, tmp_path / "beside", jobs=2)
    assert without_times(alone) == without_times(beside)
    with pytest.raises(InputError, match="jobs = 0: must be at least 1"):
        run(suite, captures, tmp_path / "none", jobs=0)


def test_other_settings_and_captures_are_refused_and_leave_the_cells(
    captures, make_capture, tmp_path
) -> None:
    suite = small_suite(seeds=(0,), variants=("leader",), criteria=("keys",))
    run(suite, captures[:1], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(
        InputError,
        match=r"made with other settings \(thresholds: \[0.6, 0.7, 0.8\] → \[0.5\]\); name another folder",
    ):
        run(replace(suite, thresholds=(0.5,)), captures[:1], tmp_path)
    with pytest.raises(InputError, match="predictors: "):
        run(replace(suite, predictors=("gaussian",)), captures[:1], tmp_path)
    mark = {"one": "another"}
    with pytest.raises(InputError, match="holds cells of another capture of workload 'one'"):
        SuiteFolder.claim(tmp_path, suite_settings(suite, captures[:1]), mark)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    (tmp_path / "captures" / "kept").touch()
    record = run(replace(suite, thresholds=(0.5,)), captures[:1], tmp_path, force=True)
    assert {row["threshold"] for row in record.rows} == {0.5}
    assert (tmp_path / "captures" / "kept").exists()


def test_folders_that_are_refused(captures, tmp_path: Path) -> None:
    settings = suite_settings(small_suite(), captures)
    (tmp_path / "notes").touch()
    with pytest.raises(InputError, match="holds something else; name a new folder"):
        SuiteFolder.claim(tmp_path, settings, {})
    with pytest.raises(InputError, match="is a file; name a folder"):
        SuiteFolder.claim(tmp_path / "notes", settings, {})
    folder = SuiteFolder.claim(tmp_path / "new", settings, {})
    (tmp_path / "new" / SETTINGS).write_text("{")
    with pytest.raises(RatedistError, match=r"cannot be read .*pass --force"):
        SuiteFolder.claim(tmp_path / "new", settings, {})
    key = CellKey("a/b", 3, 16, 16, 0)
    cell = {"workload": "a/b", "layer": 3, "x": 1}
    folder.write(key, cell)
    assert folder.has(key)
    assert folder.read(key) == cell
    assert {CellKey("a/b", 3, 16).path, key.path, CellKey("a%2fb", 3, 16, 16, 0).path} == {
        "a%2fb/layer-003/noise-16.json",
        "a%2fb/layer-003/split-16-16-seed-0.json",
        "a%252fb/layer-003/split-16-16-seed-0.json",
    }
    folder.write(key, {**cell, "layer": 4})
    with pytest.raises(RatedistError, match="is not the cell"):
        folder.read(key)
    (tmp_path / "new" / CELLS / key.path).write_text("{")
    with pytest.raises(RatedistError, match=r"cannot be read .*delete it and run"):
        folder.read(key)


def test_captures_that_do_not_fit_are_refused(captures, make_capture, tmp_path: Path) -> None:
    suite = small_suite()
    with pytest.raises(InputError, match="compare one model at a time"):
        plan_work(suite, [captures[0], make_capture("three", lengths=(64,) * 10, model="other")])
    with pytest.raises(
        InputError,
        match=r"requests = 8: workload 'few' is too small for 3 → 6: it needs 9 requests of at least 16",
    ):
        plan_work(suite, [make_capture("few")])
    named = small_suite(tasks=(Task(("one",), ((3, 4),)),))
    with pytest.raises(InputError, match="is of workload 'two', not of the suite"):
        plan_work(named, captures)
    alone = make_capture("alone", lengths=(64,) * 10, domains=tuple(range(10)))
    with pytest.raises(InputError, match="workload 'alone', layer 2, bff: calibration needs two requests"):
        run(suite, [alone], tmp_path)


def test_thresholds_that_no_calibration_pair_exceeds_are_told(captures, tmp_path: Path) -> None:
    record = run(small_suite(thresholds=(0.3, 0.6)), captures, tmp_path / "seen")
    assert (record.columns["calibration_exceedances"] > 0).any()
    assert not any("no pair of calibration blocks" in sentence for sentence in record.words)
    folder = tmp_path / "unseen"
    suite = small_suite(thresholds=(0.3, 0.6))
    run(suite, captures, folder)
    for path in (folder / CELLS).rglob("split-*.json"):
        cell = json.loads(path.read_text())
        for result in cell["results"]:
            result["exceedances"][0] = 0
        path.write_text(json.dumps(cell))
    record = run(suite, captures, folder)
    (sentence,) = [text for text in record.words if "no pair of calibration blocks" in text]
    count, none = (record.columns[name] for name in ("counts", "calibration_exceedances"))
    share = float(((none == 0) & (count > 0)).sum() / (count > 0).sum())
    assert 0 < share < 1
    assert f"In {share:.1%} of the rows" in sentence


def test_predictions_are_transferred_from_one_workload_to_another(captures, tmp_path: Path) -> None:
    """Calibrated on n requests of the other workload, those of its own splits; measured as ever."""
    task = Task(("one",), ((3, 4),), (2,), calibrate_on=("all",))
    suite = small_suite(tasks=(task,), variants=("leader",), criteria=("keys",))
    record = run(suite, captures, tmp_path)
    assert {(row["calibrated_on"], row["workload"]) for row in record.rows} == {
        ("one", "one"),
        ("two", "one"),
    }
    one, two = captures
    for seed in (0, 1):
        assert draw_calibration(two.manifest, 3, seed) == draw_split(two.manifest, 3, 4, seed).calibration
        held_out = draw_split(one.manifest, 3, 4, seed).held_out
        table = one.layer(2, held_out).table
        for source, capture in (("one", one), ("two", two)):
            requests = draw_split(capture.manifest, 3, 4, seed).calibration
            predictor = predictor_class("position-marked")(pair_sample(capture.layer(2, requests)))
            expected = predictor.predict(table.full_blocks.numpy(), suite.thresholds)
            rows = [
                row
                for row in record.rows
                if (row["calibrated_on"], row["predictor"], row["seed"]) == (source, "position-marked", seed)
            ]
            assert [row["kept_predicted"] for row in rows] == pytest.approx(expected.kept, rel=1e-4)
            fusion = fuse(one.layer(2, held_out), threshold=0.7)
            assert rows[1]["kept_measured"] == fusion.kept
    # The summary of the suite is about a workload's own predictions.
    counted = [row for row in record.rows if row["counts"] and row["predictor"] == "gaussian"]
    (own,) = [e for e in record.summary if (e["workload"], e["predictor"]) == ("all", "gaussian")]
    assert own["rows"] == sum(row["calibrated_on"] == "one" for row in counted) > 0
    moved = {(e["calibrated_on"], e["workload"]): e for e in record.transfer if e["predictor"] == "gaussian"}
    assert set(moved) == {("one", "one"), ("two", "one")}
    errors = [row["abs_log_ratio"] for row in counted if row["calibrated_on"] == "two"]
    assert moved["two", "one"]["median_abs_log_ratio"] == pytest.approx(np.median(errors), rel=1e-4)
    assert moved["two", "one"]["rows"] == len(errors)
    assert moved["one", "one"]["median_abs_log_ratio"] == own["median_abs_log_ratio"]
    path = tmp_path / "record.json"
    write_suite_record(record, path)
    assert read_suite_record(path).transfer == record.transfer
    assert "transferred between 1 pair of workloads" in record.words[-2]
    assert record.words[-1].startswith("Calibrated on another workload, gaussian is off by")
    assert record.words[-1].endswith("from two to one.")


def test_a_predictor_is_chosen_within_the_calibration_requests(make_capture, tmp_path: Path) -> None:
    """The errors are those that held_out_errors gives for the calibration requests of every cell, joined;
    what is measured on other requests does not matter."""
    capture = make_capture(lengths=(64,) * 12, layers=(2, 3))
    suite = small_suite(tasks=(Task(("all",), ((5, 4),), "all"),))
    record = run(suite, [capture], tmp_path)
    errors: dict[str, list[float]] = {name: [] for name in suite.predictors}
    for layer in (2, 3):
        for seed in suite.seeds:
            requests = draw_split(capture.manifest, 5, 4, seed).calibration
            sample = pair_sample(capture.layer(layer, requests))
            for variant in suite.variants:
                for criterion in suite.criteria:
                    for error in held_out_errors(
                        sample,
                        suite.thresholds,
                        variant=variant,
                        criterion=criterion,
                        ratio=4 / 5,
                        predictors=suite.predictors,
                        splits=1,
                        seed=seed,
                    ):
                        errors[error.predictor] += error.errors.tolist()
    medians = {name: np.median(found) for name, found in errors.items()}
    choice = record.provenance["choice"]
    assert choice["chosen"] == min(medians, key=lambda name: medians[name])
    assert choice["errors"] == {name: pytest.approx(value, abs=1e-5) for name, value in medians.items()}
    assert choice["seconds"] > 0
    marked = {
        e["predictor"]: (e["chosen"], e["held_out_error"]) for e in record.summary if e["workload"] == "all"
    }
    assert marked == {name: (name == choice["chosen"], choice["errors"][name]) for name in suite.predictors}
    few = small_suite(tasks=(Task(("all",), ((3, 4),), (2,)),))
    assert run(few, [capture], tmp_path / "few").provenance["choice"]["chosen"] is None


def test_a_predictor_that_failed_anywhere_is_not_chosen(captures) -> None:
    suite = small_suite()
    work = plan_work(suite, captures[:1])
    keys = [key for item in work for key in item.splits]

    class Folder:
        def has(self, key: CellKey) -> bool:
            return True

        def read(self, key: CellKey) -> dict[str, object]:
            errors = {"gaussian": None if key == keys[-1] else [0.0], "position-marked": [0.1, 0.3]}
            return {"choice_seconds": 0.5, "results": [{"held_out": errors}, {"held_out": {}}]}

    choice = choose(suite, work, Folder())
    assert choice.chosen == "position-marked"
    assert choice.errors == {"gaussian": None, "position-marked": pytest.approx(0.2)}
    assert choice.seconds == pytest.approx(0.5 * len(keys))


class Stumbling(Predictor):
    """Fails in the tree variant; gives no number in the other."""

    name = "stumbling"

    def _fit(self, sample) -> None:
        pass

    def _fuse(self, full_blocks, thresholds, variant):
        from ratedist.predictors.base import Outcome

        if variant == "tree":
            raise InputError("sample", "exceedances", "there is none above the threshold")
        nothing = np.full(len(thresholds), np.nan)
        return Outcome(nothing, np.zeros((2, len(thresholds))))


def test_a_predictor_that_fails_stands_in_its_rows(captures, tmp_path: Path, monkeypatch) -> None:
    from ratedist import predictors

    monkeypatch.setitem(predictors.PREDICTORS, "stumbling", Stumbling)
    task = Task(("all",), ((4, 5),), (2, 3))
    suite = small_suite(tasks=(task,), predictors=("position-marked", "stumbling"), seeds=(0,))
    record = run(suite, captures, tmp_path)
    assert record.provenance["choice"]["chosen"] == "position-marked"
    failed = [row for row in record.rows if row["predictor"] == "stumbling"]
    assert len(failed) == len(record.rows) / 2
    assert all(row["compression_predicted"] is None and row["abs_log_ratio"] is None for row in failed)
    reasons = {row["variant"]: row["refused"] for row in failed}
    assert "there is none above the threshold" in reasons["tree"]
    assert "predicted [nan" in reasons["leader"]
    entry = next(e for e in record.summary if e["workload"] == "all" and e["predictor"] == "stumbling")
    assert entry["refused"] == entry["rows"] > 0
    assert entry["median_abs_log_ratio"] is None
    assert record.provenance["choice"]["errors"]["stumbling"] is None
    assert any(sentence.startswith("stumbling predicted nothing in") for sentence in record.words)


def test_calibration_requests_of_different_domains_are_named(make_capture, tmp_path: Path) -> None:
    """Two domains, two requests to calibrate on: where they are of different ones nothing can be compared."""
    capture = make_capture(lengths=(64,) * 10, domains=(0, 1) * 5, layers=(2,))
    suite = small_suite(tasks=(Task(("all",), ((2, 6),), (2,)),), seeds=tuple(range(6)), noise_draws=1)
    record = run(suite, [capture], tmp_path)
    refused = {row["seed"]: row["refused"] for row in record.rows}
    assert len(set(refused.values())) == 2
    assert all("two requests of one domain" in reason for reason in refused.values() if reason)
    assert len(record.rows) == 6 * 2 * 2 * 3 * 2


def test_no_exceedance_in_the_calibration_requests(make_capture, tmp_path: Path) -> None:
    """At 0.999 no pair of calibration requests exceeds; every predictor still says something."""
    capture = make_capture(lengths=(64,) * 10, layers=(2,), shared_tokens=0)
    suite = small_suite(thresholds=(0.999,), seeds=(0,), predictors=())
    record = run(suite, [capture], tmp_path)
    assert {row["predictor"] for row in record.rows} == set(suite.predictors)
    for row in record.rows:
        assert row["refused"] or row["compression_predicted"] == pytest.approx(1, abs=0.2)
        assert (row["compression_measured"], row["counts"]) == (1.0, 0)


def test_a_full_disk_is_named(captures, tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    folder = SuiteFolder.claim(tmp_path, suite_settings(small_suite(), captures), {})
    monkeypatch.setattr("ratedist.validate.suite.folder.write_atomic", full)
    with pytest.raises(RatedistError, match="No space left on device; finished cells are kept"):
        folder.write(CellKey("one", 2, 4), {})
