"""``ratedist capture`` as a user calls it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny_models import save_tiny_model

from ratedist.cli import main
from ratedist.cli.capture import parse_bytes, parse_layers, token_progress
from ratedist.errors import InputError
from ratedist.validate.captures.store import Capture
from ratedist.validate.workloads import WORKLOADS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str):
    """Runs the command with a tiny model; returns exit code, standard output and standard error."""

    def call(*arguments: object, own_model: bool = True) -> tuple[int, str, str]:
        chosen = ["--model", model] if own_model else []
        monkeypatch.setattr(sys, "argv", ["ratedist", "capture", *map(str, arguments), *chosen])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_workload(run, tmp_path: Path) -> None:
    code, out, err = run(
        "--workload", "templates", "--requests", 3, "--tokens", 40, "--batch-size", 2, "--layers", "0,2",
        "--seed", 4, "--out", tmp_path / "c", "--json",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(out)
    capture = Capture.open(tmp_path / "c")
    assert summary["folder"] == str(tmp_path / "c")
    assert summary["files"] == ["batch-00000.safetensors", "batch-00001.safetensors"]
    assert summary["bytes"] == sum((tmp_path / "c" / name).stat().st_size for name in summary["files"])
    assert (summary["requests"], summary["tokens"], summary["layers"]) == (3, 120, [0, 2])
    assert (capture.manifest.workload, capture.manifest.seed) == ("templates", 4)

    again, out, err = run(
        "--workload", "templates", "--requests", 3, "--tokens", 40, "--batch-size", 2, "--layers", "0,2",
        "--seed", 4, "--out", tmp_path / "c",
    )  # fmt: skip
    assert again == 0, err
    assert out.startswith("templates: 3 requests, 120 tokens, 2 layers of tiny in float32")


def test_decoding_queries_and_memory(run, tmp_path: Path) -> None:
    code, out, err = run(
        "--workload", "templates", "--requests", 3, "--tokens", 40, "--decode", 4, "--queries", 2,
        "--memory-limit", "900 kB", "--out", tmp_path / "c", "--json",
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["tokens"], summary["generated"], summary["queries"]) == (3 * 44, 12, 2)
    assert 1 <= summary["batch_size"] < 3
    assert len(summary["files"]) == -(-3 // summary["batch_size"])
    capture = Capture.open(tmp_path / "c")
    assert capture.manifest.generated == (4, 4, 4)
    assert capture.queries(1).shape == (3, 2, 4, 8)


def test_own_prompts(run, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "hello", "domain": "a"}\n{"prompt": "good morning", "domain": "b"}\n')
    code, _, err = run("--prompts", file, "--out", tmp_path / "c", "--store-dtype", "bfloat16")
    assert code == 0, err
    manifest = Capture.open(tmp_path / "c").manifest
    assert manifest.workload == "mine.jsonl"
    assert manifest.lengths == (6, 13)
    assert manifest.domains == (0, 1)
    assert manifest.dtype == "bfloat16"

    file.write_text(json.dumps({"prompt": "x" * 160}))
    code, _, err = run("--prompts", file, "--out", tmp_path / "d")
    assert code == 2
    assert "line 1': has 161 tokens, the model takes at most 160; shorten it or pass --tokens" in err
    code, _, err = run("--prompts", file, "--out", tmp_path / "d", "--tokens", 160)
    assert code == 0, err


def test_folder_in_use(run, tmp_path: Path) -> None:
    common = ("--workload", "templates", "--tokens", 120, "--out", tmp_path / "c")
    assert run(*common, "--requests", 2)[0] == 0
    code, out, err = run(*common, "--requests", 3)
    assert (code, out) == (2, "")
    assert "holds a capture made with other settings (different: " in err
    assert Capture.open(tmp_path / "c").manifest.requests == 2
    assert run(*common, "--requests", 3, "--force")[0] == 0
    assert Capture.open(tmp_path / "c").manifest.requests == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "chat"], "workload = 'chat': must be one of unrelated, system-prompt, documents"),
        ([], "workload and prompts = (None, None): name exactly one of them"),
        (["--workload", "templates", "--prompts", "x.jsonl"], "name exactly one of them"),
        (["--prompts", "gone.jsonl"], "prompts = 'gone.jsonl': cannot be read (No such file or directory)"),
        (["--workload", "templates", "--requests", "0"], "requests = 0: must be at least 1"),
        (["--workload", "templates", "--tokens", "-3"], "tokens = -3: must be at least 1"),
        (["--workload", "templates", "--tokens", "161"], "tokens = 161: request 0 is longer than tiny takes"),
        (["--workload", "templates", "--tokens", "40", "--layers", "3"], "layers = '3': must be ascending"),
        (["--workload", "templates", "--dtype", "int8"], "dtype = 'int8': must be auto or one of float32"),
        (["--workload", "mixture:chat=1"], "workload = 'mixture:chat=1': 'chat' is unknown; mix some of"),
        (["--workload", "templates", "--memory-limit", "much"], "memory_limit = 'much': write a size as in"),
        (
            ["--workload", "templates", "--tokens", "100", "--memory-limit", "1kB"],
            "memory_limit = '1 kB': one request of 100 tokens takes about",
        ),
        (
            ["--workload", "templates", "--tokens", "100", "--memory-limit", "1MB", "--batch-size", "8"],
            "and the memory limit is 1 MB; 2 would fit",
        ),
        (
            ["--workload", "templates", "--tokens", "100", "--decode", "61"],
            "longer than tiny takes (160 tokens); shorten it, or generate fewer than 61 tokens",
        ),
        (
            ["--workload", "templates", "--tokens", "40", "--queries", "41"],
            "queries = 41: must lie in 0 … 40",
        ),
        (["--workload", "templates", "--device", "toaster"], "device = 'toaster': cannot be used here"),
    ],
)
def test_bad_input(run, tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit code 2, one line that says what would do, nothing on standard output, nothing written."""
    code, out, err = run(*arguments, "--out", tmp_path / "c")
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "c").exists()


def test_unknown_model(run, tmp_path: Path) -> None:
    code, _, err = run(
        "--workload", "templates", "--model", tmp_path / "gone", "--out", tmp_path / "c", own_model=False
    )
    assert code == 2
    assert "no such file or folder, and no Hugging Face id either" in err


def test_help_has_an_example(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "ratedist capture --workload documents" in out
    shown = re.sub(r"[│\s]+", "", out)
    assert all(f"{name}," in shown for name in WORKLOADS)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", None), ("0", [0]), ("2,8", [2, 8]), ("8, 2-4,3", [2, 3, 4, 8]), ("29-29", [29])],
)
def test_layers(text: str, layers: list[int] | None) -> None:
    assert parse_layers(text, 30) == layers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1.5", "²"])
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="write all, or indices and ranges as in 2,8 or 2-27"):
        parse_layers(text, 30)


@pytest.mark.parametrize("text", ["30", "4-2", "28-30"])
def test_layers_beyond_the_model(text: str) -> None:
    with pytest.raises(InputError, match="must be ascending ranges within 0-29"):
        parse_layers(text, 30)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GB", 4 * 10**9), ("512MiB", 2**29), ("2.5 gb", 25 * 10**8), ("1000", 1000), ("7B", 7), ("1kB", 1000)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.4B", "4XB", "1e9", "٣GB", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="write a size as in 4GB, 512MiB or"):
        parse_bytes(text)


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_terminal=True, width=120)
    with token_progress(console, "unrelated") as progress:
        progress(128, 512)
        time.sleep(0.01)
        progress(512, 512)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "512/512 tokens" in shown.err
    assert "per second" in shown.err


def test_interrupted_by_the_user_and_resumed(run, tmp_path: Path, model: str) -> None:
    """A real SIGINT: what was finished stays, the message says how to go on, and the same command does."""
    folder = tmp_path / "c"
    arguments = ["--workload", "templates", "--requests", "40", "--tokens", "150", "--batch-size", "1"]
    arguments += ["--chunk-tokens", "3", "--out", str(folder)]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            # Jobs that a shell runs in the background are started with SIGINT ignored, and hand that down.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from ratedist.cli import main; main()",
            "capture",
            *arguments,
            "--model",
            model,
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 200
    while not (folder / "batch-00001.safetensors").exists():  # by then the first is on record
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "interrupted; what was finished is kept, and the same command goes on from there" in err
    assert "Traceback" not in err
    first = (folder / "batch-00000.safetensors").stat().st_mtime_ns
    assert not (folder / "capture.json").exists()
    code, _, err = run(*arguments)
    assert code == 0, err
    assert (folder / "batch-00000.safetensors").stat().st_mtime_ns == first
    assert Capture.open(folder).manifest.requests == 40
