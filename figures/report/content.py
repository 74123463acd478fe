"""What a report consists of, whatever it is rendered to."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Picture", "Section", "Table", "cell_text"]

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under headings; numbers are right-aligned and sort as numbers.

    Attributes:
        title: what it shows.
        headings: one per column, with units.
        rows: cells, as many as headings; None where a quantity does not exist.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers (and None) only."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(c, int | float) and not isinstance(c, bool) for c in cells)


@dataclass(frozen=True)
class Picture:
    """A PNG, carried within the page.

    Attributes:
        title: what it shows, also for those who cannot see it.
        data: the file's bytes.
        name: file name that it would have.
    """

    title: str
    data: bytes
    name: str

    @classmethod
    def read(cls, path: Path, title: str) -> Picture:
        """From a file."""
        return cls(title, path.read_bytes(), path.name)

    @property
    def base64(self) -> str:
        """The bytes as text."""
        return base64.b64encode(self.data).decode("ascii")


@dataclass(frozen=True)
class Section:
    """What one record says.

    Attributes:
        title: what was asked.
        answer: sentences, failures first.
        command: that made the record.
        made: when, and with which version.
        tables: in order of importance.
        pictures: in order of importance.
    """

    title: str
    answer: Sequence[str]
    command: str
    made: str
    tables: Sequence[Table] = field(default=())
    pictures: Sequence[Picture] = field(default=())


def cell_text(cell: Cell) -> str:
    """A cell for people: three significant digits, an en dash for what does not exist."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        if cell == 0 or 1e-3 <= abs(cell) < 1e5:
            digits = max(0, 2 - _exponent(cell)) if cell else 0
            return f"{cell:,.{digits}f}"
        return f"{cell:.2e}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _exponent(value: float) -> int:
    return int(f"{abs(value):.2e}".rpartition("e")[2])
