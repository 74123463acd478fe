"""``ratedist bench theory``, at sizes that a test can afford."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ratedist.cli import bench_theory
from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.records import read_record


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_theory, "_CURVE", {"requests": 64, "blocks": 8, "thresholds": 20})
    monkeypatch.setattr(bench_theory, "_MARKED", {"requests": 16, "positions": 8, "thresholds": 5})
    monkeypatch.setattr(bench_theory, "_RUNS", 20)


def test_rows(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(
        app, ["bench", "theory", "--json", "--repeats", "1", "--out", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["rows"]
    assert [row["name"] for row in rows] == [
        "theory/curve/tree",
        "theory/curve/leader",
        "theory/marked/tree",
        "theory/marked/tree/with-matches",
        "theory/marked/leader",
        "theory/marked/leader/with-matches",
        "theory/monte-carlo/tree/with-errors",
        "theory/monte-carlo/tree",
        "theory/monte-carlo/leader/with-errors",
        "theory/monte-carlo/leader",
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert row["cpu_seconds"] >= 0
        if row["promised_seconds"] is not None:
            assert row["ratio"] == pytest.approx(row["seconds"] / row["promised_seconds"])
    assert rows[0]["promised_seconds"] == 0.1
    assert rows[2]["promised_seconds"] == 2.0
    for row in rows[6:]:
        # Ten million merges a second are promised, so that a ratio of 1 is that rate.
        assert row["merges_per_second"] * row["ratio"] == pytest.approx(1e7)
    assert read_record(out, json.loads(result.stdout)["schema"]).rows == rows


def test_table() -> None:
    result = CliRunner().invoke(app, ["bench", "theory", "--repeats", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "marked/tree" in result.stdout


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"repeats = 0: must be at least 1"):
        CliRunner().invoke(app, ["bench", "theory", "--repeats", "0"], catch_exceptions=False)
    (tmp_path / "bench.json").write_text("kept")
    with pytest.raises(InputError, match=r"exists already"):
        CliRunner().invoke(
            app, ["bench", "theory", "--out", str(tmp_path / "bench.json")], catch_exceptions=False
        )
    assert (tmp_path / "bench.json").read_text() == "kept"
