"""The folder of a suite: its settings, its captures, and one small file per finished cell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratedist.errors import InputError, RatedistError
from ratedist.records import write_atomic

__all__ = ["CAPTURES", "CELLS", "RECORD", "SETTINGS", "CellKey", "SuiteFolder"]

SETTINGS = "settings.json"
"""What the cells of the folder were made with."""

CELLS = "cells"
"""Subfolder of finished cells: workload, layer, then one file each."""

CAPTURES = "captures"
"""Subfolder of captures, one folder per workload."""

RECORD = "suite.json"
"""The record made of the cells."""

SCHEMA = "ratedist/suite-cells/1"


@dataclass(frozen=True)
class CellKey:
    """Names a cell: a split n → m of one layer with a seed; or without these, the noise of m requests.

    ``source`` is the workload that calibrates, where it is another one; ``mode`` that of fusion.
    """

    workload: str
    layer: int
    m: int
    n: int | None = None
    seed: int | None = None
    source: str | None = None
    mode: str = "bff"

    @property
    def path(self) -> str:
        """Of the cell's file, below ``CELLS``."""
        name = f"noise-{self.m}" if self.n is None else f"split-{self.n}-{self.m}-seed-{self.seed}"
        if self.source is not None:
            name += f"-from-{_file_name(self.source)}"
        if self.mode != "bff":
            name += f"-{self.mode}"
        return f"{_file_name(self.workload)}/layer-{self.layer:03d}/{name}.json"


class SuiteFolder:
    """The finished cells of a suite; each is written whole or not at all, so that a run can stop anywhere.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def claim(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        captures: Mapping[str, str],
        *,
        force: bool = False,
    ) -> SuiteFolder:
        """Take a new folder, or go on in one with the same settings.

        Args:
            path: created where it does not exist.
            settings: JSON data; all that a cell's numbers depend on beside its key and its capture.
            captures: fingerprint of the capture by workload.
            force: begin again where the settings differ, or where a run was finished: cells and record are
                deleted, captures stay.

        Raises InputError where the folder holds something else, or cells of other settings or captures (and
        not ``force``).
        """
        if path.exists() and not path.is_dir():
            raise InputError("out", str(path), "is a file; name a folder")
        before = _read_settings(path / SETTINGS)
        if before is None and path.is_dir() and any(item.name != CAPTURES for item in path.iterdir()):
            raise InputError(
                "out", str(path), "holds something else; name a new folder, which the suite will own"
            )
        wanted = json.loads(json.dumps(settings))
        marks = dict(captures)
        if before is not None and not force:
            again = "name another folder, or pass --force to begin again (captures are kept)"
            if before["settings"] != wanted:
                changes = _differences(before["settings"], wanted)
                raise InputError(
                    "out", str(path), f"holds cells made with other settings ({changes}); {again}"
                )
            for workload, mark in before["captures"].items():
                if marks.setdefault(workload, mark) != mark:
                    raise InputError(
                        "out", str(path), f"holds cells of another capture of workload {workload!r}; {again}"
                    )
        folder = cls(path)
        if force:
            folder.clear()
        data = {"schema": SCHEMA, "settings": wanted, "captures": marks}
        write_atomic(path / SETTINGS, json.dumps(data, indent=1) + "\n")
        return folder

    def clear(self) -> None:
        """Delete cells, settings and record; captures stay."""
        shutil.rmtree(self.path / CELLS, ignore_errors=True)
        for name in (SETTINGS, RECORD):
            (self.path / name).unlink(missing_ok=True)

    def has(self, key: CellKey) -> bool:
        """Whether the cell is finished."""
        return (self.path / CELLS / key.path).is_file()

    def write(self, key: CellKey, cell: Mapping[str, Any]) -> None:
        """Store a finished cell.

        Raises RatedistError where it cannot be written; what was finished before stays.
        """
        path = self.path / CELLS / key.path
        try:
            write_atomic(path, json.dumps(cell, allow_nan=False, separators=(",", ":")) + "\n")
        except OSError as error:
            raise RatedistError(
                f"{path} cannot be written: {error.strerror or error}; finished cells are kept. Make room, "
                "then run the same command again, it goes on from there"
            ) from error

    def read(self, key: CellKey) -> dict[str, Any]:
        """A finished cell; raises RatedistError where there is none or its file is damaged."""
        path = self.path / CELLS / key.path
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RatedistError(
                f"{path} cannot be read ({error}); delete it and run the same command again"
            ) from error
        if not isinstance(cell, dict) or (cell.get("workload"), cell.get("layer")) != (
            key.workload,
            key.layer,
        ):
            raise RatedistError(f"{path} is not the cell {key}; delete it and run the same command again")
        return cell


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RatedistError(f"{path} cannot be read ({error}); pass --force to begin again") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise RatedistError(f"{path} is not the settings of a suite's cells; name another folder")
    return data


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changes = []
    for name in dict.fromkeys([*before, *now]):
        texts = [json.dumps(side.get(name)) for side in (before, now)]
        if texts[0] != texts[1]:
            changes.append(f"{name}: {texts[0]} → {texts[1]}" if max(map(len, texts)) <= 60 else name)
    return "; ".join(changes)


def _file_name(workload: str) -> str:
    """A name that every file system takes, apart for different workloads."""
    safe = "".join(c if c.isalnum() or c in "-_." else f"%{ord(c):x}" for c in workload)
    return f"%{safe}" if safe.startswith(".") else safe
