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
from ratedist.validate.attention_hook import ONE_TASK
from ratedist.validate.captures.manifest import token_hash
from ratedist.validate.models import LoadedModel
from ratedist.validate.parallel import absolute, check_jobs, run_tasks
from ratedist.validate.planning.measurements import Measurements
from ratedist.validate.planning.promise import PromiseSettings, promise_cell
from ratedist.validate.planning.promise_summary import summarise_promise

__all__ = ["PROMISE_SCHEMA", "run_promise"]

PROMISE_SCHEMA = "ratedist/plan-check/1"
"""Schema of the record that ``run_promise`` returns."""

CELLS = "cells"

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
    jobs: int = 1,
    dask: str | None = None,
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
        jobs: cells at a time, each in a process of its own where more than one, which loads the model and
            prefills for itself what plans drift to; the rows are the same, but for the seconds they took.
        dask: address of a Dask scheduler whose workers measure the cells instead, see
            ``ratedist.validate.parallel.run_tasks``; the rows are the same.
        progress: called as cells go on; after every cell where others measure.
        command: what the record names as the command that made it; this process's own where None.

    Returns:
        A record of schema ``PROMISE_SCHEMA``: a row per cell (``promise_cell``) and the summary of
        ``summarise_promise``. None where time ran out before any cell was done.

    Raises:
        InputError: no workload or seed, one named twice, one that cannot be drawn or measured, a cell made
            with other settings and no ``force``, ``jobs`` below 1, or a cluster that does not answer or
            would not give the same rows.
        RatedistError: a cell cannot be read or written; those that are finished are kept.
    """
    for name, values in (("workloads", workloads), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(name, list(values), "name at least one, and each once")
    check_jobs(jobs)
    folder = absolute(folder, dask)
    # All workloads of a seed one after another: what plans drift to is prefilled once for them.
    keys = [(workload, seed) for seed in seeds for workload in workloads]
    # Every workload is drawn before the first is measured: one that cannot be built shows at once.
    cells = [_Cell(folder, loaded, workload, seed, settings) for workload, seed in keys]
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    left: list[_Cell] = []
    for cell in cells:
        found = cell.read(force=force)
        if found is None:
            left.append(cell)
        else:
            rows[cell.workload, cell.seed] = found

    def step(what: str) -> None:
        if progress is not None:
            progress(len(rows) / len(cells), what)

    if rows:
        step("cells of an earlier run")
    alone = jobs == 1 and dask is None
    sessions = _Sessions(loaded, settings)
    until = None if stop_after is None else time.time() + stop_after
    results = run_tasks(
        _measure,
        [(sessions, cell, until, step if alone else None) for cell in left],
        jobs=jobs,
        dask=dask if left else None,
        files=loaded.weight_files,
        packages=("transformers",),
        backend="cpu" if loaded.device.type == "cpu" else "triton",
    )
    missing: list[str] = []
    for cell, row in zip(left, results, strict=True):
        if row is None:
            missing.append(cell.name)
            continue
        # A worker that does not see the folder could not write it.
        if cell.read(force=force) is None:
            cell.write(row)
        rows[cell.workload, cell.seed] = row
        step(cell.name)
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


def _measure(
    sessions: _Sessions, cell: _Cell, until: float | None, step: Callable[[str], None] | None
) -> dict[str, Any] | None:
    """A cell's row, kept at once where its folder is seen; None where it is too late to begin."""
    if until is not None and time.time() > until:
        return None

    def report(what: str, share: float) -> None:
        if step is not None:
            step(f"{cell.name}: {what} {share:.0%}")

    with ONE_TASK:
        row = promise_cell(
            sessions.loaded, cell.workload, cell.seed, sessions.settings, sessions.held_out, progress=report
        )
    if cell.path.parent.is_dir():
        cell.write(row)
    return row


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
        self.path = folder / CELLS / f"{name}-seed-{seed}.json"
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

    @property
    def name(self) -> str:
        """What progress and records call it."""
        return f"{self.workload}, seed {self.seed}"

    def read(self, *, force: bool = False) -> dict[str, Any] | None:
        """The row; None where there is none yet, or with ``force`` one of other settings."""
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            key, row = stored["key"], stored["row"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RatedistError(
                f"{self.path} cannot be read ({error}); delete it and run the same command again"
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
            str(self.path),
            f"was made otherwise ({', '.join(changes)} differ); name another folder, or pass --force to "
            "measure it again",
        )

    def write(self, row: dict[str, Any]) -> None:
        """Store the row, whole or not at all."""
        try:
            write_atomic(self.path, json.dumps({"key": self._key, "row": row}, allow_nan=False) + "\n")
        except OSError as error:
            raise RatedistError(
                f"{self.path} cannot be written: {error.strerror or error}; finished cells are kept. Make "
                "room, then run the same command again, it goes on from there"
            ) from error
