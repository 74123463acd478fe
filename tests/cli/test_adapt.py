"""``ratedist adapt`` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError
from ratedist.records import read_record


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def captures(tmp_path: Path) -> list[str]:
    folders = []
    for name, prefix in (("a", "1"), ("b", "3")):
        folder = tmp_path / name
        run("simulate", "--set", "block_size=4", "kv_heads=1", "head_dim=32", f"prefix_blocks={prefix}",
            "--runs", "2", "--process-runs", "2", "--requests", "16", "--blocks", "4",
            "--write-capture", str(folder))  # fmt: skip
        manifest = folder / "capture.json"
        text = manifest.read_text(encoding="utf-8")
        manifest.write_text(text.replace('"synthetic-blocks"', f'"{name}"'), encoding="utf-8")
        folders.append(str(folder))
    return folders


def test_table_record_and_figure(captures: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["--capture", *captures, "--target", "0.2", "--window", "16", "--resident", "6"]
    result = run("adapt", *common, "--out", str(out), "--json")
    data = json.loads(result.stdout)
    record = read_record(out / "adapt.json", "ratedist/adapt/1")
    assert data == {"rows": record.rows, "summary": record.summary}
    assert record.provenance["workloads"] == ["a", "b"]
    assert (out / "adapt.png").stat().st_size > 20_000
    with pytest.raises(InputError, match=r"out = .*: is not empty"):
        run("adapt", *common, "--out", str(out))
    result = run("adapt", *common)
    for text in ("a → b", "integral", "oracle", "worst", "at most", "promised 0.2"):
        assert text in result.stdout


def test_what_is_refused(captures: list[str]) -> None:
    with pytest.raises(InputError, match=r"captures = 1: needs at least two"):
        run("adapt", "--capture", captures[0])
    with pytest.raises(InputError, match=r"criterion = 'values': must be one of"):
        run("adapt", "--capture", *captures, "--criterion", "values")
    with pytest.raises(InputError, match=r"window = 3: is too short to promise"):
        run("adapt", "--capture", *captures, "--window", "3")
