"""The experiment on plans over workloads and seeds, cell by cell; it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ratedist.errors import InputError, RatedistError
from ratedist.records import Record, provenance, write_atomic
from ratedist.validate.captures.manifest import token_hash
from ratedist.validate.models import LoadedModel
from ratedist.validate.planning.measurements import Measurements
from ratedist.validate.planning.promise import PromiseSettings, promise_cell
from ratedist.validate.planning.promise_summary import summarise_promise

__all__ = ["PROMISE_SCHEMA", "run_promise"]

PROMISE_SCHEMA = "ratedist/plan-check/1"
"""Schema of the record that ``run_promise`` returns."""

Progress = Callable[[float, str], None]
"""Called with the share of the cells that is done, and what is under way."""


def run_promise(
    loaded: LoadedModel,
    workloads: Sequence[str],
    seeds: Sequence[int],
    settings: PromiseSettings,
    folder: Path,
    *,
    force: bool = False,
    stop_after: float | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
) -> Record | None:
    """Test plans on every workload and seed.

    Args:
        loaded: the model.
        workloads: names of built-in workloads.
        seeds: each draws other requests to plan on and other held-out ones.
        settings: of every cell.
        folder: keeps one file per finished cell; those of an earlier run with the same settings are taken.
        force: measure cells again that were made otherwise, in the place of refusing.
        stop_after: begin no cell after so many seconds, so that the record may be of part of the cells, and
            names the others; None for no limit.
        progress: called as cells go on.
        command: what the record names as the command that made it; this process's own where None.

    Returns:
        A record of schema ``PROMISE_SCHEMA``: a row per cell (``promise_cell``) and the summary of
        ``summarise_promise``. None where time ran out before any cell was done.

    Raises:
        InputError: no workload or seed, one named twice, one that cannot be drawn or measured, or a cell
            made with other settings and no ``force``.
        RatedistError: a cell cannot be read or written; those that are finished are kept.
    """
    for name, values in (("workloads", workloads), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(name, list(values), "name at least one, and each once")
    start = time.monotonic()
    # All workloads of a seed one after another: what plans drift to is prefilled once for them.
    keys = [(workload, seed) for seed in seeds for workload in workloads]
    # Every workload is drawn before the first is measured: one that cannot be built shows at once.
    cells = [_Cell(folder, loaded, workload, seed, settings) for workload, seed in keys]
    if not force:
        for cell in cells:
            cell.read()
    sessions = _Sessions(loaded, settings)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    missing: list[str] = []
    for number, cell in enumerate(cells):
        name = f"{cell.workload}, seed {cell.seed}"

        def report(what: str, share: float, number: int = number, name: str = name) -> None:
            if progress is not None:
                progress(number / len(cells), f"{name}: {what} {share:.0%}")

        row = cell.read(force=force)
        if row is None:
            if stop_after is not None and time.monotonic() - start > stop_after:
                missing.append(name)
                continue
            row = promise_cell(loaded, cell.workload, cell.seed, settings, sessions.held_out, progress=report)
            cell.write(row)
        rows[cell.workload, cell.seed] = row
        if progress is not None:
            progress((number + 1) / len(cells), name)
    if not rows:
        return None
    ordered = [rows[key] for workload in workloads for seed in seeds if (key := (workload, seed)) in rows]
    return Record(
        schema=PROMISE_SCHEMA,
        provenance=provenance(
            command,
            model=loaded.name,
            weights_hash=loaded.weights_hash,
            compute_dtype=loaded.dtype,
            device=loaded.device.type,
            workloads=list(workloads),
            seeds=list(seeds),
            missing=missing,
            **settings.to_json(),
        ),
        rows=ordered,
        summary=summarise_promise(ordered, missing),
    )


@dataclass
class _Sessions:
    """Held-out requests: those of the workloads that plans drift to are kept while their seed lasts."""

    loaded: LoadedModel
    settings: PromiseSettings
    _kept: dict[tuple[str, int], Measurements] = field(default_factory=dict)

    def held_out(self, workload: str, seed: int) -> Measurements:
        key = (workload, seed)
        if key in self._kept:
            return self._kept[key]
        _, requests = self.settings.draw(self.loaded, workload, seed)
        found = Measurements(self.settings.session(self.loaded, requests))
        if workload in self.settings.drift:
            self._kept = {kept: value for kept, value in self._kept.items() if kept[1] == seed}
            self._kept[key] = found
        return found


class _Cell:
    """A cell's file, and all that its numbers depend on."""

    def __init__(
        self, folder: Path, loaded: LoadedModel, workload: str, seed: int, settings: PromiseSettings
    ) -> None:
        self.workload, self.seed = workload, seed
        digest = hashlib.sha256(workload.encode()).hexdigest()[:6]
        safe = "".join(c if c.isalnum() or c == "-" else "_" for c in workload)
        # Names of mixtures hold signs that file names cannot, so that the digest tells them apart.
        name = workload if safe == workload else f"{safe[:40]}-{digest}"
        self._path = folder / "cells" / f"{name}-seed-{seed}.json"
        requests = [prompt for half in settings.draw(loaded, workload, seed) for prompt in half.prompts]
        key = {
            "schema": PROMISE_SCHEMA,
            "model": loaded.name,
            "weights_hash": loaded.weights_hash,
            "compute_dtype": loaded.dtype,
            "device": loaded.device.type,
            "workload": workload,
            "seed": seed,
            "requests": [[token_hash(prompt.token_ids), prompt.domain] for prompt in requests],
            "settings": settings.to_json(),
        }
        self._key = json.loads(json.dumps(key))

    def read(self, *, force: bool = False) -> dict[str, Any] | None:
        """The row; None where there is none yet, or with ``force`` one of other settings."""
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            key, row = stored["key"], stored["row"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RatedistError(
                f"{self._path} cannot be read ({error}); delete it and run the same command again"
            ) from error
        if key == self._key:
            return dict(row)
        if force:
            return None
        changes = [name for name in self._key if key.get(name) != self._key[name]]
        if changes == ["settings"]:
            mine, theirs = self._key["settings"], key["settings"]
            changes = [name for name in mine if theirs.get(name) != mine[name]]
        raise InputError(
            "out",
            str(self._path),
            f"was made otherwise ({', '.join(changes)} differ); name another folder, or pass --force to "
            "measure it again",
        )

    def write(self, row: dict[str, Any]) -> None:
        """Store the row, whole or not at all."""
        try:
            write_atomic(self._path, json.dumps({"key": self._key, "row": row}, allow_nan=False) + "\n")
        except OSError as error:
            raise RatedistError(
                f"{self._path} cannot be written: {error.strerror or error}; finished cells are kept. Make "
                "room, then run the same command again, it goes on from there"
            ) from error
