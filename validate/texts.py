"""Real English text that is at hand wherever Python is: its language reference and its docstrings.

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

__all__ = ["Document", "documents", "passages"]

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
