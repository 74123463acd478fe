"""A plan on captured requests: what predictors say of every layer at its own setting, and what fusing gives.

Predictors are fitted on half of each capture's requests and the other half is fused, as in
``ratedist.validate.compare``; no model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ratedist.errors import InputError
from ratedist.records import Record, provenance
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.manifest import MANIFEST, Manifest
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import (
    LayerCell,
    Plan,
    Split,
    check_captures,
    compare_layer,
    fused_by,
    split_requests,
)
from ratedist.validate.measure import Runtime, runtime_for
from ratedist.validate.parallel import check_jobs, run_tasks
from ratedist.validate.planning.layer_bytes import LayerBytes
from ratedist.validate.planning.layer_law import PREDICTOR, check_predictable
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.quality.methods import Method
from ratedist.validate.suite.chunks import as_chunks

__all__ = ["UNSEEN_SCHEMA", "compare_plan", "layer_plan"]

UNSEEN_SCHEMA = "ratedist/plan-unseen/1"
"""Schema of the record that ``compare_plan`` returns."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what was done."""


def compare_plan(
    captures: Sequence[Capture],
    plan: CachePlan,
    *,
    predictors: Sequence[str] = (PREDICTOR,),
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
    jobs: int = 1,
    dask: str | None = None,
) -> Record:
    """Predict a plan on half of each capture's requests, and fuse the other half by it.

    Args:
        captures: one per workload, of the weights that the plan was made for.
        plan: settings per layer; those that share nothing are left as they are.
        predictors: names.
        seed: of the random split.
        runtime: what fuses; the CPU path where None.
        progress: called after every layer.
        command: what the record names as the command that made it; this process's own where None.
        jobs, dask: as in ``ratedist.validate.compare.compare``.

    Returns:
        A record of schema ``UNSEEN_SCHEMA``. Rows by workload, layer and predictor: the setting, and
        predicted beside measured ``kept``, ``compression`` (blocks over kept blocks of the layer),
        ``k_error`` and ``v_error``. Summary by workload and predictor: ``compression`` of all planned layers
        together, and ``cache_compression``, bytes of the whole cache, layers that are left alone included.
        Ends of bands are added up over layers, which see the same requests; None where a predictor gives
        none.

    Raises:
        InputError: captures of other weights, without a planned layer, or too small to split; a plan of
            settings that no predictor knows; an unknown predictor.
    """
    check_jobs(jobs)
    check_captures(captures)
    planned = {layer: method for layer, method in sorted(plan.settings.items()) if method.sharing}
    for layer, method in sorted(plan.settings.items()):
        check_predictable(f"plan, layer {layer}", method)
    if not planned:
        raise InputError("plan", "no layer", "shares blocks, so there is nothing to predict")
    for capture in captures:
        plan.check_capture(capture.manifest)
    if dask is not None:
        captures = [capture.resolved() for capture in captures]
    where = runtime_for("cpu") if runtime is None else runtime
    options = {
        layer: layer_plan(layer, method, predictors=predictors, seed=seed)
        for layer, method in planned.items()
    }
    splits = [split_requests(capture.manifest, seed) for capture in captures]
    work = [
        (capture, split, layer, method, options[layer], plan.block_size, where)
        for capture, split in zip(captures, splits, strict=True)
        for layer, method in planned.items()
    ]
    results = run_tasks(
        _compare_layer,
        work,
        jobs=jobs,
        dask=dask,
        files=[capture.folder / MANIFEST for capture in captures],
        backend=where.backend,
    )
    rows: list[dict[str, Any]] = []
    for done, ((capture, split, layer, method, *_), cell) in enumerate(
        zip(work, results, strict=True), start=1
    ):
        rows += [_row(capture.manifest, split, method, cell, predictor, where) for predictor in predictors]
        if progress is not None:
            progress(done, len(work), f"{capture.manifest.workload}, layer {layer}")
    summary = [
        _total(capture.manifest, split, plan, rows, predictor)
        for capture, split in zip(captures, splits, strict=True)
        for predictor in predictors
    ]
    return Record(
        schema=UNSEEN_SCHEMA,
        provenance=provenance(
            command,
            seed=seed,
            model=plan.model,
            weights_hash=plan.weights_hash,
            goal=plan.goal,
            plan_command=plan.provenance.get("command"),
            captures=[
                {
                    "workload": capture.manifest.workload,
                    "workload_seed": capture.manifest.seed,
                    "calibration": list(split.calibration),
                    "held_out": list(split.held_out),
                }
                for capture, split in zip(captures, splits, strict=True)
            ],
        ),
        rows=rows,
        summary=summary,
    )


def layer_plan(layer: int, method: Method, *, predictors: Sequence[str], seed: int = 0) -> Plan:
    """One layer at its own setting, as ``ratedist.validate.compare`` takes it.

    Exact sharing is fusion at threshold 1.
    """
    return Plan(
        thresholds=(method.threshold if method.sharing == "fusion" else 1.0,),
        variants=(method.variant,),
        criteria=(method.criterion,),
        scale=method.scale,
        predictors=tuple(predictors),
        layers=(layer,),
        seed=seed,
    )


def _compare_layer(
    capture: Capture,
    split: Split,
    layer: int,
    method: Method,
    options: Plan,
    block_size: int,
    runtime: Runtime,
) -> LayerCell:
    """Across chunks, chunks stand in the place of requests on either side."""
    calibration, held_out = (
        capture.layer(layer, requests, block_size) for requests in (split.calibration, split.held_out)
    )
    if method.mode == "cff":
        assert method.chunk_blocks is not None
        calibration, held_out = (as_chunks(part, method.chunk_blocks) for part in (calibration, held_out))

    fused = fused_by(held_out, layer, options, runtime)
    (cell,) = compare_layer(pair_sample(calibration), held_out.table, layer, options, fused)
    return cell


def _row(
    manifest: Manifest, split: Split, method: Method, cell: LayerCell, predictor: str, runtime: Runtime
) -> dict[str, Any]:
    (measured,) = cell.measured
    prediction = cell.predicted[predictor]
    low, high = prediction.kept_low, prediction.kept_high
    return {
        "model": manifest.model,
        "workload": manifest.workload,
        "layer": cell.layer,
        "setting": method.name,
        "mode": method.mode,
        "variant": method.variant,
        "criterion": method.criterion,
        "scale": method.scale,
        "threshold": measured.threshold,
        "predictor": predictor,
        "backend": runtime.backend,
        "device": runtime.device_name,
        "interpreted": runtime.interpreted,
        "requests": len(split.held_out),
        "blocks": measured.candidates,
        "kept_measured": measured.kept,
        "kept_predicted": float(prediction.kept[0]),
        "kept_predicted_low": None if low is None else float(low[0]),
        "kept_predicted_high": None if high is None else float(high[0]),
        "compression_measured": measured.compression,
        "compression_predicted": float(prediction.compression[0]),
        "compression_predicted_low": None if high is None else measured.candidates / float(high[0]),
        "compression_predicted_high": None if low is None else measured.candidates / float(low[0]),
        "calibration_exceedances": cell.exceedances[0],
        "k_error_measured": measured.k_error,
        "k_error_predicted": float(prediction.k_error[0]),
        "v_error_measured": measured.v_error,
        "v_error_predicted": float(prediction.v_error[0]),
    }


def _total(
    manifest: Manifest, split: Split, plan: CachePlan, rows: Sequence[dict[str, Any]], predictor: str
) -> dict[str, Any]:
    """All planned layers of one workload together."""
    here = [row for row in rows if (row["workload"], row["predictor"]) == (manifest.workload, predictor)]
    count = LayerBytes.of_capture(manifest, split.held_out, plan.block_size)
    blocks = sum(row["blocks"] for row in here)
    alone = (plan.layers - len(here)) * count.unfused

    def kept(side: str) -> list[float] | None:
        found = [row[f"kept_{side}"] for row in here]
        return None if any(number is None for number in found) else found

    def compression(side: str) -> float | None:
        found = kept(side)
        return None if found is None else float(blocks / np.sum(found))

    def of_cache(side: str) -> float | None:
        found = kept(side)
        if found is None:
            return None
        stored = [
            count.stored(plan.settings[row["layer"]], float(number))
            for row, number in zip(here, found, strict=True)
        ]
        return float(plan.layers * count.unfused / (np.sum(stored) + alone))

    entry: dict[str, Any] = {
        "kind": "total",
        "workload": manifest.workload,
        "predictor": predictor,
        "layers": len(here),
        "requests": len(split.held_out),
        "blocks": blocks,
    }
    for name, found in (("compression", compression), ("cache_compression", of_cache)):
        entry |= {
            f"{name}_measured": found("measured"),
            f"{name}_predicted": found("predicted"),
            f"{name}_predicted_low": found("predicted_high"),
            f"{name}_predicted_high": found("predicted_low"),
        }
    low, high = entry["compression_predicted_low"], entry["compression_predicted_high"]
    within = None if low is None or high is None else low <= entry["compression_measured"] <= high
    return entry | {
        "within_band": within,
        "layers_within_band": _layers_within(here),
    }


def _layers_within(rows: Sequence[dict[str, Any]]) -> int | None:
    """Layers whose measurement lies in their own band."""
    ends = [(row["kept_predicted_low"], row["kept_measured"], row["kept_predicted_high"]) for row in rows]
    if any(low is None or high is None for low, _, high in ends):
        return None
    return sum(low <= found <= high for low, found, high in ends)
