"""Laws by name, and files of fitted laws."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ratedist.errors import InputError, RatedistError
from ratedist.similarity import Fit, Gaussian, ParetoTail, known_laws, law_from_dict, load_law, save_law
from ratedist.similarity.registry import register


def test_known_laws() -> None:
    assert known_laws() == [
        "empirical",
        "gaussian",
        "joint",
        "minimum",
        "mixture",
        "pareto-tail",
        "position-marked",
        "spherical",
        "truncated-gaussian",
    ]


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="two laws are named 'gaussian'"):
        register(Gaussian)


def test_descriptions_that_are_none() -> None:
    with pytest.raises(
        InputError, match=r"law = 'normal': is not a known law; known are empirical, gaussian"
    ):
        law_from_dict({"name": "normal"})
    with pytest.raises(InputError, match=r"must be a dict with the law's 'name'"):
        law_from_dict({"mean": 0.5})
    with pytest.raises(InputError, match=r"law = 'gaussian': lacks its parameter 'std'"):
        law_from_dict({"name": "gaussian", "mean": 0.5})
    with pytest.raises(InputError, match=r"std = -1: must be a finite number above 0"):
        law_from_dict({"name": "gaussian", "mean": 0.5, "std": -1})


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "laws" / "keys.json"
    law = ParetoTail([0.1, 0.5], [0, 1], 0.1, -0.6, 0.1)
    fit = Fit(law, {"shape": math.nan, "scale": 0.01}, 321)
    save_law(fit, path, workload="templates")
    again = load_law(path)
    assert again.law == law
    assert again.sample_size == 321
    assert again.standard_errors["scale"] == 0.01
    assert math.isnan(again.standard_errors["shape"])
    data = json.loads(path.read_text())
    assert data["schema"] == "ratedist/fitted-law/1"
    assert data["provenance"]["workload"] == "templates"


def test_a_law_without_its_fit(tmp_path: Path) -> None:
    save_law(Gaussian(0.5, 0.1), tmp_path / "law.json")
    again = load_law(tmp_path / "law.json")
    assert again.law == Gaussian(0.5, 0.1)
    assert again.standard_errors == {}


def test_files_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    save_law(Gaussian(0.5, 0.1), path)
    with pytest.raises(InputError, match=r"path = .*law\.json.*: exists already"):
        save_law(Gaussian(0.6, 0.1), path)
    assert load_law(path).law == Gaussian(0.5, 0.1)
    save_law(Gaussian(0.6, 0.1), path, force=True)
    assert load_law(path).law == Gaussian(0.6, 0.1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["law.json"]


def test_files_that_are_no_laws(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    with pytest.raises(InputError, match=r"no such file; write one with save_law"):
        load_law(path)
    path.write_text("{")
    with pytest.raises(RatedistError, match=r"is not a fitted law"):
        load_law(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RatedistError, match=r"is not a fitted law"):
        load_law(path)
    path.write_text("[1]")
    with pytest.raises(RatedistError, match=r"has schema 'list'; this version reads 'ratedist/fitted-law/1'"):
        load_law(path)
    path.write_text('{"schema": "ratedist/fitted-law/2"}')
    with pytest.raises(RatedistError, match=r"has schema 'ratedist/fitted-law/2'"):
        load_law(path)
    path.write_text('{"schema": "ratedist/fitted-law/1", "law": {"name": "gaussian", "mean": 0, "std": 1}}')
    with pytest.raises(RatedistError, match=r"lacks standard_errors, sample_size"):
        load_law(path)
