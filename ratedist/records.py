"""Result records: JSON files ``{schema, provenance, rows, summary}``, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ratedist.errors import InputError, RatedistError

__all__ = ["Record", "earlier_name", "provenance", "read_record", "write_atomic", "write_record"]

_EARLIER = re.compile(r"ratedist[.-]([a-z-]+)[/-](\d+)")


@dataclass
class Record:
    """Rows of results and their summary, with the schema's name and what made them."""

    schema: str
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Strict JSON; raises InputError where a row holds NaN or infinity (store None instead)."""
        try:
            return json.dumps(
                {
                    "schema": self.schema,
                    "provenance": self.provenance,
                    "rows": self.rows,
                    "summary": self.summary,
                },
                indent=1,
                allow_nan=False,
            )
        except ValueError as error:
            bad = next(
                (
                    f"rows[{index}].{key}"
                    for index, row in enumerate(self.rows)
                    for key, value in row.items()
                    if isinstance(value, float) and not math.isfinite(value)
                ),
                "summary or provenance",
            )
            raise InputError(
                "record", bad, "must be finite; write None where a quantity does not exist"
            ) from error


def provenance(command: list[str] | None = None, **extra: Any) -> dict[str, Any]:
    """What made a record: command, versions, time (UTC) and processor, plus ``extra``."""
    versions = {"ratedist": _version("ratedist"), "python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "triton", "transformers"):
        version = _version(package)
        if version is not None:
            versions[package] = version
    return {
        "command": command if command is not None else ["ratedist", *sys.argv[1:]],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "system": platform.system(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        **extra,
    }


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name in the same folder, then rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are closed to everybody else, and the rename would keep them so.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        # Gone where it was renamed; left by an error or an interruption otherwise.
        temporary.unlink(missing_ok=True)


def earlier_name(schema: object) -> str:
    """What to do about a schema named as before all were ``ratedist/kind/version``; empty for any other.

    To be put behind a refusal; what such a file holds has not changed.
    """
    found = _EARLIER.fullmatch(schema) if isinstance(schema, str) else None
    if found is None:
        return ""
    now = f"ratedist/{found[1]}/{found[2]}"
    return f" (the earlier name of {now}: make it again, or write {now} there)"


def write_record(record: Record, path: Path, *, force: bool = False) -> None:
    """Write a record; an existing file is replaced only with ``force``.

    Raises InputError where ``path`` exists and ``force`` is false.
    """
    if path.exists() and not force:
        raise InputError("out", str(path), "exists already; choose another path or pass --force")
    write_atomic(path, record.to_json() + "\n")


def read_record(path: Path, schema: str) -> Record:
    """Read a record of the given schema; raises RatedistError where the file is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("record", str(path), "no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RatedistError(f"{path} is not a result record: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise RatedistError(
            f"{path} has schema {found!r}; this command reads {schema!r}{earlier_name(found)}"
        )
    return Record(data["schema"], data["provenance"], data["rows"], data.get("summary", []))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
