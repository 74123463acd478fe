"""``ratedist validate`` and ``ratedist demo`` as a user calls them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_models import save_llama

from ratedist.cli import main
from ratedist.records import read_record
from ratedist.validate.compare import SCHEMA, THRESHOLDS, Plan


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs ``ratedist`` with arguments; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six layers, so that two are left between the first and last two."""
    return save_llama(tmp_path_factory.mktemp("models") / "six-layers", 6)


def test_table_record_and_pictures(run, make_capture, tmp_path: Path) -> None:
    folders = [make_capture("one").folder, make_capture("two", seed=3).folder]
    out = tmp_path / "out"
    code, shown, err = run(
        "validate", "--capture", *folders, "--variant", "leader", "tree", "--layers", "2-3", "--out", out
    )
    assert code == 0, err
    record = read_record(out / "validation.json", SCHEMA)
    assert len(record.rows) == 2 * 2 * len(THRESHOLDS) * 2 * 2
    assert {path.name for path in out.iterdir()} == {
        "validation.json",
        *("one.png", "two.png", "one-tree-keys.png", "two-tree-keys.png", "overview.png"),
    }
    for text in (
        "one: leader, criterion keys, 2 layers",
        "two: tree",
        "position-",
        "median",
        "whole cache",
        "0.95",
    ):
        assert text in shown
    assert "validating: 4 of 4" in err
    assert str(out) in err

    code, _, err = run("validate", "--capture", *folders, "--out", out)
    assert code == 2
    assert f"out = '{out}': is not empty; choose another folder or pass --force" in err
    assert run("validate", "--capture", *folders, "--threshold", 0.7, "--out", out, "--force")[0] == 0
    assert len(read_record(out / "validation.json", SCHEMA).rows) == 2 * 2 * 2


def test_thresholds_beyond_the_calibration_are_named(run, make_capture, tmp_path: Path) -> None:
    folder = make_capture("one", shared_tokens=0).folder
    code, shown, err = run(
        "validate",
        "--capture",
        folder,
        "--threshold",
        "0.1,1",
        "--criterion",
        "both",
        "--layers",
        "2-3",
    )
    assert code == 0, err
    joined = " ".join(shown.split())
    assert "one, criterion both: from τ = 1 on, in 2 layers or more, no pair of calibration" in joined
    assert "calibrate on more requests, or take lower thresholds" in joined
    _, shown, _ = run("validate", "--capture", folder, "--threshold", "0.1", "--layers", "2-3")
    assert "no pair of calibration" not in " ".join(shown.split())


def test_json_is_the_record_alone(run, make_capture) -> None:
    code, shown, _ = run(
        "validate", "--capture", make_capture().folder, "--threshold", "0.7,0.8", "--threshold", 0.9,
        "--layers", "all", "--predictor", "position-marked", "--criterion", "both", "--seed", 5, "--json",
    )  # fmt: skip
    assert code == 0
    record = json.loads(shown)
    assert list(record) == ["schema", "provenance", "rows", "summary"]
    assert {(r["threshold"], r["layer"]) for r in record["rows"]} == {
        (t, layer) for t in (0.7, 0.8, 0.9) for layer in (1, 2, 3, 4)
    }
    assert {(r["predictor"], r["criterion"]) for r in record["rows"]} == {("position-marked", "both")}
    assert record["provenance"]["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "capture = None: name at least one capture's folder"),
        (["--capture", "nowhere"], "nowhere holds no capture"),
        (
            ["--capture", "nowhere", "--backend", "cuda"],
            "backend = 'cuda': unknown; choose one of auto, reference",
        ),
        (
            ["--capture", "nowhere", "--variant", "forest"],
            "variant = 'forest': unknown; choose one of leader, tree",
        ),
        (["--capture", "nowhere", "--criterion", "x"], "criterion = 'x': unknown; choose one of keys, both"),
        (["--capture", "nowhere", "--predictor", "x"], "predictor = 'x': unknown; choose one of gaussian"),
        (["--capture", "nowhere", "--scale", "x"], "scale = 'x': unknown; choose one of"),
        (["--capture", "nowhere", "--threshold", "2"], "threshold = 2.0: must lie in [-1, 1]"),
        (["--capture", "nowhere", "--threshold", "high"], "threshold = 'high': must be a number"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_arguments_are_named(
    run, tmp_path: Path, arguments: list[str], message: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, err = run("validate", *arguments)
    assert code == 2
    assert message in err
    assert not shown
    assert "Traceback" not in err


def test_bad_layers_and_damaged_captures_leave_the_output_alone(run, make_capture, tmp_path: Path) -> None:
    folder, out = make_capture().folder, tmp_path / "out"
    code, _, err = run("validate", "--capture", folder, "--layers", "3-9", "--out", out)
    assert (code, out.exists()) == (2, False)
    assert "layers = '3-9'" in err
    file = folder / "batch-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, _, err = run("validate", "--capture", folder, "--out", out)
    assert (code, out.exists()) == (2, False)
    assert "is truncated" in err


@pytest.fixture(scope="session")
def demo(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Arguments of a small demonstration; its folder, the third, is shared."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return ("demo", "--out", out, "--model", model, "--requests", 5, "--tokens", 320)


def test_demo_ends_well_twice_and_tells_where_the_pictures_are(run, demo) -> None:
    out, arguments = demo[2], demo
    code, shown, err = run(*arguments)
    assert code == 0, err
    record = read_record(out / "validation.json", SCHEMA)
    workloads = {"unrelated", "system-prompt", "documents", "templates"}
    assert {row["workload"] for row in record.rows} == workloads
    assert len(record.rows) == 4 * 2 * 2 * len(THRESHOLDS) * len(Plan().predictors)
    assert {entry["workload"] for entry in record.summary} == workloads | {"all"}
    checks = record.provenance["kernels"]["checks"]
    assert {(c["workload"], c["variant"]) for c in checks} == {
        (w, v) for w in workloads for v in ("leader", "tree")
    }
    assert all(check["holds"] for check in checks)
    for name in (*workloads, "overview"):
        assert f"picture: {out / name}.png" in shown
        assert (out / f"{name}.png").exists()
    assert shown.rstrip().endswith(f"report, for a browser: {out / 'report.html'}")
    assert "unrelated: fusion, exact sharing included" in (out / "report.html").read_text()
    captured = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert len(captured) == 4
    code, _, err = run(*arguments)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == captured
    assert read_record(out / "validation.json", SCHEMA).rows == record.rows


def test_demo_fails_where_the_kernels_differ(run, demo, monkeypatch) -> None:
    from ratedist.validate import agreement

    attend = agreement.paged_decode_attention

    def attend_wrongly(q, layer, *, backend):
        out, lse = attend(q, layer, backend=backend)
        return (out * 1.01 if backend == "triton" else out), lse

    monkeypatch.setattr(agreement, "paged_decode_attention", attend_wrongly)
    monkeypatch.setattr("ratedist.figures.validation.save_validation_figures", lambda record, folder: [])
    code, shown, err = run(*demo, "--json")
    assert code == 1
    assert "the Triton kernels and the CPU path differ" in err
    assert not any(check["holds"] for check in json.loads(shown)["provenance"]["kernels"]["checks"])


def test_demo_refuses_a_folder_that_is_not_its_own(run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    code, _, err = run("demo", "--out", tmp_path, "--model", model)
    assert code == 2
    assert "holds something else; name a new folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
