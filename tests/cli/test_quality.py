"""``ratedist quality`` as a user calls it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_tiny_model

from ratedist.cli import main
from ratedist.records import read_record
from ratedist.validate.quality.run import QUALITY_SCHEMA

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--tokens", 32, "--continue", 4, "--requests", 4, "--layers", "all")
METHODS = ("--threshold", 0.3, "0.7", "--criterion", "keys", "--baselines", "exact", "kivi4")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str) -> Run:
    def call(*arguments: object, command: str = "quality") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", command, *map(str, arguments), "--model", model])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_record_picture_and_table(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "q"
    code, printed, err = run("--workload", "templates", *SMALL, *METHODS, "--out", out)
    assert code == 0, err
    record = read_record(out / "quality.json", QUALITY_SCHEMA)
    assert [(row["method"], row["threshold"]) for row in record.rows] == [
        ("exact", None),
        ("kivi4", None),
        ("fusion", 0.3),
        ("fusion", 0.7),
    ]
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert "templates: fusion" in printed
    assert "kivi4" in printed
    code, _, err = run("--workload", "templates", *SMALL, *METHODS, "--out", out)
    assert code == 2
    assert "finished" in err
    assert "--force" in err
    code, printed, err = run("--workload", "templates", *SMALL, *METHODS, "--out", out, "--force", "--json")
    assert code == 0, err
    assert json.loads(printed)["rows"] == record.rows


def test_run_that_was_interrupted_goes_on(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "q"
    assert run("--workload", "templates", *SMALL, *METHODS, "--out", out)[0] == 0
    (out / "quality.json").unlink()
    (out / "quality.png").unlink()
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    assert run("--workload", "templates", *SMALL, *METHODS, "--out", out)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()} == before


def test_requests_of_a_capture(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    made = run("--workload", "templates", "--requests", 4, "--tokens", 40, "--out", folder, command="capture")
    assert made[0] == 0, made[2]
    code, printed, err = run("--capture", folder, "--continue", 4, "--layers", "all", *METHODS, "--json")
    assert code == 0, err
    about = json.loads(printed)["provenance"]["workloads"][0]
    assert (about["workload"], about["requests"], about["prefix_tokens"]) == ("templates", 4, [35, 35])


def test_capture_of_another_model_is_refused(
    run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from ratedist.validate.captures.capture import capture_cache
    from ratedist.validate.models import load_model
    from ratedist.validate.workloads import build_prompts

    other = load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1))
    prompts = build_prompts("templates", other.tokenizer, requests=2, tokens=40)
    capture_cache(other, prompts, tmp_path / "c")
    code, _, err = run("--capture", tmp_path / "c", "--layers", "all", "--continue", 4, *METHODS)
    assert code == 2
    assert "name the capture's own with --model" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name at least one workload"),
        (("--workload", "nonsense"), "unrelated"),
        (("--workload", "templates", "--baselines", "4bit"), "unknown; use one of nothing, exact"),
        (("--workload", "templates", "--threshold", "2"), "threshold"),
        (("--workload", "templates", "--variant", "forest"), "must be one of leader, tree"),
        (("--workload", "templates", "--continue", "0"), "at least 1 token"),
        (("--workload", "templates", "--layers", "9"), "0-2"),
        (("--workload", "templates", "--layers", "1", "--jobs", "0"), "jobs = 0: must be at least 1"),
        (("--workload", "templates", "--layers", "1", "--dask", "no such"), "no Dask scheduler answers"),
        (("--workload", "templates", "--requests", "3"), "name the layers to fuse"),
    ],
)
def test_bad_input_ends_with_2_and_says_what_would_do(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    code, printed, err = run(*arguments, *(("--tokens", "32") if arguments else ()))
    assert code == 2
    assert message in " ".join(err.split())
    assert printed == ""


def test_folder_with_other_files_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run("--workload", "templates", *SMALL, "--out", tmp_path)
    assert code == 2
    assert "other files" in " ".join(err.split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]
