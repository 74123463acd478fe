"""``ratedist bench fusion`` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.cli.bench import SCHEMA
from ratedist.errors import InputError
from ratedist.records import read_record

SMALL = ["--requests", "3", "--blocks", "2", "--repeats", "1"]
FIELDS = {"name", "seconds", "floor_seconds", "ratio", "extra_bytes", "extra_share", "compression"}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from ratedist.cli import main; main()", "bench", "fusion", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_alone_on_standard_output() -> None:
    done = command(*SMALL, "--thresholds", "0.5", "0.75", "--datasets", "dense", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["schema"] == SCHEMA
    assert [row["name"] for row in record["rows"]] == [
        f"fusion/dense/{variant}/{threshold}" for variant in ("leader", "tree") for threshold in (0.5, 0.75)
    ]
    assert all(row.keys() >= FIELDS for row in record["rows"])
    # Nor does the profiler that counts allocations chatter.
    assert "profiler" not in done.stderr.lower()


def test_table_and_record(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    options = ["bench", "fusion", *SMALL, "--thresholds", "0.75", "--variants", "tree", "--out", str(out)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    for text in ("fusing/tree/0.75", "apart/tree/0.75", "extra memory"):
        assert text in result.output
    assert [row["name"] for row in read_record(out, SCHEMA).rows] == [
        "fusion/fusing/tree/0.75",
        "fusion/apart/tree/0.75",
    ]


def test_nothing_is_measured_before_a_refusal(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    out.write_text("mine")
    # Of a size that would take minutes.
    for arguments, message in (
        (["--out", str(out)], "exists already; choose another path or pass --force"),
        (["--datasets", "fusing", "real"], "dataset = 'real': must be one of fusing, apart, dense"),
        (["--thresholds", "0.5", "1.5"], r"threshold = 1.5: must lie within"),
        (["--requests", "1"], "requests = 1: must be at least 2"),
    ):
        result = CliRunner().invoke(app, ["bench", "fusion", "--requests", "512", *arguments])
        assert isinstance(result.exception, InputError)
        assert message in str(result.exception)
    assert out.read_text() == "mine"


def test_a_refusal_is_one_line_and_exit_code_two() -> None:
    done = command("--repeats", "0")
    assert done.returncode == 2
    assert done.stderr == "error: repeats = 0: must be at least 1\n"
    assert done.stdout == ""


def test_help_shows_an_example() -> None:
    result = CliRunner().invoke(app, ["bench", "fusion", "--help"])
    assert result.exit_code == 0
    assert "ratedist bench fusion --requests 32" in " ".join(result.output.split())
