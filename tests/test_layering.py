"""Imports point one way: the table of docs/design.md, held by walking the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("kernels", "sim", "validate", "figures")
THEORY = "theory"
LAZY_EVERYWHERE = {"matplotlib", "transformers", "sympy", "triton"}

MAY_IMPORT = {
    THEORY: {THEORY},
    "kernels": {"kernels", THEORY},
    "sim": {"sim", THEORY},
    "validate": {"validate", "sim", "kernels", THEORY},
    "figures": {"figures", THEORY},
}
# Of the theory the kernels take only what is free of it, so that they can be carried into a serving engine.
KERNELS_TAKE_OF_THEORY = {"ratedist.errors", "ratedist.gpus"}


def sources() -> list[tuple[str, Path]]:
    found = [(THEORY, path) for path in (ROOT / "ratedist").rglob("*.py")]
    found += [(part, path) for part in PARTS for path in (ROOT / part).rglob("*.py")]
    return found


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules a file imports, each with whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for n in ast.walk(f)
    }
    checking = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for n in ast.walk(block)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        at_start = id(node) not in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, at_start) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the absolute one"
            found.append((node.module or "", at_start))
            if node.module == "ratedist":
                found += [(f"ratedist.{alias.name}", at_start) for alias in node.names]
    return found


def part_of(module: str) -> str | None:
    if module.split(".")[0] != "ratedist":
        return None
    rest = module.split(".")[1:]
    return rest[0] if rest and rest[0] in PARTS else THEORY


@pytest.mark.parametrize(
    ("part", "path"), sources(), ids=lambda x: str(x.relative_to(ROOT)) if isinstance(x, Path) else x
)
def test_imports_follow_the_table(part: str, path: Path) -> None:
    is_cli = (ROOT / "ratedist" / "cli") in path.parents
    for module, at_start in imports(path):
        target = part_of(module)
        if target is None:
            top = module.split(".")[0]
            if part == THEORY:
                assert top != "torch" or (is_cli and not at_start), f"{path}: {module} in the theory"
                assert not at_start or top not in LAZY_EVERYWHERE, f"{path}: {module} at start-up"
                assert not at_start or module in ("scipy",) or top != "scipy", (
                    f"{path}: {module} at start-up; scipy's submodules load on first use (import scipy)"
                )
            if top == "triton":
                assert part == "kernels", f"{path}: triton outside kernels"
                assert not at_start or (path.name.startswith("_") and path.stem.endswith("_triton")), (
                    f"{path}: triton at start-up outside _*_triton.py"
                )
            if top == "transformers":
                assert not at_start, f"{path}: transformers at start-up"
            if top == "matplotlib":
                assert part == "figures" or not at_start, f"{path}: matplotlib at start-up"
            continue
        if is_cli and target != THEORY:
            assert not at_start, f"{path}: {module} must be imported inside the command"
            continue
        assert target in MAY_IMPORT[part], f"{path}: {part} must not import {module}"
        if part == "kernels" and target == THEORY:
            assert module in KERNELS_TAKE_OF_THEORY | {"ratedist"}, (
                f"{path}: kernels take only errors and GPU data of the theory"
            )


def test_import_is_light() -> None:
    """``import ratedist`` loads neither torch nor matplotlib, nor scipy.stats (0.7 s by itself)."""
    script = (
        "import sys, ratedist; "
        "heavy = 'torch matplotlib triton transformers sympy scipy.stats typer'.split(); "
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    assert result.stdout.strip() == "[]"
