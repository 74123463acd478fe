"""What the kinds of sections share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratedist.errors import RatedistError
from ratedist.figures.report.content import Section, Source, Table
from ratedist.records import Record

__all__ = [
    "Entries",
    "Loaded",
    "any_table",
    "each",
    "factor_text",
    "refusing_damaged",
    "saved",
    "source_of",
    "table",
    "tables_by_kind",
]

Entries = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """A record as it was read: the file and its JSON data."""

    path: Path
    data: dict[str, Any]

    @property
    def record(self) -> Record:
        """As rows and summary; raises KeyError where it has no rows."""
        data = self.data
        return Record(data["schema"], data["provenance"], data["rows"], data.get("summary", []))


def each(section: Callable[[Loaded], Section]) -> Callable[[Sequence[Loaded]], list[Section]]:
    """A section for each record of a kind."""

    def sections(records: Sequence[Loaded]) -> list[Section]:
        made = []
        for loaded in records:
            with refusing_damaged([loaded]):
                made.append(section(loaded))
        return made

    return sections


@contextmanager
def refusing_damaged(records: Sequence[Loaded]) -> Iterator[None]:
    """Raise RatedistError, naming the records, where what is done within misses something in them."""
    try:
        yield
    except RatedistError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, StopIteration) as error:
        names = ", ".join(str(loaded.path) for loaded in records)
        raise RatedistError(f"{names} is damaged: {type(error).__name__} {error}") from error


def source_of(loaded: Loaded) -> Source:
    """File, command and time of a record."""
    provenance = loaded.data.get("provenance", {})
    when, versions = provenance.get("created", "at an unknown time"), provenance.get("versions", {})
    return Source(
        record=loaded.path.name,
        command=" ".join(map(str, provenance.get("command", ()))),
        made=f"{when}, ratedist {versions.get('ratedist', '?')}",
    )


def table(title: str, rows: Entries, columns: dict[str, str], *, detail: bool = False) -> Table:
    """A table of the rows' fields, by heading."""
    cells = tuple(tuple(row.get(field) for field in columns.values()) for row in rows)
    return Table(title, tuple(columns), cells, detail)


def any_table(title: str, rows: Entries, *, detail: bool = False) -> Table:
    """All plain fields of the rows, headed by their names."""
    fields = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if not any(isinstance(row.get(name), dict | list) for row in rows)
    ]
    return table(title, rows, {name.replace("_", " "): name for name in fields}, detail=detail)


def tables_by_kind(entries: Entries, titles: dict[str, str]) -> list[Table]:
    """A table for each kind of entry; those with a title first, in the order of ``titles``, others as "
    "detail."""
    kinds = dict.fromkeys([*titles, *(entry["kind"] for entry in entries)])
    return [
        any_table(
            titles.get(kind, f"Summary: {kind}"),
            [
                {name: value for name, value in entry.items() if name != "kind"}
                for entry in entries
                if entry["kind"] == kind
            ],
            detail=kind not in titles,
        )
        for kind in kinds
    ]


def saved(save: Callable[[Path], Path]) -> Callable[[], bytes]:
    """What a function writes to a folder, as the bytes of a picture; the folder is thrown away."""

    def read() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return save(Path(folder)).read_bytes()

    return read


def factor_text(log_ratio: float) -> str:
    """e to a |ln ratio|: the factor that it stands for."""
    return f"{2.718281828459045**log_ratio:.2f}"
