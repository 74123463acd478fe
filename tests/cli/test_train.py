"""``ratedist train`` as a user calls it, on a text of a few lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ratedist.cli import main
from ratedist.validate.training.corpus import build_corpus
from ratedist.validate.workloads.texts import Document


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command; returns exit code, standard output and standard error."""
    texts = [Document(f"{number:02d}", "one two three four five. " * 60) for number in range(11)]
    small = build_corpus(262, texts)
    monkeypatch.setattr("ratedist.validate.training.train.build_corpus", lambda vocabulary: small)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ratedist", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    yield call
    torch.set_num_threads(threads)


def test_stopped_then_finished_then_refused(run, tmp_path: Path) -> None:
    out = tmp_path / "m"
    arguments = ("--architecture", "qwen2", "--steps", 2, "--seed", 3, "--out", out)
    code, shown, err = run(*arguments, "--minutes", 1e-9, "--json")
    assert code == 0, err
    assert json.loads(shown) == {"finished": False, "out": str(out)}
    assert "time is up; the same command goes on in" in err
    code, shown, err = run(*arguments)
    assert code == 0, err
    assert "bits per held-out token, 2 steps" in shown
    assert "training: 100% (step 2, held out" in err
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert record["provenance"]["plan"]["seed"] == 3
    assert record["provenance"]["command"][:3] == ["ratedist", "train", "--architecture"]
    code, shown, err = run(*arguments, "--json")
    assert (code, shown) == (2, "")
    assert "holds a finished model; name another folder, or pass --force" in err


def test_json_is_the_record(run, tmp_path: Path) -> None:
    code, shown, err = run("--architecture", "gemma3", "--steps", 1, "--out", tmp_path / "m", "--json")
    assert code == 0, err
    printed = json.loads(shown)
    record = json.loads((tmp_path / "m" / "training.json").read_text(encoding="utf-8"))
    assert printed == {"finished": True, "out": str(tmp_path / "m"), **record}


def test_an_unknown_architecture(run, tmp_path: Path) -> None:
    code, _, err = run("--architecture", "bert", "--out", tmp_path / "m")
    assert code == 2
    assert "architecture = 'bert': unknown; choose one of qwen2, gemma3" in err
    assert not (tmp_path / "m").exists()
