"""The quality experiment: every method on every workload, cell by cell; it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ratedist.errors import InputError
from ratedist.records import Record, provenance, write_atomic
from ratedist.validate.captures.manifest import token_hash
from ratedist.validate.models import LoadedModel
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
        progress: called after every prefill and every cell.
        command: what the record names as the command that made it; this process's own where None.

    Returns:
        A record of schema ``QUALITY_SCHEMA``: a row per workload and method (``quality_row``) and the summary
        of ``ratedist.validate.quality.summary``, with that of ``ratedist.validate.quality.link``.

    Raises InputError for requests, models and methods that cannot be measured; finished cells are kept.
    """
    names = [prompts.name for prompts in workloads]
    if not names:
        raise InputError("workloads", [], "name at least one")
    if len(set(names)) < len(names):
        raise InputError("workloads", names, "names one twice; name each once")
    steps = len(workloads) * (len(plan.methods) + 1)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps, what)

    rows: list[dict[str, Any]] = []
    described = []
    for prompts in workloads:
        keys = [_key(loaded, prompts, plan, method) for method in plan.methods]
        found = [_read(cells, key) for key in keys]
        about_key = _key(loaded, prompts, plan, None)
        about = _read(cells, about_key)
        session: QualitySession | None = None
        if about is None or None in found:
            session = QualitySession(
                loaded,
                prompts,
                continuation=plan.continuation,
                layers=plan.layers,
                store_dtype=plan.store_dtype,
                eviction=any(
                    method.keep < 1 and row is None for method, row in zip(plan.methods, found, strict=True)
                ),
            )
            about = _describe(session)
            _write(cells, about_key, about)
        described.append(about)
        step(f"{prompts.name}, prefill")
        for method, key, row in zip(plan.methods, keys, found, strict=True):
            if row is None:
                assert session is not None
                row = quality_row(prompts.name, method, session.measure(method), session.layers)
                _write(cells, key, row)
            rows.append(row)
            step(f"{prompts.name}, {method.name}")
    return Record(
        schema=QUALITY_SCHEMA,
        provenance=provenance(
            command,
            seed=plan.seed,
            model=loaded.name,
            weights_hash=loaded.weights_hash,
            compute_dtype=loaded.dtype,
            device=loaded.device.type,
            workloads=described,
        ),
        rows=rows,
        summary=[*summarise_quality(rows, seed=plan.seed), *evaluate_links(rows, seed=plan.seed)],
    )


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
        "method": None if method is None else asdict(method),
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
