"""Sections of plans: what drift does to them, plans from laws alone, and plans on unseen requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ratedist.errors import RatedistError
from ratedist.figures.report.sections import read_section

PREDICTED: dict[str, Any] = {
    "compression": 1.7,
    "kl": 0.019,
    "kl_low": 0.01,
    "kl_high": 0.03,
    "uniform": None,
}
FUSION = {
    "sharing": "fusion",
    "variant": "tree",
    "criterion": "both",
    "scale": "raw",
    "threshold": 0.8,
    "bits": 0,
    "mode": "cff",
    "chunk_blocks": 4,
}
EXACT = {
    "sharing": "exact",
    "variant": "leader",
    "criterion": "keys",
    "scale": "own-norm",
    "threshold": 1,
    "bits": 4,
}


def written(path: Path, data: dict[str, Any]) -> Path:
    provenance = {"command": ["ratedist", "plan"], "created": "then", "versions": {"ratedist": "1"}}
    path.write_text(json.dumps({"provenance": provenance | data.pop("provenance", {}), **data}))
    return path


def plan(path: Path, **changes: Any) -> Path:
    data = {"schema": "ratedist/plan/1", "model": "m", "goal": {"max_kl": 0.02}}
    data |= {"predicted": PREDICTED | changes, "settings": {"2": FUSION, "3": EXACT}}
    return written(path, data)


def test_a_plan_says_what_drift_does_to_it(tmp_path: Path) -> None:
    point = {"share": 0.25, "kl": 0.03, "error": 0.1, "saving": 0.2, "compression": 1.25}
    drift = {"to": "code", "requests": 8, "points": [point], "words": "It breaks from 40% on."}
    section = read_section(plan(tmp_path / "p.json", sensitivity={"drift": drift}))
    assert section.answer[-1] == "It breaks from 40% on."
    mixed, settings = section.tables
    assert mixed.title == "The plan on 8 other requests, a share of them from code"
    assert mixed.rows == ((0.25, 1.25, 0.2, 0.03, 0.1),)
    assert settings.rows == (
        (2, "fusion", "tree", "both", "raw", "cff", 0.8, 16),
        (3, "exact", "leader", "keys", "own-norm", "bff", 1, 4),
    )


def test_a_plan_without_drift_and_one_from_laws(tmp_path: Path) -> None:
    section = read_section(plan(tmp_path / "p.json", sensitivity={}))
    assert section.answer == [
        "For max_kl 0.02: 1.70 times smaller at a divergence of 0.0190 nats (other requests: 0.0100 to "
        "0.0300)."
    ]
    assert len(section.tables) == 1
    laws = read_section(plan(tmp_path / "laws.json", kl=None, kv_error=0.123))
    assert (
        "a relative error of keys and values of 0.123 (by laws of similarity; no model ran" in laws.answer[0]
    )


def test_a_plan_on_unseen_requests(tmp_path: Path) -> None:
    total = {"workload": "w", "predictor": "p", "layers": 1, "requests": 8, "within_band": False}
    row: dict[str, Any] = {"workload": "w", "layer": 2, "setting": "fusion", "criterion": "both"}
    row |= {"threshold": 0.8, "predictor": "p", "v_error_predicted": 0.1, "v_error_measured": 0.2}
    for entry in (total, row):
        entry |= {"compression_predicted": 1.5, "compression_measured": 1.25}
    data = {"schema": "ratedist/plan-unseen/1", "rows": [row], "summary": [total]}
    section = read_section(written(tmp_path / "u.json", data | {"provenance": {"model": "m"}}))
    assert section.answer == [
        "w: p predicts 1.50 times fewer blocks in the planned layers, 1.25 are measured on 8 other requests, "
        "outside its band."
    ]
    assert section.tables[1].rows == (("w", 2, "fusion", "both", 0.8, "p", 1.5, 1.25, 0.1, 0.2),)
    with pytest.raises(RatedistError, match=r"broken.json is damaged: KeyError 'model'"):
        read_section(written(tmp_path / "broken.json", data))
