"""``ratedist simulate`` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.records import read_record
from ratedist.validate.captures.store import Capture

QUICK = ["--runs", "2", "--process-runs", "50", "--requests", "5", "--blocks", "4"]
SMALL = ["--set", "block_size=4", "kv_heads=1", "head_dim=32", "common_k=0.6", "prefix_blocks=2"]


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_named_law_prints_a_table_and_names_the_assumptions() -> None:
    result = run("--law", "spherical", "--dim", "12", "--thresholds", "0.4", "0.6", *QUICK)
    assert result.exit_code == 0
    for text in ("1 closed form", "2 process", "3 synthetic blocks", "the Poisson claim", "closure"):
        assert text in result.stdout
    assert "4 capture" not in result.stdout


def test_json_is_the_record_alone(tmp_path: Path) -> None:
    out = tmp_path / "ladder"
    result = run("--law", "gaussian", "--mean", "0.5", "--std", "0.1", "--json", "--out", str(out), *QUICK)
    data = json.loads(result.stdout)
    record = read_record(out / "ladder.json", "ratedist/ladder/1")
    assert data["rows"] == record.rows
    assert [row["threshold"] for row in record.rows if row["rung"] == 1] == [0.6, 0.65, 0.7, 0.75, 0.8]
    assert all(row["kept_se"] >= 0 for row in record.rows)
    assert (out / "ladder.png").stat().st_size > 10_000


def test_writes_a_capture_that_the_ladder_and_validate_read(tmp_path: Path) -> None:
    written = tmp_path / "synthetic"
    run(*SMALL, "norm_spread_k=0.1", *QUICK, "--requests", "8", "--write-capture", str(written))
    capture = Capture.open(written)
    assert capture.manifest.workload == "synthetic-blocks"
    assert capture.manifest.requests == 8
    result = run("--capture", str(written), "--layer", "2", "--runs", "2", "--process-runs", "20", "--json",
                 "--write-capture", str(tmp_path / "again"))  # fmt: skip
    rows = json.loads(result.stdout)["rows"]
    assert {row["rung"] for row in rows} == {1, 2, 3, 4}
    assert Capture.open(tmp_path / "again").manifest.layers == (2,)
    checked = CliRunner().invoke(
        app, ["validate", "--capture", str(written), "--backend", "cpu", "--out", str(tmp_path / "v")]
    )
    assert checked.exit_code == 0, checked.exception


def test_seeds_reproduce_the_numbers() -> None:
    one, again, other = (
        json.loads(run(*SMALL, *QUICK, "--json", "--seed", seed, "--thresholds", "0.65").stdout)["rows"]
        for seed in ("1", "1", "2")
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--law", "cauchy"], r"law = 'cauchy': must be one of spherical, gaussian, blocks"),
        (["--law", "spherical"], r"dim = None: is needed with --law spherical"),
        (["--dim", "3"], r"dim = 3: does not belong with --law blocks"),
        (["--law", "gaussian", "--mean", "0.5"], r"std = None: is needed with --law gaussian"),
        (["--law", "spherical", "--dim", "8", "--set", "topics=2"], r"set = .*which --law spherical decides"),
        (["--law", "spherical", "--dim", "1"], r"dimension = 1: must be a whole number of at least 2"),
        (["--set", "colour=red"], r"set = 'colour=red': must be NAME=VALUE with a NAME of block_size"),
        (["--set", "topics"], r"set = 'topics': must be NAME=VALUE"),
        (["--set", "topics=x"], r"topics = 'x': must be a whole number"),
        (["--set", "common_k=much"], r"common_k = 'much': must be a number"),
        (["--set", "common_k=2"], r"common_k = 2.0: is a share"),
        (["--layer", "3"], r"layer = 3: belongs to --capture"),
        (["--calibrate-on", "3"], r"calibrate-on = 3: belongs to --capture"),
        (["--capture", "nowhere", "--blocks", "3"], r"blocks = 3: does not go with --capture"),
        (["--capture", "nowhere", "--law", "spherical"], r"law = 'spherical': does not go with --capture"),
        (["--capture", "nowhere"], r"nowhere holds no capture"),
        (["--thresholds", "0.7", "0.6"], r"thresholds = \[0.7, 0.6\]: must be sorted"),
        (["--thresholds", "high"], r"thresholds = 'high': must be a number"),
        (["--variant", "ring"], r"variant = 'ring': must be leader or tree"),
        (["--runs", "1"], r"runs = 1: must be a whole number of at least 2"),
        (["--requests", "0"], r"requests = 0: must be a whole number of at least 1"),
        (["--blocks", "-2"], r"blocks = -2: must be a whole number of at least 1"),
        (["--backend", "abacus", *SMALL, "--requests", "2"], r"backend = 'abacus'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_named(arguments: list[str], message: str) -> None:
    from ratedist.errors import RatedistError

    with pytest.raises(RatedistError, match=message):
        run(*arguments)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty; choose another folder or pass --force"):
        run(*SMALL, *QUICK, "--out", str(tmp_path))
    with pytest.raises(InputError, match=r"write-capture = .* name two folders"):
        run(*SMALL, *QUICK, "--out", str(tmp_path / "a"), "--write-capture", str(tmp_path / "a"))
    run(*SMALL, *QUICK, "--thresholds", "0.7", "--out", str(tmp_path), "--force")
    assert (tmp_path / "note").read_text() == "mine"


def test_help_shows_an_example_and_errors_end_in_exit_code_2() -> None:
    result = run("--help")
    assert "Example: ratedist simulate" in " ".join(result.stdout.split()).replace("`", "")
    process = subprocess.run(
        [sys.executable, "-c", "from ratedist.cli import main; main()", "simulate", "--law", "cauchy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith("error: law = 'cauchy'")
    assert process.stdout == ""
