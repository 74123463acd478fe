"""``ratedist validate --suite`` as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ratedist.cli import main
from ratedist.suite_record import read_suite_record

MINE = {
    "tasks": [{"workloads": "all", "splits": [[3, 4]], "layers": 2}],
    "seeds": [0, 1],
    "thresholds": [0.6, 0.8],
    "predictors": ["gaussian", "position-marked"],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs ``ratedist validate`` with arguments; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", "validate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MINE), encoding="utf-8")
    return path


def test_record_words_and_pictures(run, make_capture, mine: Path, tmp_path: Path) -> None:
    folders = [make_capture("one").folder, make_capture("two", seed=3).folder]
    out = tmp_path / "out"
    arguments = ("--suite", mine, "--capture", folders[0], "--capture", folders[1], "--out", out)
    code, shown, err = run(*arguments)
    assert code == 0, err
    record = read_suite_record(out / "suite.json")
    assert len(record.rows) == 2 * 2 * 2 * 2 * 2 * 2 * 2
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        *(
            "suite.json",
            "suite-summary.json",
            "settings.json",
            "suite-scatter.png",
            "suite-errors.png",
            "suite-layers.png",
        )
    }
    for text in (
        "3 → 4",
        "position-marked",
        "noise",
        "Covered: random, 2 workloads",
        str(out / "suite.json"),
    ):
        assert text in shown
    assert "comparing: 100%" in err
    assert record.provenance["suite"]["name"] == "mine"

    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    code, shown, _ = run(*arguments, "--json", "--workloads", "one")
    assert code == 0
    printed = json.loads(shown)
    assert printed["schema"] == "ratedist/suite/1"
    assert printed["columns"]["workload"] == {"values": ["one"], "codes": len(record.rows) // 2}
    assert {path: path.stat().st_mtime_ns for path in cells} == cells


def test_judging_needs_goals_that_are_met(run, make_capture, mine: Path, tmp_path: Path, monkeypatch) -> None:
    arguments = ("--suite", mine, "--capture", make_capture().folder, "--out", tmp_path / "out", "--judge")
    from ratedist.validate.suite import summary as suite_summary

    real = suite_summary.goals_of
    outcome = [True]

    def goals_of(summary: list) -> list:
        assert real(summary) == []
        return [
            {"predictor": "gaussian", "chosen": True, "n": 16, "m": 16, "rows": 3, "goal": "median"}
            | {"value": 0.1, "limit": 0.1, "met": met, "missed_by": 0.0}
            for met in outcome
        ]

    monkeypatch.setattr(suite_summary, "goals_of", goals_of)
    assert run(*arguments)[0] == 0
    outcome.append(False)
    assert run(*arguments)[0] == 1
    assert run(*arguments[:-1])[0] == 0
    outcome.clear()
    code, _, err = run(*arguments)
    assert code == 1
    assert "nothing to judge" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nowhere"], "suite = 'nowhere': no such suite or file; choose one of standard"),
        (["--suite", "MINE"], "out = None: name the suite's folder with --out"),
        (["--suite", "MINE", "--out", "o", "--variant", "tree"], "variant = ['tree']: is the suite's to say"),
        (
            ["--suite", "MINE", "--out", "o", "--threshold", "0.5"],
            "threshold = ['0.5']: is the suite's to say",
        ),
        (["--suite", "MINE", "--out", "o", "--seed", "3"], "seed = 3: is the suite's to say"),
        (
            ["--suite", "MINE", "--out", "o", "--capture", "CAPTURE", "--model", "x"],
            "model = 'x': is not needed with --capture",
        ),
        (
            ["--suite", "MINE", "--out", "o", "--capture", "CAPTURE", "--workloads", "three"],
            "workloads = 'three': is not a workload of the suite; choose among synthetic",
        ),
        (
            ["--suite", "MINE", "--out", "o", "--capture", "CAPTURE", "--jobs", "0"],
            "jobs = 0: must be at least 1",
        ),
        (
            ["--suite", "MINE", "--out", "o", "--capture", "CAPTURE", "--parts", "quality"],
            "parts = 'quality': is not in suite 'mine'; choose among prediction",
        ),
        (
            ["--suite", "full", "--out", "o", "--capture", "CAPTURE"],
            "part quality runs the model itself; add --parts prediction transfer",
        ),
        (["--suite", "MINE", "--out", "o", "--model", "no/such/model"], "model = 'no/such/model'"),
        (["--capture", "CAPTURE", "--judge"], "judge = True: goes with --suite"),
        (["--capture", "CAPTURE", "--workloads", "one"], "workloads = ['one']: goes with --suite"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_arguments_are_named(
    run, make_capture, mine: Path, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"MINE": mine, "CAPTURE": make_capture().folder}
    code, shown, err = run(*(given.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err
    assert not shown
    assert "Traceback" not in err


def test_a_suite_captures_what_it_needs(run, tmp_path: Path, monkeypatch) -> None:
    """A random model; the captures are used again by the next run, also with --force."""
    from tiny_models import save_tiny_model

    # The tiny model has three layers, which leaves one to fuse.
    for module in ("compare", "quality.continuation"):
        monkeypatch.setattr(f"ratedist.validate.{module}.ALONE_AT_EACH_END", 1)
    model = save_tiny_model(tmp_path / "model")
    suite = tmp_path / "s.json"
    suite.write_text(
        json.dumps(
            {
                "tasks": [{"workloads": ["templates", "documents"], "splits": [[2, 2]], "layers": 1}],
                "tokens": 64,
                "seeds": [0],
                "thresholds": [0.8],
                "predictors": ["gaussian"],
                "quality": {
                    "workloads": ["templates"],
                    "requests": 2,
                    "tokens": 64,
                    "continuation": 4,
                    "thresholds": [0.8],
                    "criteria": ["keys"],
                    "baselines": ["kivi4"],
                },
            }
        )
    )
    out = tmp_path / "out"
    code, shown, err = run("--suite", suite, "--model", model, "--out", out)
    assert code == 0, err
    assert "capturing: 100%" in err
    made = {path: path.stat().st_mtime_ns for path in (out / "captures").rglob("*") if path.is_file()}
    assert {path.parent.name for path in made} == {"templates", "documents"}
    assert {row["requests"] for row in read_suite_record(out / "suite.json").rows} == {2}
    quality = json.loads((out / "quality" / "quality.json").read_text())
    assert {(row["workload"], row["method"]) for row in quality["rows"]} == {
        ("templates", "fusion"),
        ("templates", "kivi4"),
    }
    assert str(out / "quality" / "quality.json") in shown
    code, _, err = run("--suite", suite, "--model", model, "--out", out, "--force", "--parts", "prediction")
    assert code == 0, err
    assert "measuring output" not in err
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.skipif(
    os.name != "posix", reason="SIGINT reaches a child process on POSIX only; run it on Linux or macOS"
)
def test_ctrl_c_keeps_what_is_finished(make_capture, mine: Path, tmp_path: Path) -> None:
    mine.write_text(json.dumps({**MINE, "seeds": list(range(60)), "noise_draws": 1}))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        # Jobs that a shell runs in the background are started with SIGINT ignored, and hand that down.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from ratedist.cli import main; main()",
        "validate",
        "--suite",
        str(mine),
    ]
    command += ["--capture", str(make_capture().folder), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while not list(out.rglob("split-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept, and the same command goes on from there" in err
    assert "Traceback" not in err
    cells = list((out / "cells").rglob("split-*.json"))
    assert 0 < len(cells) < 2 * 60
    for cell in cells:
        json.loads(cell.read_text())
    assert not list(out.rglob(".*"))
