"""What documents and docstrings point to exists: tests, functions, files, headings. Nothing is imported."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("ratedist", "kernels", "sim", "validate", "figures")
DOCUMENTS = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve())
SOURCES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))

# `file.py::test_name`, the bare file, or `::test_name` in the file that was named last.
TEST = re.compile(r"(?P<file>(?:[\w.]+/)*test_\w+\.py)?(?:::\s?(?P<name>test_\w+))?")
DOTTED = re.compile(r"(?<![\w./-])ratedist(?:\.[A-Za-z_]\w*)+(?![\w/]|\.\w)")
QUOTED = re.compile(r"``(ratedist\.[\w.]+)(?:\(.*?\))?``")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
PYTHON_FILE = re.compile(r"`([\w/]+/\w+\.py)(?:::\w+)?`")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
SECTION = re.compile(r"docs/theory\.md, \"([^\"]+)\"")
NUMBERED = re.compile(r"docs/theory\.md, sections?")


def joined(text: str) -> str:
    """One line, without the marks of comments and of quoted lines, so that a reference may be broken."""
    return re.sub(r"\s*\n\s*(?:[#>]+ )?\s*", " ", text)


def references(text: str) -> list[tuple[str, str | None]]:
    """(file, test or None) of every test that ``text`` names."""
    found = []
    file = ""
    for match in TEST.finditer(joined(text)):
        if not match.group():
            continue
        file = match["file"] or file
        found.append((file, match["name"]))
    return found


@cache
def definitions(path: Path) -> dict[str, ast.stmt]:
    """Names that a module binds at its top level, with the statement that does."""
    return bound(ast.parse(path.read_text(encoding="utf-8")).body)


def bound(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            names |= bound(node.body)
    return names


def module_of(dotted: str) -> Path | None:
    """File of the module of this name: kernels/ and its like install as subpackages of ratedist."""
    parts = dotted.split(".")[1:]
    base = ROOT if parts and parts[0] in PARTS[1:] else ROOT / "ratedist"
    path = base.joinpath(*parts)
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def exists(dotted: str) -> bool:
    """Whether ``dotted`` names a module, what a module binds, or an attribute of a class."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        path = module_of(".".join(parts[:cut]))
        if path is not None:
            return not parts[cut:] or within(path, parts[cut:])
    return False


def within(path: Path, names: list[str]) -> bool:
    node = definitions(path).get(names[0])
    if node is None:
        return False
    if isinstance(node, ast.ImportFrom):
        (alias,) = (a for a in node.names if (a.asname or a.name) == names[0])
        return exists(".".join([node.module or "", alias.name, *names[1:]]))
    if len(names) == 1:
        return True
    return len(names) == 2 and isinstance(node, ast.ClassDef) and has_attribute(path, node, names[1])


def has_attribute(path: Path, node: ast.ClassDef, name: str) -> bool:
    if name in bound(node.body) or f"self.{name} = " in ast.unparse(node):
        return True
    return any(isinstance(base, ast.Name) and within(path, [base.id, name]) for base in node.bases)


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def missing_tests(text: str) -> list[str]:
    missing = []
    for file, name in references(text):
        path = ROOT / file
        if not file.startswith("tests/") or not path.is_file():
            missing.append(file or f"::{name} (of no file)")
        elif name is not None and name not in functions(path):
            missing.append(f"{file}::{name}")
    return missing


def slug(heading: str) -> str:
    """Anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_documents_name_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    dotted = {name for name in DOTTED.findall(text) if not exists(name)}
    files = {name for name in PYTHON_FILE.findall(text) if not (ROOT / name).is_file()}
    missing = sorted({*missing_tests(text), *dotted, *files})
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_resolve(path: Path) -> None:
    broken = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        anchors = HEADING.findall(target.read_text(encoding="utf-8")) if anchor and target.is_file() else []
        if not target.exists() or (anchor and anchor not in map(slug, anchors)):
            broken.append(link)
    assert not broken, "\n".join(broken)


def test_sources_name_what_exists() -> None:
    """Tests that docstrings and comments name, dotted names in them, and sections of the theory page."""
    headings = {
        re.sub(r"^\d+\. ", "", title)
        for title in HEADING.findall((ROOT / "docs/theory.md").read_text(encoding="utf-8"))
    }
    wrong = []
    for path in [*SOURCES, *TESTS]:
        text = path.read_text(encoding="utf-8")
        found = missing_tests(text) if path in SOURCES else []
        found += [
            name for name in re.findall(r"``(ratedist\.[\w.]+)(?:\(.*?\))?``", text) if not exists(name)
        ]
        found += [title for title in SECTION.findall(joined(text)) if title not in headings]
        found += NUMBERED.findall(joined(text))  # numbers move; headings are quoted
        found += [name for name in re.findall(r"docs/[\w/]+\.md", text) if not (ROOT / name).is_file()]
        wrong += [f"{relative(path)}: {name}" for name in found]
    assert not wrong, "\n".join(wrong)


def test_the_search_sees_what_it_should() -> None:
    text = """A formula.
    Tests: tests/test_docs.py::
        test_links_resolve and ::test_nothing, tests/test_none.py, test_docs.py::test_links_resolve."""
    assert references(text) == [
        ("tests/test_docs.py", "test_links_resolve"),
        ("tests/test_docs.py", "test_nothing"),
        ("tests/test_none.py", None),
        ("test_docs.py", "test_links_resolve"),
    ]
    assert missing_tests(text) == ["tests/test_docs.py::test_nothing", "tests/test_none.py", "test_docs.py"]
    assert DOTTED.findall("`ratedist.curve` in ratedist.curve.Curve. Not ratedist.curve/1") == [
        "ratedist.curve",
        "ratedist.curve.Curve",
    ]
    for name in (
        "ratedist.errors.InputError",
        "ratedist.kernels.layout.PagedLayer",
        "ratedist.similarity.Spherical.var",
        "ratedist.fusion.result.FusionResult.kept",
        "ratedist.fusion.tree.tree",
    ):
        assert exists(name), name
    for name in ("ratedist.none", "ratedist.errors.None_", "ratedist.similarity.Spherical.none"):
        assert not exists(name), name
    assert slug("Rate: bytes, and bits") == "rate-bytes-and-bits"
