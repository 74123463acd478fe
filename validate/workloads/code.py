"""Code completion in a shared repository."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from random import Random

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, popular, too_short
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import Document, sources

__all__ = ["code"]

_FILES = 6
_PLACES = 2
_AROUND = 12
"""Lines on either side of a place that is worked on, within which cursors stand."""


@dataclass(frozen=True)
class _File:
    """A file that is worked on: what every completion in it begins with, and where cursors stand."""

    head: str
    lines: list[str]
    places: list[int]


def code(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Code completion over shared files: another open file, this file's imports, the code before the cursor.

    Stands for an editor's completions from developers of one repository (the standard library's source).
    A prompt holds the signatures of a file open beside, then the imports of the file being edited, and then
    as much code before the cursor as fits. Six files are worked on, the first most often, each at two places;
    cursors stand within 12 lines of a place, at any column. Exact is the head of a file (at most 45 % of a
    request); the windows before two cursors at one place overlap as text but begin elsewhere, so that the
    overlap falls on other block boundaries.
    """
    collection = iter(random.sample(sources(), len(sources())))
    # The file beside has signatures enough for its share of short requests; the others have imports.
    beside = next(file for file in collection if _signatures(file).count("\n") >= 15)
    files = list(islice((file for file in collection if _imports(file).count("\n") >= 4), _FILES))
    opened = _first_lines(tokenizer, f"# {beside.title}\n{_signatures(beside)}", tokens // 5)
    if opened.count("\n") < 2:
        raise too_short(tokens, "code", "signatures, imports and code before the cursor", 256)
    edited = []
    for file in files:
        head = f"{opened}\n# {file.title}\n{_imports(file)}"
        lines = file.text.splitlines(keepends=True)
        places = [random.randrange(len(lines) // 2, len(lines)) for _ in range(_PLACES)]
        edited.append(_File(_first_lines(tokenizer, head, tokens * 45 // 100) + "\n# …\n", lines, places))
    while True:
        yield Prompt(_completion(tokenizer, popular(edited, random), tokens, random))


def _completion(tokenizer: Tokenizer, file: _File, tokens: int, random: Random) -> tuple[int, ...]:
    line = random.choice(file.places) + random.randint(-_AROUND, _AROUND)
    line = min(max(line, 1), len(file.lines) - 1)
    column = random.randint(0, len(file.lines[line].rstrip()))
    before, length = file.lines[line][:column], 0
    while line > 0 and length < CHARACTERS_PER_TOKEN * tokens:
        line -= 1
        before = file.lines[line] + before
        length += len(file.lines[line])
    head = encode(tokenizer, file.head)
    return tuple(head + encode(tokenizer, before, special=False)[len(head) - tokens :])


def _first_lines(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """As many whole lines of a text as fit into so many tokens."""
    lines = text.splitlines(keepends=True)
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(encode(tokenizer, "".join(lines[:middle]))) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return "".join(lines[:low])


@cache
def _imports(file: Document) -> str:
    """The statements that import, as they stand in the file."""
    lines = file.text.splitlines()
    numbers = [
        number
        for node in ast.parse(file.text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno - 1, node.end_lineno or node.lineno)
    ]
    return "".join(f"{lines[number]}\n" for number in dict.fromkeys(numbers))


@cache
def _signatures(file: Document) -> str:
    """The first lines of classes and functions, one per line, with the docstring's first line."""
    found = []
    for node in ast.parse(file.text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(f"def {node.name}({ast.unparse(node.args)}): …\n")
        elif isinstance(node, ast.ClassDef):
            found.append(f"class {node.name}({', '.join(map(ast.unparse, node.bases))}): …\n")
        else:
            continue
        summary = (ast.get_docstring(node) or "").partition("\n")[0]
        if summary:
            found.append(f"    # {summary}\n")
    return "".join(found)
