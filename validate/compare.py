"""Predicted beside measured: calibrate on some requests of a capture, fuse the others, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import CRITERIA, SCALES, VARIANTS
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.predictors import PairSample, Prediction, held_out_errors, predictor_class
from ratedist.rate import CacheShape, cache_rate
from ratedist.records import Record, provenance
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.manifest import DTYPES, MANIFEST, Manifest
from ratedist.validate.captures.store import Capture
from ratedist.validate.measure import Measurement, Runtime, measure, runtime_for
from ratedist.validate.parallel import check_jobs, run_tasks
from ratedist.validate.summary import ALL, summarise

__all__ = [
    "SCHEMA",
    "THRESHOLDS",
    "LayerCell",
    "Plan",
    "Split",
    "cell_rows",
    "check_captures",
    "compare",
    "compare_layer",
    "count_exceedances",
    "default_layers",
    "fused_by",
    "split_requests",
]

FloatArray = NDArray[np.float64]

SCHEMA = "ratedist/validation/1"
"""Schema of the record that ``compare`` returns."""

THRESHOLDS = tuple(round(0.60 + 0.05 * step, 2) for step in range(8))
"""Thresholds compared by default."""

ALONE_AT_EACH_END = 2
"""Layers at either end of a model that are not fused by default."""

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what was done."""


@dataclass(frozen=True)
class Plan:
    """What to compare; raises InputError for names and numbers that are not known.

    Attributes:
        thresholds: each within [-1, 1].
        variants, criteria: every pair of them is compared.
        scale: rule by which members are read back.
        predictors: names of predictors; of several, one is chosen by its errors within the calibration
            requests (``ratedist.predictors.held_out_errors``), all layers and workloads together.
        layers: layers to fuse; all captured ones but the model's first and last two where None.
        seed: of the random split.
    """

    thresholds: tuple[float, ...] = THRESHOLDS
    variants: tuple[str, ...] = ("leader",)
    criteria: tuple[str, ...] = ("keys",)
    scale: str = "own-norm"
    predictors: tuple[str, ...] = ("gaussian", "position-marked")
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for argument, values, known in (
            ("variant", self.variants, VARIANTS),
            ("criterion", self.criteria, CRITERIA),
            ("scale", (self.scale,), SCALES),
        ):
            for value in values:
                if value not in known:
                    raise InputError(argument, value, f"unknown; choose one of {', '.join(known)}")
        for name in self.predictors:
            predictor_class(name)
        for threshold in self.thresholds:
            if not -1 <= threshold <= 1:
                raise InputError("threshold", threshold, "must lie in [-1, 1]")
        for argument in ("thresholds", "variants", "criteria", "predictors", "layers"):
            values = getattr(self, argument)
            if values is None:
                continue
            if len(values) == 0:
                raise InputError(argument, values, "must name at least one")
            if len(set(values)) < len(values):
                raise InputError(argument, list(values), "names one twice; name each once")
        if self.seed < 0:
            raise InputError("seed", self.seed, "must not be negative")


@dataclass(frozen=True)
class Split:
    """Requests to calibrate on and requests to measure, each in the capture's order."""

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]


def split_requests(manifest: Manifest, seed: int) -> Split:
    """Halve the requests at random, those with a full block; each half keeps the capture's order.

    Within every domain one half goes to each side; of an odd number the larger part is held out.

    Raises InputError where no domain has four requests with a full block: two to calibrate on, and
    two that can fuse with each other.
    """
    rng = np.random.default_rng(seed)
    lengths, domains = np.array(manifest.lengths), np.array(manifest.domains)
    full = np.nonzero(lengths >= manifest.block_size)[0]
    largest = max((int((domains[full] == domain).sum()) for domain in np.unique(domains[full])), default=0)
    if largest < 4:
        raise InputError(
            "requests",
            largest,
            f"workload {manifest.workload!r} is too small to split: a domain needs four requests of at least "
            f"{manifest.block_size} tokens, two to calibrate on and two to fuse; capture more",
        )
    calibration: list[int] = []
    for domain in np.unique(domains[full]):
        members = rng.permutation(full[domains[full] == domain])
        calibration.extend(members[: len(members) // 2].tolist())
    chosen = set(calibration)
    return Split(tuple(sorted(chosen)), tuple(int(r) for r in full if int(r) not in chosen))


def default_layers(manifest: Manifest) -> tuple[int, ...]:
    """Captured layers but for the model's first and last two.

    Raises InputError where none is left.
    """
    last = manifest.model_layers - ALONE_AT_EACH_END
    layers = tuple(layer for layer in manifest.layers if ALONE_AT_EACH_END <= layer < last)
    if not layers:
        raise InputError(
            "layers",
            list(manifest.layers),
            f"all captured layers are among the first or last {ALONE_AT_EACH_END} of "
            f"{manifest.model_layers}; name the layers to fuse",
        )
    return layers


def compare(
    captures: Sequence[Capture],
    plan: Plan | None = None,
    *,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
    jobs: int = 1,
    dask: str | None = None,
) -> Record:
    """Fit every predictor on half of each capture's requests and compare it with fusion of the others.

    Args:
        captures: one per workload, all of one model.
        plan: what to compare; the defaults of ``Plan`` where None.
        runtime: from ``runtime_for``; the CPU path where None.
        progress: called after every layer.
        command: what the record names as the command that made it; this process's own where None.
        jobs: layers compared at a time, each in a process of its own where more than one; the record is the
            same.
        dask: address of a Dask scheduler whose workers compare the layers instead, see
            ``ratedist.validate.parallel.run_tasks``; the record is the same.

    Returns:
        A record of schema ``SCHEMA``: a row for every workload, layer, variant, criterion, threshold and
        predictor, none dropped, and the summary of ``ratedist.validate.summary``; the ends of a predicted
        band are None for predictors that give none. Beside the compression
        of the row's layer, ``cache_compression_*`` is that of the whole cache with all layers of the plan
        fused like this, table entries, scales and layers left alone counted (the same in every layer's row).

    Raises InputError where the captures do not fit each other or the plan, for ``jobs`` below 1, or for a
    cluster that does not answer or would not give the same record.
    """
    plan = Plan() if plan is None else plan
    check_jobs(jobs)
    if dask is not None:
        captures = [capture.resolved() for capture in captures]
    where = runtime_for("cpu") if runtime is None else runtime
    check_captures(captures)
    splits = [split_requests(capture.manifest, plan.seed) for capture in captures]
    layers = [_layers_of(capture.manifest, plan) for capture in captures]
    work = [
        (capture, split, layer)
        for capture, split, chosen in zip(captures, splits, layers, strict=True)
        for layer in chosen
    ]
    results = run_tasks(
        _compare_layer,
        [(capture, split, layer, plan, where) for capture, split, layer in work],
        jobs=jobs,
        dask=dask,
        files=[capture.folder / MANIFEST for capture in captures],
        backend=where.backend,
    )
    cells: dict[str, list[LayerCell]] = {capture.manifest.workload: [] for capture in captures}
    for done, ((capture, _, layer), found) in enumerate(zip(work, results, strict=True), start=1):
        cells[capture.manifest.workload] += found
        if progress is not None:
            progress(done, len(work), f"{capture.manifest.workload}, layer {layer}")
    rows = [
        row
        for capture, split, chosen in zip(captures, splits, layers, strict=True)
        for row in cell_rows(
            capture.manifest, split, len(chosen), cells[capture.manifest.workload], plan, where
        )
    ]
    return Record(
        schema=SCHEMA,
        provenance=provenance(
            command,
            seed=plan.seed,
            scale=plan.scale,
            captures=[
                _describe(capture.manifest, split) for capture, split in zip(captures, splits, strict=True)
            ],
        ),
        rows=rows,
        summary=summarise(rows, _held_out(cells.values(), plan)),
    )


@dataclass(frozen=True)
class LayerCell:
    """One layer under one variant and criterion: measurements by threshold, predictions by predictor.

    ``exceedances`` are the pairs of calibration blocks whose score is above each threshold, byte-equal ones
    included; ``held_out`` the predictors' errors within the calibration requests, where they were asked for.
    """

    layer: int
    variant: str
    criterion: str
    measured: list[Measurement]
    predicted: dict[str, Prediction]
    exceedances: list[int]
    held_out: dict[str, FloatArray] = field(default_factory=dict)


def _compare_layer(
    capture: Capture, split: Split, layer: int, plan: Plan, runtime: Runtime
) -> list[LayerCell]:
    sample = pair_sample(capture.layer(layer, split.calibration))
    held_out = capture.layer(layer, split.held_out)

    fused = fused_by(held_out, layer, plan, runtime)
    return [
        replace(cell, held_out=_errors_within(sample, plan, cell.variant, cell.criterion))
        for cell in compare_layer(sample, held_out.table, layer, plan, fused)
    ]


def fused_by(
    held_out: PagedLayer, layer: int, plan: Plan, runtime: Runtime
) -> Callable[[str, str], list[Measurement]]:
    """By variant and criterion, what the code of ``ratedist.kernels`` measures at the plan's thresholds."""

    def fuse_held_out(variant: str, criterion: str) -> list[Measurement]:
        return list(
            measure(
                held_out,
                plan.thresholds,
                variant=variant,
                criterion=criterion,
                scale=plan.scale,
                runtime=runtime,
                layer_name=layer,
            )
        )

    return fuse_held_out


def _errors_within(sample: PairSample, plan: Plan, variant: str, criterion: str) -> dict[str, FloatArray]:
    """Errors of every predictor within the calibration requests; none where these are too few to split."""
    requests = np.unique(np.stack([sample.domain, sample.request]), axis=1)[0]
    if len(plan.predictors) == 1 or np.unique(requests, return_counts=True)[1].max() < 4:
        return {}
    found = held_out_errors(
        sample,
        plan.thresholds,
        variant=variant,
        criterion=criterion,
        scale=plan.scale,
        predictors=plan.predictors,
        splits=1,
        seed=plan.seed,
    )
    return {error.predictor: error.errors for error in found}


def _held_out(workloads: Iterable[list[LayerCell]], plan: Plan) -> dict[str, float | None]:
    """Median of those errors over all that was compared, None where there are none."""
    scores: dict[str, float | None] = {}
    cells = [cell for cells in workloads for cell in cells]
    for name in plan.predictors:
        errors = [cell.held_out[name] for cell in cells if name in cell.held_out]
        scores[name] = float(np.median(np.concatenate(errors))) if any(e.size for e in errors) else None
    return scores


def compare_layer(
    sample: PairSample,
    held_out: BlockTable,
    layer: int,
    plan: Plan,
    measured: Callable[[str, str], list[Measurement]],
) -> list[LayerCell]:
    """Fit every predictor on ``sample`` and set its predictions for ``held_out`` beside what is measured.

    Args:
        sample: of the calibration requests.
        held_out: block table of the requests that are fused.
        layer: the layer's index.
        plan: predictors, thresholds, and the variants and criteria, all pairs of which are compared.
        measured: called with variant and criterion; one measurement per threshold of the plan.
    """
    cells = []
    for criterion in plan.criteria:
        exceedances = count_exceedances(sample, plan.thresholds, criterion)
        fitted = {
            name: predictor_class(name)(sample, criterion=criterion, scale=plan.scale)
            for name in plan.predictors
        }
        for variant in plan.variants:
            predicted = {
                name: predictor.predict(
                    held_out.full_blocks.numpy(),
                    plan.thresholds,
                    variant=variant,
                    domains=held_out.domains.numpy(),
                )
                for name, predictor in fitted.items()
            }
            cells.append(
                LayerCell(layer, variant, criterion, measured(variant, criterion), predicted, exceedances)
            )
    return cells


def count_exceedances(sample: PairSample, thresholds: Sequence[float], criterion: str) -> list[int]:
    """Pairs of blocks that may share and score above each threshold, each pair once.

    Where there are none, a prediction of fusion rests on nothing that was seen to fuse.
    """
    above = np.sort(sample.scores(criterion)[np.triu(sample.comparable)])
    return (above.size - np.searchsorted(above, np.asarray(thresholds), side="right")).tolist()


def cell_rows(
    manifest: Manifest, split: Split, fused_layers: int, cells: list[LayerCell], plan: Plan, runtime: Runtime
) -> list[dict[str, Any]]:
    """Rows of one workload and split, by variant, criterion, predictor, layer and threshold.

    Args:
        manifest: of the workload's capture.
        split: the requests that were calibrated on and measured.
        fused_layers: layers that are fused, for the compression of the whole cache.
        cells: of these layers, for every variant and criterion of the plan.
        plan: what was compared.
        runtime: what fused.
    """
    rows: list[dict[str, Any]] = []
    for variant in plan.variants:
        for criterion in plan.criteria:
            here = [cell for cell in cells if (cell.variant, cell.criterion) == (variant, criterion)]
            measured = np.array([[m.kept for m in cell.measured] for cell in here], dtype=np.float64)
            whole_measured = _whole_cache(manifest, split, fused_layers, measured.mean(axis=0))
            for name in plan.predictors:
                kept = np.stack([cell.predicted[name].kept for cell in here]).mean(axis=0)
                whole_predicted = _whole_cache(manifest, split, fused_layers, kept)
                for cell in here:
                    prediction = cell.predicted[name]
                    rows += [
                        {
                            "model": manifest.model,
                            "workload": manifest.workload,
                            "layer": cell.layer,
                            "mode": "bff",
                            "variant": variant,
                            "criterion": criterion,
                            "threshold": m.threshold,
                            "predictor": name,
                            "backend": runtime.backend,
                            "device": runtime.device_name,
                            "interpreted": runtime.interpreted,
                            "requests": len(split.held_out),
                            "blocks": m.candidates,
                            "kept_measured": m.kept,
                            "kept_predicted": float(prediction.kept[index]),
                            "compression_measured": m.compression,
                            "compression_predicted": float(prediction.compression[index]),
                            "compression_predicted_low": _at(prediction.compression_low, index),
                            "compression_predicted_high": _at(prediction.compression_high, index),
                            "calibration_exceedances": cell.exceedances[index],
                            "k_error_measured": m.k_error,
                            "k_error_predicted": float(prediction.k_error[index]),
                            "v_error_measured": m.v_error,
                            "v_error_predicted": float(prediction.v_error[index]),
                            "cache_compression_measured": float(whole_measured[index]),
                            "cache_compression_predicted": float(whole_predicted[index]),
                        }
                        for index, m in enumerate(cell.measured)
                    ]
    return rows


def _at(band: FloatArray | None, index: int) -> float | None:
    """One end of a band, None where there is none."""
    return None if band is None or not np.isfinite(band[index]) else float(band[index])


def _whole_cache(manifest: Manifest, split: Split, fused_layers: int, kept: FloatArray) -> FloatArray:
    lengths = np.array(manifest.lengths)[list(split.held_out)]
    size = manifest.block_size
    shape = CacheShape(
        layers=manifest.model_layers,
        fused_layers=fused_layers,
        blocks=int((lengths // size).sum()),
        block_scalars=manifest.block_dim,
        scalar_bits=8.0 * DTYPES[manifest.dtype].itemsize,
        partial_scalars=int((lengths % size > 0).sum()) * manifest.block_dim,
    )
    # Not finite where a predictor failed in one of the layers, which leaves the whole unknown too.
    known = np.isfinite(kept)
    compression = np.full(kept.shape, np.nan)
    if known.any():
        compression[known] = cache_rate(shape, kept[known]).compression
    return compression


def _layers_of(manifest: Manifest, plan: Plan) -> tuple[int, ...]:
    if plan.layers is None:
        return default_layers(manifest)
    for layer in plan.layers:
        if layer not in manifest.layers:
            raise InputError(
                "layers",
                layer,
                f"is not in the capture of {manifest.workload!r}; it holds {list(manifest.layers)}",
            )
    return plan.layers


def check_captures(captures: Sequence[Capture]) -> None:
    """Raise InputError unless there is at least one, each of another workload, all of one model's weights."""
    if not captures:
        raise InputError("captures", [], "name at least one capture")
    first = captures[0].manifest
    seen: dict[str, Capture] = {}
    for capture in captures:
        manifest = capture.manifest
        if manifest.workload == ALL:
            raise InputError(
                "workload", ALL, "is the name of the summary over all workloads; capture under another name"
            )
        if manifest.workload in seen:
            raise InputError(
                "captures",
                str(capture.folder),
                f"is of workload {manifest.workload!r} like {seen[manifest.workload].folder}; "
                "name one per workload",
            )
        seen[manifest.workload] = capture
        if (manifest.model, manifest.weights_hash) != (first.model, first.weights_hash):
            raise InputError(
                "captures",
                str(capture.folder),
                f"is of model {manifest.model!r} with weights {manifest.weights_hash[:12] or 'unknown'}, "
                f"{captures[0].folder} of {first.model!r} with {first.weights_hash[:12] or 'unknown'}; "
                "compare one model at a time",
            )


def _describe(manifest: Manifest, split: Split) -> dict[str, Any]:
    return {
        "workload": manifest.workload,
        "model": manifest.model,
        "weights_hash": manifest.weights_hash,
        "dtype": manifest.dtype,
        "model_layers": manifest.model_layers,
        "workload_seed": manifest.seed,
        "calibration": list(split.calibration),
        "held_out": list(split.held_out),
    }
