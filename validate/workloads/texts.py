"""Real text that is at hand wherever Python is: its language reference, its docstrings and its source code.

The text is that of the running Python, so workloads built of it differ between Python versions (and are the
same on every machine with one version).
"""

from __future__ import annotations

import ast
import re
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Document", "documents", "passages", "prose", "sources"]

_SHORTEST = 2000
"""Characters that a text must have to count as a document."""


@dataclass(frozen=True)
class Document:
    """A text with its title."""

    title: str
    text: str


@cache
def documents() -> tuple[Document, ...]:
    """Texts of at least a few hundred words: chapters of the language reference, and for each module of
    the standard library its docstrings one after another. Sorted by title; about 1.3 million characters."""
    from pydoc_data.topics import topics

    found = [Document(f"reference: {title}", text) for title, text in topics.items()]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found.append(Document(f"module {path.stem}", _docstrings(path)))
    long = [document for document in found if len(document.text) >= _SHORTEST]
    return tuple(sorted(long, key=lambda document: document.title))


@cache
def sources() -> tuple[Document, ...]:
    """Source files of the standard library of at least 300 lines, with their path; sorted by path."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.count("\n") >= 300:
            found.append(Document(f"lib/{path.name}", text))
    return tuple(found)


@cache
def prose() -> tuple[Document, ...]:
    """The paragraphs of ``documents`` that are plain sentences, one line each and without code, lists or
    markup; documents with at least 1000 characters of them, sorted by title."""
    found = []
    for document in documents():
        paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", document.text))
        text = "\n".join(dict.fromkeys(paragraph for paragraph in paragraphs if _is_prose(paragraph)))
        if len(text) >= 1000:
            found.append(Document(document.title, text))
    return tuple(found)


def _is_prose(paragraph: str) -> bool:
    return (
        len(paragraph) >= 120
        and paragraph[0].isupper()
        and paragraph.endswith(".")
        and re.search(r"[*|`=<>_\[\]{}\\#]|--|\(\)", paragraph) is None
        and sum(letter.islower() or letter == " " for letter in paragraph) >= 0.9 * len(paragraph)
    )


@cache
def passages(text: str, length: int) -> tuple[str, ...]:
    """Split a text into consecutive passages of at least ``length`` characters that begin and end with a
    paragraph; a remainder that is shorter is left out."""
    found, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        current += paragraph + "\n\n"
        if len(current) >= length:
            found.append(current)
            current = ""
    return tuple(found)


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, holders)]
    return "\n\n".join(dict.fromkeys(text for text in texts if text))
