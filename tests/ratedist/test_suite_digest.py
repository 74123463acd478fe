"""A digest of a suite's record: small, and showing what the whole shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ratedist.suite_digest import band_errors, digest, layer_errors
from ratedist.suite_record import SuiteRecord, as_column, read_suite_record, write_suite_record


def make_record(seed: int = 0) -> SuiteRecord:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for workload in ("a", "b"):
        for n, m in ((16, 16), (16, 64)):
            for run in range(3):
                for layer in (2, 3, 4):
                    for threshold in (0.6, 0.7, 0.8):
                        measured = float(1 + rng.random())
                        for name in ("gaussian", "middle", "accumulation"):
                            low, high = sorted((measured * np.exp(0.1 * rng.standard_normal(2))).tolist())
                            rows.append(
                                {"workload": workload, "calibrated_on": workload, "n": n, "m": m}
                                | {"predictor": name, "seed": run, "layer": layer, "threshold": threshold}
                                | {"mode": "bff", "variant": "leader", "criterion": "keys"}
                                | {"counts": int(rng.random() < 0.8)}
                                | {"compression_measured": measured, "compression_predicted": measured * 1.1}
                                | {"abs_log_ratio": float(rng.random()), "noise_draw": float(rng.random())}
                                | {"compression_predicted_low": low if name == "accumulation" else None}
                                | {"compression_predicted_high": high if name == "accumulation" else None}
                            )
    summary = [
        {"workload": workload, "n": n, "m": m, "predictor": name, "chosen": name == "accumulation"}
        for workload in ("a", "b", "all")
        for n, m in ((16, 16), (16, 64))
        for name in ("gaussian", "middle", "accumulation")
    ]
    columns = {name: as_column([row[name] for row in rows]) for name in rows[0]}
    return SuiteRecord({"command": ["x"]}, ["words"], [], summary, columns)


def test_a_digest_keeps_what_the_figures_show(tmp_path: Path) -> None:
    """Sums over all rows stay what they were, through a file; the rows are a sample at common settings."""
    whole = make_record()
    small = digest(whole, points=5)
    assert small.sampled_from == len(whole.columns["n"])
    assert set(small.columns["predictor"].tolist()) == {"gaussian", "accumulation"}
    for n, m in ((16, 16), (16, 64)):
        here = (small.columns["n"] == n) & (small.columns["m"] == m)
        assert 5 <= here.sum() <= 10
    assert (small.columns["counts"] == 1).all()
    path = tmp_path / "suite.json"
    write_suite_record(whole, path)
    again = read_suite_record(tmp_path / "suite-summary.json")
    for record in (small, again):
        for of in (layer_errors, band_errors):
            expected, found = of(whole, "accumulation"), of(record, "accumulation")
            assert len(found) == len(expected) > 0
            for one, other in zip(expected, found, strict=True):
                assert one.keys() == other.keys()
                for field, value in one.items():
                    if isinstance(value, float):
                        np.testing.assert_allclose(other[field], value, rtol=1e-5)
                    else:
                        assert other[field] == value
    assert digest(again) is again
    assert path.stat().st_size > (tmp_path / "suite-summary.json").stat().st_size


def test_layers_are_medians_of_the_rows_that_count() -> None:
    record = make_record()
    c = record.columns
    for entry in layer_errors(record, "middle"):
        here = (c["predictor"] == "middle") & (c["counts"] == 1) & (c["layer"] == entry["layer"])
        here &= (c["threshold"] == entry["threshold"]) & (c["m"] == entry["m"])
        assert entry["rows"] == here.sum()
        assert entry["error"] == np.median(c["abs_log_ratio"][here])
        assert entry["noise"] == np.median(c["noise_draw"][here])


def test_bands_are_counted_row_by_row() -> None:
    record = make_record()
    found = {(e["workload"], e["m"]): e for e in band_errors(record, "accumulation")}
    held = {key: [0, 0] for key in found}
    for row in record.rows:
        if row["predictor"] == "accumulation" and row["counts"]:
            inside = (
                row["compression_predicted_low"]
                <= row["compression_measured"]
                <= row["compression_predicted_high"]
            )
            for key in ((row["workload"], row["m"]), ("all", row["m"])):
                held[key][0] += inside
                held[key][1] += 1
    assert 0 < found["all", 16]["coverage"] < 1
    for key, (inside, rows) in held.items():
        assert found[key]["rows"] == rows
        assert found[key]["coverage"] == inside / rows


def test_a_record_without_rows_is_left_alone() -> None:
    record = make_record()
    record.columns = {}
    assert digest(record) is record
