"""What a report consists of, whatever it is rendered to."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Section", "Source", "Table", "cell_text"]

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under headings; numbers are right-aligned and sort as numbers.

    Attributes:
        title: what it shows.
        headings: one per column, with units.
        rows: cells, as many as headings; None where a quantity does not exist.
        detail: whether it is for looking things up: a page of results leaves it to the report.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    detail: bool = False

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers (and None) only."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(c, int | float) and not isinstance(c, bool) for c in cells)


@dataclass(frozen=True)
class Picture:
    """A figure, drawn when it is first asked for.

    Attributes:
        title: what it shows, also for those who cannot see it.
        source: draws it, or gives the bytes of a PNG; or these bytes.
        name: file name without its ending.
        caption: what to see in it, in a sentence.
    """

    title: str
    source: Callable[[], Figure | bytes] | bytes
    name: str
    caption: str = ""

    @cached_property
    def data(self) -> bytes:
        """The bytes of a PNG."""
        if isinstance(self.source, bytes):
            return self.source
        from ratedist.figures.png import png_of

        return png_of(self.source)

    @property
    def base64(self) -> str:
        """The bytes as text."""
        return base64.b64encode(self.data).decode("ascii")


@dataclass(frozen=True)
class Source:
    """A record that a section reads.

    Attributes:
        record: file name.
        command: that made it; empty where it does not say.
        made: when, and with which version.
    """

    record: str
    command: str
    made: str


@dataclass(frozen=True)
class Section:
    """What one record, or several of a kind, say.

    Attributes:
        title: what was asked.
        answer: sentences, failures first.
        sources: the records.
        tables: in order of importance.
        pictures: in order of importance.
        headline: what of it stands on the first screen, where the questions of a whole report are answered;
            none in most sections.
    """

    title: str
    answer: Sequence[str]
    sources: Sequence[Source]
    tables: Sequence[Table] = field(default=())
    pictures: Sequence[Picture] = field(default=())
    headline: Sequence[str] = field(default=())


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
