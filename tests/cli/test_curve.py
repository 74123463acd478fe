"""``ratedist curve`` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ratedist import symbolic
from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.records import read_record
from ratedist.similarity import Empirical, Gaussian, save_law

SPHERE = ("--law", "spherical", "--dim", "64", "--requests", "64", "--blocks", "32")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["curve", *args], catch_exceptions=False)


def rows(*args: str) -> list[dict[str, float]]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["rows"]


def test_json_as_the_issue_writes_it() -> None:
    found = rows(*SPHERE, "--variant", "tree", "--thresholds", "0.4", "0.5", "0.6")
    assert [row["threshold"] for row in found] == [0.4, 0.5, 0.6]
    assert found[0]["kept"] == pytest.approx(1383.3, rel=0.005)
    assert found[0]["direct_error2"] == pytest.approx(1.1392, rel=0.005)
    assert found[0]["absorbed_error2"] == pytest.approx(1.205, rel=0.03)
    assert found[0]["variant"] == "tree"
    for row in found:
        assert row["kept_low"] <= row["kept_high"]
        assert row["compression"] == pytest.approx(2048 / row["kept"])


def test_the_hard_core_can_be_left_out() -> None:
    small = ("--law", "spherical", "--dim", "8", "--requests", "32", "--blocks", "16", "--thresholds", "0.7")
    assert rows(*small)[0]["kept"] == pytest.approx(114.7, rel=0.03)
    assert rows(*small, "--no-hard-core")[0]["kept"] == pytest.approx(131.5, rel=0.01)
    assert rows(*small, "--variant", "tree", "--no-hard-core")[0]["kept"] == pytest.approx(104, rel=0.01)


def test_a_grid_of_several_variants() -> None:
    found = rows(*SPHERE, "--variant", "leader", "tree", "--grid", "0.3", "0.5", "3")
    assert [(row["variant"], row["threshold"]) for row in found] == [
        (variant, pytest.approx(threshold)) for variant in ("leader", "tree") for threshold in (0.3, 0.4, 0.5)
    ]


def test_simulations_are_the_same_in_several_processes() -> None:
    small = ("--law", "spherical", "--dim", "8", "--requests", "8", "--blocks", "4", "--runs", "5")
    drawn = (*small, "--variant", "leader", "tree", "--thresholds", "0.5", "0.7")
    assert rows(*drawn, "--jobs", "2") == rows(*drawn)


def test_table() -> None:
    result = run(
        *SPHERE, "--thresholds", "0.4", "--block-scalars", "16384", "--layers", "32", "--fused-layers", "28"
    )
    assert result.exit_code == 0
    line = result.stdout.splitlines()[-1].split()
    assert line[:2] == ["0.4", "leader"]
    assert line[2].startswith("1,4")
    for heading in ("90% band", "factor", "whole", "e² final"):
        assert heading in result.stdout


def test_monte_carlo_stands_beside_the_prediction() -> None:
    law = ("--law", "gaussian", "--mean", "0.2", "--std", "0.1", "--requests", "16", "--blocks", "8")
    found = rows(*law, "--thresholds", "0.4", "0.5", "--runs", "200", "--seed", "3")
    for row in found:
        assert abs(row["simulated_kept"] - row["kept"]) < 4 * row["simulated_kept_se"] + 0.003 * row["kept"]
    assert found == rows(*law, "--thresholds", "0.4", "0.5", "--runs", "200", "--seed", "3")
    assert "simulated" in run(*law, "--thresholds", "0.4", "--runs", "20").stdout


def test_laws_from_files(tmp_path: Path) -> None:
    save_law(Gaussian(0.3, 0.1), tmp_path / "law.json")
    batch = ("--requests", "16", "--blocks", "8", "--thresholds", "0.5")
    by_name = rows("--law", "gaussian", "--mean", "0.3", "--std", "0.1", *batch)
    assert rows("--law-file", str(tmp_path / "law.json"), *batch) == by_name
    import numpy as np

    fit = Empirical.fit(np.random.default_rng(0).normal(0.3, 0.1, 4000))
    save_law(fit, tmp_path / "sample.json")
    found = rows("--law-file", str(tmp_path / "sample.json"), *batch)
    assert found[0]["kept"] == pytest.approx(by_name[0]["kept"], rel=0.05)


def test_figures_and_records(tmp_path: Path) -> None:
    args = (*SPHERE, "--grid", "0.2", "0.6", "5", "--variant", "leader", "tree", "--runs", "5")
    figure = tmp_path / "new" / "curve.png"
    assert run(*args, "--out", str(figure)).exit_code == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    record = tmp_path / "curve.json"
    assert run(*args, "--out", str(record)).exit_code == 0
    assert len(read_record(record, "ratedist/curve/1").rows) == 10
    before = figure.read_bytes()
    with pytest.raises(InputError, match=r"out = .*curve\.png': exists already; .* --force"):
        run(*args, "--out", str(figure))
    assert figure.read_bytes() == before
    assert run(*SPHERE, "--thresholds", "0.4", "--out", str(figure), "--force").exit_code == 0


def test_derive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All of them are derived in tests/ratedist/test_symbolic.py.
    few = {name: symbolic.DERIVATIONS[name] for name in ("centroid", "matern-share")}
    monkeypatch.setattr(symbolic, "DERIVATIONS", few)
    document = tmp_path / "derivations.tex"
    result = run("--derive", "--json", "--out", str(document))
    assert result.exit_code == 0
    found = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in found] == ["centroid", "matern-share"]
    assert all(row["steps"] and row["results"] for row in found)
    assert document.read_text(encoding="utf-8").startswith(r"\documentclass")
    with pytest.raises(InputError, match=r"exists already"):
        run("--derive", "--out", str(document))
    with pytest.raises(InputError, match=r"must end in \.tex"):
        run("--derive", "--out", str(tmp_path / "derivations.png"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--thresholds", "0.4"), r"law = None: give either --law NAME or --law-file FILE"),
        (("--law", "cauchy", "--thresholds", "0.4"), r"law = 'cauchy': must be one of spherical, gaussian"),
        (("--law", "spherical", "--thresholds", "0.4"), r"dim = None: is needed with --law spherical"),
        (
            ("--law", "spherical", "--dim", "8", "--mean", "0", "--thresholds", "0.4"),
            r"mean = 0\.0: does not belong with --law spherical, which takes --dim",
        ),
        (("--law", "spherical", "--dim", "1", "--thresholds", "0.4"), r"dim = 1\.0: must be above 1"),
        (("--law", "gaussian", "--mean", "0", "--thresholds", "0.4"), r"std = None: is needed"),
        (("--law", "gaussian", "--mean", "0", "--std", "0", "--thresholds", "0.4"), r"std = 0\.0: must be"),
        ((*SPHERE,), r"thresholds = None: give either --thresholds"),
        ((*SPHERE, "--thresholds", "0.4", "--grid", "0", "1", "3"), r"thresholds = \['0\.4'\]: give either"),
        ((*SPHERE, "--thresholds", "high"), r"thresholds = 'high': must be a number"),
        ((*SPHERE, "--thresholds", "0.5", "0.4"), r"thresholds = \[0\.5, 0\.4\]: must be sorted"),
        ((*SPHERE, "--thresholds", "0.4", "0.4"), r"thresholds = 0\.4: is given twice"),
        ((*SPHERE, "--thresholds", "nan"), r"thresholds = nan: must be finite"),
        ((*SPHERE, "--thresholds", "1.5"), r"thresholds = 1\.5: must be finite and lie in \[-1, 1\]"),
        ((*SPHERE, "--grid", "0.5", "0.4", "3"), r"grid = \(0\.5, 0\.4, 3\): must be START < STOP"),
        (
            (*SPHERE, "--grid", "0.4", "0.5", "1"),
            r"grid = .*: must be START < STOP and a COUNT of at least 2",
        ),
        ((*SPHERE, "--thresholds", "0.4", "--requests", "0"), r"requests = 0: must be a whole number"),
        ((*SPHERE, "--thresholds", "0.4", "--blocks", "0"), r"blocks = 0: must be a whole number"),
        ((*SPHERE, "--thresholds", "0.4", "--variant", "forest"), r"variant = 'forest': must be one of"),
        ((*SPHERE, "--thresholds", "0.4", "--variant", "tree", "tree"), r"variant = .*: names one twice"),
        ((*SPHERE, "--thresholds", "0.4", "--runs", "1"), r"runs = 1: must be 0 for none, or at least 2"),
        ((*SPHERE, "--thresholds", "0.4", "--confidence", "1"), r"confidence = 1\.0: must be below 1"),
        ((*SPHERE, "--thresholds", "0.4", "--layers", "32"), r"layers = 32: needs --block-scalars"),
        ((*SPHERE, "--thresholds", "0.4", "--fused-layers", "32"), r"fused-layers = 32: needs --layers"),
        ((*SPHERE, "--thresholds", "0.4", "--out", "curve.gif"), r"out = 'curve\.gif': must end in \.png"),
        ((*SPHERE, "--thresholds", "0.4", "--out", "."), r"out = '\.': must end in"),
        (("--law-file", "missing.json", "--thresholds", "0.4"), r"= 'missing\.json': no such file"),
        (
            ("--law-file", "law.json", "--dim", "8", "--thresholds", "0.4"),
            r"dim = 8\.0: belongs to --law; the file holds its own parameters",
        ),
    ],
)
def test_refusals(args: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(*args)


def test_exit_code_and_one_line_of_error(tmp_path: Path) -> None:
    """In a process of its own, a refusal is one line on standard error, and the result is alone on output."""
    command = [str(Path(sys.executable).parent / "ratedist")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    bad = subprocess.run(
        [*command, "curve", *SPHERE, "--thresholds", "0.5", "0.4"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.startswith("error: thresholds = [0.5, 0.4]: must be sorted")
    assert bad.stderr.count("\n") == 1
    good = subprocess.run(
        [*command, "curve", *SPHERE, "--thresholds", "0.4", "0.5", "--runs", "3", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert good.returncode == 0, good.stderr
    assert len(json.loads(good.stdout)["rows"]) == 2
