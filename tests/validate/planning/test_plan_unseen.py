"""A plan on captured requests: every layer at its own setting, against fusing and fitting by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ratedist.cli import main
from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.predictors import HeterogeneousPredictor
from ratedist.records import read_record
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import split_requests
from ratedist.validate.planning.plan_file import CachePlan, write_plan
from ratedist.validate.planning.unseen import UNSEEN_SCHEMA, compare_plan
from ratedist.validate.quality.methods import LayerCache, Method, compress
from ratedist.validate.suite.chunks import chunk_table

SETTINGS = {
    1: Method("fusion", threshold=0.5),
    2: Method("fusion", "kivi", 4, threshold=0.4, criterion="both", variant="tree", scale="raw"),
    3: Method("exact", threshold=0.2),  # shares byte-equal blocks alone, whatever its threshold
    4: Method(),
}


def plan_of(settings: dict[int, Method], **changes: Any) -> CachePlan:
    plan = CachePlan("random", "0" * 64, 6, 16, settings, goal={"max_kl": 0.02}, predicted={})
    return replace(plan, **changes)


def test_layers_at_their_own_settings(make_capture) -> None:
    """Measured is what ``fuse`` keeps of the held-out half, predicted what a predictor of the other says."""
    capture: Capture = make_capture("one", lengths=(64, 80, 64, 70, 64, 64, 90, 64))
    plan = plan_of(SETTINGS)
    record = compare_plan([capture], plan, seed=5, command=["me"])
    split = split_requests(capture.manifest, 5)
    assert [row["layer"] for row in record.rows] == [1, 2, 3]
    for row in record.rows:
        method = SETTINGS[row["layer"]]
        layer = capture.layer(row["layer"], split.held_out)
        threshold = method.threshold if method.sharing == "fusion" else 1.0
        options = {"variant": method.variant, "criterion": method.criterion, "scale": method.scale}
        fusion = fuse(layer, threshold=threshold, **options)
        assert (row["blocks"], row["kept_measured"]) == (fusion.candidates, fusion.kept)
        assert row["compression_measured"] == pytest.approx(fusion.candidates / fusion.kept)
        fitted = HeterogeneousPredictor(
            pair_sample(capture.layer(row["layer"], split.calibration)),
            criterion=method.criterion,
            scale=method.scale,
        )
        expected = fitted.predict(layer.table.full_blocks.numpy(), [threshold], variant=method.variant)
        assert row["kept_predicted"] == pytest.approx(expected.kept[0])
        assert row["compression_predicted"] == pytest.approx(expected.compression[0])
        assert expected.compression_low is not None
        assert row["compression_predicted_low"] == pytest.approx(expected.compression_low[0])
        assert row["threshold"] == threshold
    assert len({row["kept_measured"] for row in record.rows}) > 1
    (total,) = record.summary
    blocks, kept, foreseen = (
        sum(row[name] for row in record.rows) for name in ("blocks", "kept_measured", "kept_predicted")
    )
    assert total["compression_measured"] == pytest.approx(blocks / kept)
    assert total["compression_predicted"] == pytest.approx(blocks / foreseen)
    assert (
        total["compression_predicted_low"]
        <= total["compression_predicted"]
        <= total["compression_predicted_high"]
    )
    stored = sum(
        float(compress(m, LayerCache(n, capture.layer(n, split.held_out), True)).bytes.sum())
        for n, m in SETTINGS.items()
    )
    size = sum(capture.manifest.lengths[r] for r in split.held_out) * capture.manifest.token_bytes
    assert total["cache_compression_measured"] == pytest.approx(6 * size / (stored + 2 * size))
    json.dumps(record.rows + record.summary, allow_nan=False)


def test_across_chunks_each_request_is_its_own_domain(make_capture) -> None:
    capture: Capture = make_capture("one", lengths=(96,) * 8)
    method = Method("fusion", threshold=0.3, mode="cff", chunk_blocks=2)
    (row,) = compare_plan([capture], plan_of({2: method}), seed=1).rows
    split = split_requests(capture.manifest, 1)
    layer = capture.layer(2, split.held_out)
    fusion = fuse(layer, threshold=0.3, mode="cff", chunk_blocks=2)
    assert (row["kept_measured"], row["blocks"]) == (fusion.kept, fusion.candidates)
    known = capture.layer(2, split.calibration)
    fitted = HeterogeneousPredictor(pair_sample(replace(known, table=chunk_table(known.table, 2))))
    chunks = chunk_table(layer.table, 2)
    expected = fitted.predict(chunks.full_blocks.numpy(), [0.3], domains=chunks.domains.numpy())
    assert row["kept_predicted"] == pytest.approx(expected.kept[0])


def test_predictors_without_bands_give_none(make_capture) -> None:
    record = compare_plan([make_capture()], plan_of(SETTINGS), predictors=("gaussian", "heterogeneous"))
    assert [entry["predictor"] for entry in record.summary] == ["gaussian", "heterogeneous"]
    gaussian, other = record.summary
    assert gaussian["compression_predicted_low"] is gaussian["within_band"] is None
    assert other["within_band"] in (True, False)
    assert 0 <= other["layers_within_band"] <= 3
    assert len(record.rows) == 6


def test_jobs_give_the_same_rows(make_capture) -> None:
    capture = make_capture()
    one, two = (compare_plan([capture], plan_of(SETTINGS), jobs=jobs) for jobs in (1, 2))
    assert one.rows == two.rows


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            plan_of(SETTINGS, weights_hash="1" * 64),
            r"plan = .*the capture is of 'random' \(6 layers, weights 00",
        ),
        (plan_of(SETTINGS, layers=7), "plan again for this one"),
        (plan_of({5: Method("exact")}), r"lacks layers \[5\] of the plan; capture them too"),
        (plan_of({1: Method()}), "shares blocks, so there is nothing to predict"),
        (plan_of({1: Method("", "kivi", 4)}), "plan = 'kivi4': shares nothing"),
        (
            plan_of({1: Method("fusion", variant="centroid")}),
            "plan, layer 1: variant = 'centroid': is not predicted; leader, tree are",
        ),
        (
            plan_of({1: Method("fusion", criterion="mean")}),
            "plan, layer 1: criterion = 'mean': is not predicted; keys, both are",
        ),
    ],
)
def test_refuses(make_capture, plan: CachePlan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_plan([make_capture()], plan)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, " ".join(printed.err.split())

    return call


def test_the_command(run, make_capture, tmp_path: Path) -> None:
    folders = [make_capture("one").folder, make_capture("two", seed=3).folder]
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    write_plan(plan_of(SETTINGS), plan)
    code, printed, err = run("--plan", plan, "--capture", *folders, "--out", out, "--json")
    assert code == 0, err
    result = json.loads(printed)
    record = read_record(out / "plan-unseen.json", UNSEEN_SCHEMA)
    assert result["rows"] == record.rows
    assert {row["layer"] for row in result["rows"]} == {1, 2, 3}
    for entry in [*result["rows"], *result["summary"]]:
        assert np.isfinite([entry["compression_predicted"], entry["compression_measured"]]).all()
    assert [entry["workload"] for entry in result["summary"]] == ["one", "two"]
    code, printed, _ = run("--plan", plan, "--capture", *folders)
    assert code == 0
    for text in (
        "one: heterogeneous, and fusing 4 other requests",
        "fusion+kivi4, both, tree, raw",
        "planned layers: ",
        "whole cache: ",
    ):
        assert text in printed
    for arguments, message in (
        (("--capture", folders[0], "--out", out), "is not empty; choose another folder or pass --force"),
        (("--capture", folders[0], "--threshold", 0.5), "is the plan's to say; leave it out, or --plan"),
        (("--capture", folders[0], "--scale", "raw"), "scale = 'raw': is the plan's to say"),
        (("--capture", folders[0], "--predictor", "oracle"), "predictor = 'oracle': unknown"),
        (("--suite", "standard"), "is for captures; leave out --suite, or the plan"),
        ((), "capture = None: name at least one capture's folder"),
    ):
        code, _, err = run("--plan", plan, *arguments)
        assert code == 2
        assert message in err


def test_a_plan_of_another_version_is_refused(run, make_capture, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    data = json.loads(plan_of(SETTINGS).to_json()) | {"schema": "ratedist/plan/9"}
    path.write_text(json.dumps(data))
    code, _, err = run("--plan", path, "--capture", make_capture().folder)
    assert code == 2
    assert "has schema 'ratedist/plan/9'; this version of ratedist reads 'ratedist/plan/1'" in err
