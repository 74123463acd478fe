"""The README's examples do what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
SCREENS_OF_LINES = 100


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_example_runs() -> None:
    (example,) = blocks("python")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=True, cwd="/"
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("threshold 0.4: 1.43x, 14")


def test_curve_example_draws(tmp_path: Path) -> None:
    (command,) = [line for block in blocks("sh") for line in block.splitlines() if "ratedist curve" in line]
    arguments = shlex.split(command)
    arguments[arguments.index("--runs") + 1] = "4"
    subprocess.run([Path(sys.executable).parent / arguments[0], *arguments[1:]], check=True, cwd=tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`ratedist ([a-z]+)", README))))
def test_commands_have_help_with_an_example(command: str) -> None:
    names = [command, "fusion"] if command == "bench" else [command]
    result = subprocess.run(
        [Path(sys.executable).parent / "ratedist", *names, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Example" in result.stdout


def test_readme_fits_two_screens() -> None:
    assert len(README.splitlines()) <= SCREENS_OF_LINES
