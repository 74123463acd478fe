"""The protocol: random splits of a workload's requests, each predicted and measured, beside the noise floor.

For one layer of one capture and a split (n, m) with a seed: n requests drawn at random calibrate every
predictor, m others in random order are fused by the code of ``ratedist.kernels``, at every threshold, variant
and criterion. Splits of one workload with one seed are nested: the n requests are the same whatever m. What
comes of a split is a *cell*, JSON data that can be stored and read back; another kind of cell holds the noise
of measurements of m requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from ratedist.errors import RatedistError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.predictors import PairSample, Prediction, held_out_errors
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.manifest import Manifest
from ratedist.validate.compare import LayerCell, Plan, compare_layer, count_exceedances
from ratedist.validate.measure import Measurement
from ratedist.validate.suite.scored_layer import ScoredLayer, select_requests
from ratedist.validate.suite.splits import draw_split
from ratedist.validate.suite.tasks import Suite

__all__ = [
    "CHOICE_SPLITS",
    "Calibration",
    "layer_cells",
    "recheck",
    "split_cell",
]

Json = dict[str, Any]

CHOICE_SPLITS = 1
"""Random splits of the calibration requests, in every cell, by which a predictor is chosen."""

_FAILURES = (RatedistError, ArithmeticError, ValueError, IndexError)
"""What a predictor may stumble over."""


@dataclass(frozen=True)
class Calibration:
    """Requests that calibrate.

    Attributes:
        workload: that they are of.
        requests: their indices in its capture.
        layer: these requests of one layer, or their chunks.
    """

    workload: str
    requests: tuple[int, ...]
    layer: PagedLayer


def split_cell(
    manifest: Manifest,
    scored: ScoredLayer,
    index: int,
    size: tuple[int, int],
    suite: Suite,
    seed: int,
    calibration: Calibration,
    mode: str = "bff",
) -> Json:
    """Calibrate, predict and measure one split of one layer.

    Args:
        manifest: of the capture that is measured.
        scored: the layer, all of its requests, in chunks with mode ``"cff"``.
        index: of the layer.
        size: (n, m).
        suite: thresholds, variants, criteria, predictors.
        seed: of the split.
        calibration: n requests, those of ``draw_split`` or of another workload.
        mode: of fusion. Across chunks (``"cff"``) no predictor is chosen: a split of the calibration
            requests' chunks would not be a split of requests.

    Returns:
        The cell. A predictor that gives nothing is not left out: its entry says why.
    """
    n, m = size
    plan = suite.plan(seed)
    held_out = draw_split(manifest, n, m, seed).held_out
    draw = scored.draw(held_out)
    measured = {
        (variant, criterion): draw.measure(
            plan.thresholds, variant=variant, criterion=criterion, scale=plan.scale
        )
        for variant in plan.variants
        for criterion in plan.criteria
    }
    sample, reason, seconds = _sample(calibration.layer)
    results = []
    within: dict[tuple[str, str], dict[str, list[float] | None]] = {}
    start = time.process_time()
    if sample is not None and calibration.workload == manifest.workload and mode == "bff":
        within = {
            (variant, criterion): _errors_within(sample, plan, variant, criterion, m / n)
            for variant in plan.variants
            for criterion in plan.criteria
        }
    choice_seconds = time.process_time() - start
    for criterion in plan.criteria:
        predicted: dict[str, dict[str, Json]] = {variant: {} for variant in plan.variants}
        exceedances = (
            [0] * len(plan.thresholds)
            if sample is None
            else count_exceedances(sample, plan.thresholds, criterion)
        )
        for name in plan.predictors:
            start = time.process_time()
            found = (
                {variant: {"refused": reason} for variant in plan.variants}
                if sample is None
                else _predict(
                    sample, draw.table, index, replace(plan, predictors=(name,), criteria=(criterion,))
                )
            )
            spent = seconds + time.process_time() - start
            for variant in plan.variants:
                predicted[variant][name] = {**found[variant], "seconds": round(spent, 4)}
        results += [
            {
                "variant": variant,
                "criterion": criterion,
                "measured": [asdict(measurement) for measurement in measured[variant, criterion]],
                "predicted": predicted[variant],
                "exceedances": exceedances,
                "held_out": within.get((variant, criterion), {}),
            }
            for variant in plan.variants
        ]
    layer = calibration.layer
    blocks = int(layer.table.full_blocks.sum())
    return {
        "kind": "split",
        "mode": mode,
        "units": int(torch.unique(draw.table.domains, return_counts=True)[1].max()),
        "workload": manifest.workload,
        "calibrated_on": calibration.workload,
        "layer": index,
        "n": n,
        "m": m,
        "seed": seed,
        "calibration": list(calibration.requests),
        "held_out": list(held_out),
        "calibration_pairs": 0 if sample is None else int(sample.comparable.sum()) // 2,
        "choice_seconds": round(choice_seconds, 4),
        "calibration_bytes": blocks * 2 * layer.block_dim * layer.k.element_size(),
        "results": results,
    }


def recheck(layer: PagedLayer, cell: Json, suite: Suite) -> list[Json]:
    """Measure a cell's layer again with ``fuse`` itself, at one threshold for every variant and criterion.

    ``ScoredLayer`` looks scores up that ``fuse`` computes; this says, in the cell, whether both keep as many
    blocks. They may differ by blocks whose score is within rounding of the threshold.
    """
    held_out = select_requests(layer, cell["held_out"])
    checks = []
    for number, result in enumerate(cell["results"]):
        place = (cell["layer"] + number) % len(suite.thresholds)
        fusion = fuse(
            held_out,
            threshold=suite.thresholds[place],
            variant=result["variant"],
            criterion=result["criterion"],
            mode=cell["mode"],
            chunk_blocks=suite.chunk_blocks if cell["mode"] == "cff" else None,
            backend="cpu",
        )
        checks.append(
            {
                "variant": result["variant"],
                "criterion": result["criterion"],
                "threshold": suite.thresholds[place],
                "kept": fusion.kept,
                "kept_looked_up": result["measured"][place]["kept"],
            }
        )
    return checks


def layer_cells(cell: Json, plan: Plan) -> tuple[list[LayerCell], dict[str, str]]:
    """What ``ratedist.validate.compare`` works with, from a stored cell of a split.

    Returns:
        A ``LayerCell`` per variant and criterion, and by name of predictor why it predicted nothing; its
        predictions are NaN.
    """
    cells, refused = [], {}
    for result in cell["results"]:
        measured = [Measurement(**values) for values in result["measured"]]
        predicted = {}
        for name in plan.predictors:
            values = result["predicted"][name]
            if "refused" in values:
                refused[name] = values["refused"]
                predicted[name] = _nothing(measured)
            else:
                predicted[name] = _read_prediction(values["prediction"])
        setting = (result["variant"], result["criterion"])
        cells.append(LayerCell(cell["layer"], *setting, measured, predicted, result["exceedances"]))
    return cells, refused


def _sample(calibration: PagedLayer) -> tuple[PairSample | None, str, float]:
    """The sample of similarities (or why there is none) and the processor seconds it took."""
    start = time.process_time()
    try:
        return pair_sample(calibration), "", time.process_time() - start
    except RatedistError as error:
        return None, str(error), time.process_time() - start


def _errors_within(
    sample: PairSample, plan: Plan, variant: str, criterion: str, ratio: float
) -> dict[str, list[float] | None]:
    """Errors of every predictor within the calibration requests, by which one is chosen.

    None for a predictor that fails there; nothing where no domain has the four requests that it takes.
    """
    requests = np.unique(np.stack([sample.domain, sample.request]), axis=1)[0]
    if np.unique(requests, return_counts=True)[1].max() < 4:
        return {}
    found: dict[str, list[float] | None] = {}
    for name in plan.predictors:  # one by one, with the same splits: one that fails spoils no other
        try:
            (error,) = held_out_errors(
                sample,
                plan.thresholds,
                variant=variant,
                criterion=criterion,
                scale=plan.scale,
                ratio=ratio,
                predictors=(name,),
                splits=CHOICE_SPLITS,
                seed=plan.seed,
            )
        except _FAILURES:
            found[name] = None
        else:
            usable = bool(np.isfinite(error.errors).all())
            found[name] = [round(float(value), 6) for value in error.errors] if usable else None
    return found


def _predict(sample: PairSample, held_out: BlockTable, index: int, plan: Plan) -> dict[str, Json]:
    """By variant, the prediction of one predictor under one criterion, or why there is none."""
    try:
        cells = compare_layer(sample, held_out, index, plan, lambda variant, criterion: [])
    # Whatever a predictor stumbles over is its own failure: it stands in its row, and the others go on.
    except _FAILURES as error:
        if len(plan.variants) == 1:
            return {plan.variants[0]: {"refused": f"{type(error).__name__}: {error}"}}
        each = [_predict(sample, held_out, index, replace(plan, variants=(v,))) for v in plan.variants]
        return {variant: found for one in each for variant, found in one.items()}
    results: dict[str, Json] = {}
    for cell in cells:
        (prediction,) = cell.predicted.values()
        usable = np.isfinite(prediction.kept).all() and (prediction.kept > 0).all()
        results[cell.variant] = (
            {"prediction": _write_prediction(prediction)}
            if usable
            else {"refused": f"predicted {np.asarray(prediction.kept).tolist()} kept blocks"}
        )
    return results


def _write_prediction(prediction: Prediction) -> Json:
    values = {item.name: getattr(prediction, item.name) for item in fields(prediction)}
    return {
        name: _as_list(value) if isinstance(value, np.ndarray) else value for name, value in values.items()
    }


def _as_list(array: np.ndarray) -> list[float | None]:
    """Numbers for JSON; None for what is not finite."""
    return [float(value) if math.isfinite(value) else None for value in array]


def _read_prediction(values: Mapping[str, Any]) -> Prediction:
    read: dict[str, Any] = {
        name: np.array(value, dtype=np.float64) if isinstance(value, list) else value
        for name, value in values.items()
    }
    return Prediction(**read)


def _nothing(measured: Sequence[Measurement]) -> Prediction:
    unknown = np.full(len(measured), np.nan)
    return Prediction(
        thresholds=np.array([m.threshold for m in measured]),
        candidates=measured[0].candidates,
        kept=unknown,
        k_error=unknown,
        v_error=unknown,
    )
