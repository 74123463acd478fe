"""The quality experiment: every method on every workload, cell by cell; it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ratedist.errors import InputError
from ratedist.records import Record, provenance, write_atomic
from ratedist.validate.attention_hook import ONE_TASK
from ratedist.validate.captures.manifest import token_hash
from ratedist.validate.models import LoadedModel
from ratedist.validate.parallel import absolute, check_jobs, run_tasks
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.link import evaluate_links
from ratedist.validate.quality.methods import Method
from ratedist.validate.quality.rows import quality_row
from ratedist.validate.quality.summary import summarise_quality
from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["QUALITY_SCHEMA", "QualityPlan", "run_quality"]

QUALITY_SCHEMA = "ratedist/quality/1"
"""Schema of the record that ``run_quality`` returns."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what was done."""


@dataclass(frozen=True)
class QualityPlan:
    """What to measure; raises InputError where nothing is.

    Attributes:
        methods: applied to every workload.
        continuation: tokens fed after each prefix.
        layers: layers to fuse; default all but the model's first and last two.
        store_dtype: type of the original cache, as in ``QualitySession``.
        seed: of the bootstrap.
    """

    methods: tuple[Method, ...]
    continuation: int = 32
    layers: tuple[int, ...] | None = None
    store_dtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("methods", [], "must name at least one")
        if self.seed < 0:
            raise InputError("seed", self.seed, "must not be negative")


def run_quality(
    loaded: LoadedModel,
    workloads: Sequence[PromptSet],
    plan: QualityPlan,
    *,
    cells: Path | None = None,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
) -> Record:
    """Measure every method on every workload.

    Args:
        loaded: the model.
        workloads: requests; prefix, continuation and one token more each.
        plan: what to measure.
        cells: folder that keeps every finished cell; those it holds already are not measured again. What
            was measured otherwise (another model, other requests, another plan) is not taken from it.
        jobs: workloads at a time, each in a process of its own where more than one, which loads the model;
            the rows are the same.
        dask: address of a Dask scheduler whose workers measure the workloads instead, see
            ``ratedist.validate.parallel.run_tasks``; the rows are the same.
        progress: called after every prefill and every cell; after every workload where others measure.
        command: what the record names as the command that made it; this process's own where None.

    Returns:
        A record of schema ``QUALITY_SCHEMA``: a row per workload and method (``quality_row``) and the summary
        of ``ratedist.validate.quality.summary``, with that of ``ratedist.validate.quality.link``.

    Raises:
        InputError: requests, models or methods that cannot be measured, ``jobs`` below 1, or a cluster that
            does not answer or would not give the same rows; finished cells are kept.
        RatedistError: a process or a worker ended, for want of memory most often; finished cells are kept.
    """
    names = [prompts.name for prompts in workloads]
    if not names:
        raise InputError("workloads", [], "name at least one")
    if len(set(names)) < len(names):
        raise InputError("workloads", names, "names one twice; name each once")
    check_jobs(jobs)
    if cells is not None:
        cells = absolute(cells, dask)
        cells.mkdir(parents=True, exist_ok=True)
    works = [_look(loaded, prompts, plan, cells) for prompts in workloads]
    left = [work for work in works if work.steps]
    whole = len(works) * (len(plan.methods) + 1)
    done = whole - sum(work.steps for work in left)

    def step(what: str, count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, whole, what)

    if done:
        step("cells of an earlier run", 0)
    alone = jobs == 1 and dask is None
    results = run_tasks(
        _measure,
        [(loaded, work, plan, cells, step if alone else None) for work in left],
        jobs=jobs,
        # Nothing is left to measure in a run that is finished, which needs no cluster then.
        dask=dask if left else None,
        files=loaded.weight_files,
        packages=("transformers",),
        backend="cpu" if loaded.device.type == "cpu" else "triton",
    )
    for work, (about, measured) in zip(left, results, strict=True):
        for method, row in [(None, about), *zip(work.missing, measured, strict=True)]:
            key = _key(loaded, work.prompts, plan, method)
            # A worker that does not see the folder could not write it.
            if _read(cells, key) is None:
                _write(cells, key, row)
        work.about = about
        work.rows |= dict(zip(work.missing, measured, strict=True))
        if not alone:
            step(work.prompts.name, work.steps)
    rows = [work.rows[method] for work in works for method in plan.methods]
    return Record(
        schema=QUALITY_SCHEMA,
        provenance=provenance(
            command,
            seed=plan.seed,
            model=loaded.name,
            weights_hash=loaded.weights_hash,
            compute_dtype=loaded.dtype,
            device=loaded.device.type,
            workloads=[work.about for work in works],
        ),
        rows=rows,
        summary=[*summarise_quality(rows, seed=plan.seed), *evaluate_links(rows, seed=plan.seed)],
    )


@dataclass
class _Workload:
    """One workload and what is known of it; ``about`` is what the record says of it."""

    prompts: PromptSet
    about: dict[str, Any] | None
    rows: dict[Method, dict[str, Any]]
    missing: tuple[Method, ...]

    @property
    def steps(self) -> int:
        """The prefill and the methods that are left to measure; 0 where none is."""
        return 1 + len(self.missing) if self.missing or self.about is None else 0


def _look(loaded: LoadedModel, prompts: PromptSet, plan: QualityPlan, cells: Path | None) -> _Workload:
    """What the finished cells tell of a workload."""
    found = {method: _read(cells, _key(loaded, prompts, plan, method)) for method in plan.methods}
    return _Workload(
        prompts,
        _read(cells, _key(loaded, prompts, plan, None)),
        {method: row for method, row in found.items() if row is not None},
        tuple(method for method, row in found.items() if row is None),
    )


def _measure(
    loaded: LoadedModel,
    work: _Workload,
    plan: QualityPlan,
    cells: Path | None,
    step: Callable[[str], None] | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Description and rows of what is missing of a workload, each kept as soon as it is there.

    Runs on a worker too; one that does not see the folder of cells leaves keeping to who asked.
    """
    prompts = work.prompts
    seen = cells if cells is not None and cells.is_dir() else None
    with ONE_TASK:
        session = QualitySession(
            loaded,
            prompts,
            continuation=plan.continuation,
            layers=plan.layers,
            store_dtype=plan.store_dtype,
            eviction=any(method.keep < 1 for method in work.missing),
        )
        about = _describe(session)
        _write(seen, _key(loaded, prompts, plan, None), about)
        if step is not None:
            step(f"{prompts.name}, prefill")
        rows = []
        for method in work.missing:
            row = quality_row(prompts.name, method, session.measure(method), session.layers)
            _write(seen, _key(loaded, prompts, plan, method), row)
            rows.append(row)
            if step is not None:
                step(f"{prompts.name}, {method.name}")
    return about, rows


def _describe(session: QualitySession) -> dict[str, Any]:
    prompts = session.prompts
    return {
        "workload": prompts.name,
        "workload_seed": prompts.seed,
        "origin": prompts.origin,
        "requests": session.requests,
        "prefix_tokens": [min(session.lengths), max(session.lengths)],
        "continuation": session.continuation,
        "layers": list(session.layers),
        "model_layers": session.loaded.layers,
        "store_dtype": session.dtype,
        "log_perplexity": session.log_perplexity,
    }


def _key(loaded: LoadedModel, prompts: PromptSet, plan: QualityPlan, method: Method | None) -> dict[str, Any]:
    """All that a cell depends on; JSON data. Without a method: of the workload's description."""
    return {
        "schema": QUALITY_SCHEMA,
        "model": loaded.name,
        "weights_hash": loaded.weights_hash,
        "compute_dtype": loaded.dtype,
        "device": loaded.device.type,
        "workload": prompts.name,
        "requests": [[token_hash(prompt.token_ids), prompt.domain] for prompt in prompts.prompts],
        "continuation": plan.continuation,
        "layers": None if plan.layers is None else list(plan.layers),
        "store_dtype": plan.store_dtype,
        "method": None if method is None else method.to_json(),
    }


def _file(cells: Path, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cells / f"{digest[:24]}.json"


def _read(cells: Path | None, key: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a finished cell; None where there is none, or a file that is damaged."""
    if cells is None:
        return None
    try:
        stored = json.loads(_file(cells, key).read_text(encoding="utf-8"))
        result = stored["result"] if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if isinstance(result, dict) else None


def _write(cells: Path | None, key: dict[str, Any], result: dict[str, Any]) -> None:
    if cells is not None:
        write_atomic(_file(cells, key), json.dumps({"key": key, "result": result}, allow_nan=False))
