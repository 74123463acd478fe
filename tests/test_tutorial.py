"""docs/tutorial.md and docs/howto.md, block by block, on a tiny random model.

Blocks run in the order of the page in one process and one temporary folder: Python in one namespace, commands
as the command line would run them. What differs from the page is what ``SETTINGS`` puts in the place of its
exports, and that packages are not installed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import string
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ratedist.cli import main

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SETTINGS = {"REQUESTS": "6", "CALIBRATION": "2", "TOKENS": "64", "SERVED": "2", "NEW_TOKENS": "4"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six layers, so that two are left between the first and last two."""
    from tiny_models import save_llama

    return save_llama(tmp_path_factory.mktemp("models") / "six-layers", 6)


class Page:
    """A page that is run in the current folder.

    Attributes:
        text: of the page.
        namespace: of its Python.
        variables: of its commands.
        installed: arguments of its ``pip install``.
        shown: what every block printed.
    """

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
        self.text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        self.namespace: dict[str, Any] = {"__name__": name}
        self.variables: dict[str, str] = {}
        self.installed: list[str] = []
        self.shown: list[str] = []
        self._settings = settings
        self._monkeypatch = monkeypatch

    def run(self) -> None:
        for language, source in BLOCK.findall(self.text):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                if language == "python":
                    exec(compile(source, self.namespace["__name__"], "exec"), self.namespace)
                else:
                    for line in source.replace("\\\n", " ").splitlines():
                        self._command(line.strip())
            self.shown.append(printed.getvalue())

    def _command(self, line: str) -> None:
        if line.startswith("export "):
            for name, value in re.findall(r"(\w+)=(\$\([^)]*\)*|\S+)", line):
                assert name in self._settings, f"{name} is exported by the page and not set by the test"
                assert value
                self.variables[name] = self._settings[name]
                self._monkeypatch.setenv(name, self._settings[name])
            return
        words = shlex.split(string.Template(line).substitute(self.variables), comments=True)
        if not words:
            return
        if words[:2] == ["pip", "install"]:
            self.installed += words[2:]
            return
        assert words[0] == "ratedist", f"the test does not run {words[0]}"
        target = words[words.index(">") + 1] if ">" in words else None
        arguments = words[: words.index(">")] if ">" in words else words
        printed, errors = io.StringIO(), io.StringIO()
        self._monkeypatch.setattr(sys, "argv", arguments)
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(errors),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        assert not ended.value.code, f"{line}\n{errors.getvalue()}"
        if target is None:
            print(printed.getvalue())
        else:
            Path(target).write_text(printed.getvalue(), encoding="utf-8")


@pytest.fixture
def page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs a page of the documentation in the temporary folder and returns it."""

    def run(name: str) -> Page:
        monkeypatch.chdir(tmp_path)
        found = Page(name, monkeypatch, SETTINGS | {"MODEL": str(model)})
        found.run()
        return found

    return run


def test_tutorial_ends_in_a_decision_and_a_report(page) -> None:
    tutorial = page("tutorial.md")
    shown = "\n".join(tutorial.shown)
    assert re.search(r"^layer 3, values: 5 % below -?\d\.\d\d", shown, re.MULTILINE)
    assert re.search(r"^above \d\.\d+: (Poisson|not Poisson|undecided): ", shown, re.MULTILINE)
    assert re.search(r"^accumulation: off by a factor of [1-9]\.\d\d in the median$", shown, re.MULTILINE)
    assert re.search(r"^both at 0.9: [1-9]\.\d\dx .* an error of \d\.\d\d$", shown, re.MULTILINE)
    assert re.search(r"^exact: \d\.\d\dx at 0.0000 nats$", shown, re.MULTILINE)
    verdict = tutorial.shown[-2]
    assert re.search(r"^divergence on other requests: \d\.\d{4}, (kept|broken)$", verdict, re.MULTILINE)
    assert re.search(r"^(fuse by plan.json|do not fuse; [\w+]+ is the better choice)$", verdict, re.MULTILINE)
    assert "Templates: fuse or not?" in Path("report.html").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    check_what_is_shown(tutorial)
    (wanted,) = re.findall(r"\.\[(.*)\]", " ".join(tutorial.installed))
    assert set(wanted.split(",")) <= set(extras["optional-dependencies"])


def check_what_is_shown(tutorial: Page) -> None:
    """What the page shows as printed: by the run of the record, or (where no model is needed) by this one."""
    record = json.loads((ROOT / "docs" / "records" / "tutorial.json").read_text(encoding="utf-8"))
    printed = {row["printed"] for row in record["rows"]}
    shown = [
        line
        for block in re.findall(r"^```text\n(.*?)^```$", tutorial.text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    here = [line.strip() for line in shown if line not in printed]
    assert len(here) == 3
    assert set(here) <= {line.strip() for line in tutorial.shown[2].splitlines()}
    uniform = f"{record['plan']['uniform']['compression']:.2f}x within the same divergence"
    assert uniform in re.sub(r"\s+", " ", tutorial.text)
    settings = record["provenance"]["settings"]
    exported = dict(re.findall(r"\b([A-Z_]+)=(\d+)", tutorial.text))
    assert {name: int(value) for name, value in exported.items()} == settings


def test_howto_runs_on_ones_own_prompts_and_engines(page) -> None:
    shown = "\n".join(page("howto.md").shown)
    assert re.search(r"^(\d+) blocks, (\d+) kept; \d+% of the bytes$", shown, re.MULTILINE)
    freed = re.search(
        r"^(\d+) blocks for the free list; the cache was left where it is$", shown, re.MULTILINE
    )
    entries = re.search(r"^(\d+) page entries, (\d+) different pages$", shown, re.MULTILINE)
    assert freed
    assert entries
    assert int(freed[1]) == int(entries[1]) - int(entries[2]) > 0
    assert len(re.findall(r"^layer [23]: .*, [1-9]\.\d\dx$", shown, re.MULTILINE)) == 2
