"""``ratedist bench search`` at a size that a test can afford."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.records import read_record


def test_rows(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["bench", "search", "--blocks", "12800", "--dim", "64", "--draws", "2", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows] == [
        f"search/{name}/{size}" for name in ("isotropic", "mean") for size in (1280, 12800)
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        assert row["cpu_seconds"] > 0
        assert row["false"] == 0
        assert sum(entry["pairs"] for entry in row["bins"]) == row["blocks"] // 10
        found = sum(entry["pairs"] * entry["recall"] for entry in row["bins"])
        assert row["kept"] == pytest.approx(row["blocks"] - found)
        # Pairs above the similarity are found more often than it was asked for at the similarity.
        assert row["recall_above"] > 0.9
        assert (row["exponent"] is None) == (row["blocks"] == 1280)
    # The hyperplanes are the same, and centring takes the mean away.
    assert rows[3]["compared"] == pytest.approx(rows[1]["compared"], rel=0.1)
    assert rows[3]["largest_difference"] < 0.1
    assert read_record(out, json.loads(result.stdout)["schema"]).rows == rows


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--blocks", "1000", "blocks = 1000: must be a whole number, at least 1280"),
        ("--dim", "100", "dim = 100: must be a multiple of 16"),
        ("--draws", "0", "draws = 0: must be at least 1"),
        ("--recall", "1", "recall = 1.0: must be a number above 0 and below 1"),
        ("--similarity", "1", "similarity = 1.0: must be a number above 0 and below 1"),
    ],
)
def test_refusals(option: str, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["bench", "search", option, value], catch_exceptions=False)


def test_table_and_example() -> None:
    result = CliRunner().invoke(app, ["bench", "search", "--blocks", "1280", "--dim", "16"])
    assert "isotropic/1280" in result.stdout
    assert "Example" in CliRunner().invoke(app, ["bench", "search", "--help"]).stdout
