"""Running a transfer: every cell that is not finished yet, then the record of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ratedist.errors import InputError
from ratedist.predictors import PREDICTORS
from ratedist.records import Record, provenance
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import THRESHOLDS
from ratedist.validate.parallel import absolute, run_tasks
from ratedist.validate.suite.folder import SuiteFolder
from ratedist.validate.suite.noise_cell import REORDERED
from ratedist.validate.suite.protocol import CHOICE_SPLITS
from ratedist.validate.suite.rows import choose, collect
from ratedist.validate.suite.run import LayerWork, fingerprint, read_by, run_cells
from ratedist.validate.suite.scored_layer import ScoredLayer
from ratedist.validate.suite.splits import check_size
from ratedist.validate.suite.tasks import ALL, CellSize, Suite, Task
from ratedist.validate.transfer.matched import MatchedCapture, match_captures, pairs_of
from ratedist.validate.transfer.rows import prediction_rows, threshold_rows
from ratedist.validate.transfer.summary import describe, summarise
from ratedist.validate.transfer.thresholds import CurveKey, Goal, curve_cell

__all__ = ["GOALS", "SCHEMA", "TransferPlan", "run_transfer"]

SCHEMA = "ratedist/transfer/1"
"""Schema of the record of a transfer."""

GOALS = (Goal("k_error", 0.1), Goal("k_error", 0.2), Goal("v_error", 0.2), Goal("compression", 1.5))
"""What thresholds are chosen for by default."""

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, and what was done last."""


@dataclass(frozen=True)
class TransferPlan:
    """What is calibrated, and what is asked of it elsewhere.

    Attributes:
        calibrate: requests of the source.
        measure: requests of the target, fused for real; of one capture, others than those that calibrate.
        layers: how many of each model, spread evenly over the layers that are fused by default.
        seeds: one random split of the requests each.
        goals: that thresholds are chosen for.
        thresholds, variants, criteria, scale, predictors: as in ``ratedist.validate.compare.Plan``.
    """

    calibrate: int = 16
    measure: int = 16
    layers: int = 3
    seeds: tuple[int, ...] = (0, 1)
    goals: tuple[Goal, ...] = GOALS
    thresholds: tuple[float, ...] = THRESHOLDS
    variants: tuple[str, ...] = ("leader",)
    criteria: tuple[str, ...] = ("keys",)
    scale: str = "own-norm"
    predictors: tuple[str, ...] = tuple(PREDICTORS)

    def __post_init__(self) -> None:
        if len(set(self.goals)) < len(self.goals):
            raise InputError("goal", [asdict(goal) for goal in self.goals], "names one twice; name each once")
        self.suite()  # checks the rest

    def suite(self) -> Suite:
        """The suite whose protocol compares one source and one target.

        Raises InputError for numbers and names that are not known.
        """
        return Suite(
            "transfer",
            (Task((ALL,), ((self.calibrate, self.measure),), self.layers),),
            seeds=self.seeds,
            thresholds=self.thresholds,
            variants=self.variants,
            criteria=self.criteria,
            scale=self.scale,
            predictors=self.predictors,
        )


def run_transfer(
    captures: Sequence[Capture],
    plan: TransferPlan,
    out: Path,
    *,
    jobs: int = 1,
    dask: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    command: list[str] | None = None,
) -> Record:
    """Calibrate on every capture, predict and fuse every other that shares its model or its workload.

    Args:
        captures: at least two, see ``ratedist.validate.transfer.matched.match_captures``.
        plan: what is calibrated and asked.
        out: folder of the finished cells; the same call goes on where another stopped.
        jobs: layers at a time, each in a process of its own where more than one; the record is the same.
        dask: address of a Dask scheduler whose workers take the layers instead and write into the folder, see
            ``ratedist.validate.parallel.run_tasks``; the record is the same.
        force: begin again where the folder holds cells of other settings.
        progress: called after every layer.
        command: what the record names as the command that made it; this process's own where None.

    Returns:
        A record of schema ``SCHEMA``: rows as ``ratedist.validate.transfer.rows`` makes them, and the
        summary of ``ratedist.validate.transfer.summary``.

    Raises InputError for captures that cannot be matched or have too few requests, for a folder that holds
    anything else, for ``jobs`` below 1, and for a cluster that does not answer or would not give the same
    record.
    """
    matched = match_captures(captures, plan.layers)
    suite = plan.suite()
    for capture in matched:
        check_size(capture.manifest, plan.calibrate, plan.measure)
    work = _work(matched, plan)
    settings = {
        "transfer": True,
        "requests": matched[0].manifest.requests,
        "thresholds": list(plan.thresholds),
        "variants": list(plan.variants),
        "criteria": list(plan.criteria),
        "scale": plan.scale,
        "predictors": list(plan.predictors),
        "noise_draws": suite.noise_draws,
        "noise_orders": REORDERED,
        "choice_splits": CHOICE_SPLITS,
        "version": metadata.version("ratedist"),
    }
    marks = {c.manifest.workload: f"{fingerprint(c.manifest)} {list(c.chosen)}" for c in matched}
    folder = SuiteFolder.claim(out, settings, marks, force=force)
    curves = {(item, key) for item in range(len(work)) for key in _curve_keys(work[item], plan)}
    share = 0.1 if any(not folder.has(key) for _, key in curves) else 0.0

    def report(done: float, name: str) -> None:
        if progress is not None:
            progress((1 - share) * done, name)

    run_cells(suite, work, folder, jobs=jobs, dask=dask, progress=report)
    _run_curves(suite, work, plan, folder, jobs, dask)
    if progress is not None:
        progress(1.0, "thresholds")
    choice = choose(suite, work, folder)
    columns = collect(suite, work, folder)
    predictions = prediction_rows(columns, matched)

    def curve(capture: MatchedCapture, layer: int, seed: int) -> dict[str, Any]:
        return folder.read(_curve_key(capture, layer, plan, seed))

    thresholds = threshold_rows(pairs_of(matched), plan, curve)
    summary = summarise(columns, thresholds, matched, choice.chosen)
    return Record(
        SCHEMA,
        provenance(
            command,
            plan={**asdict(plan), "goals": [asdict(goal) for goal in plan.goals]},
            captures=[_describe(capture) for capture in matched],
            choice=asdict(choice),
            words=describe(summary, choice.chosen),
        ),
        [*predictions, *thresholds],
        summary,
    )


def _work(matched: Sequence[MatchedCapture], plan: TransferPlan) -> list[LayerWork]:
    work = []
    for target in matched:
        sources = [source for source, other in pairs_of(matched) if other is target]
        sizes = tuple(CellSize(plan.calibrate, plan.measure, source.manifest.workload) for source in sources)
        others = {source.manifest.workload: source for source in sources if source is not target}
        work += [
            LayerWork(target, layer, sizes, plan.seeds, dict(others)) for layer in target.manifest.layers
        ]
    return work


def _run_curves(
    suite: Suite,
    work: Sequence[LayerWork],
    plan: TransferPlan,
    folder: SuiteFolder,
    jobs: int,
    dask: str | None,
) -> None:
    folder = SuiteFolder(absolute(folder.path, dask))
    left = [
        (suite, item if dask is None else item.resolved(), missing, folder)
        for item in work
        if (missing := [key for key in _curve_keys(item, plan) if not folder.has(key)])
    ]
    files = read_by([item for _, item, *_ in left], folder)
    for _ in run_tasks(_curves_of_layer, left, jobs=jobs, dask=dask if left else None, files=files):
        pass


def _curves_of_layer(suite: Suite, item: LayerWork, missing: Sequence[CurveKey], folder: SuiteFolder) -> None:
    import torch

    torch.set_num_threads(1)  # the layers run beside each other
    scored = ScoredLayer(item.capture.layer(item.layer))
    for key in missing:
        folder.write(key, curve_cell(item.capture.manifest, scored, item.layer, key, suite))


def _curve_keys(item: LayerWork, plan: TransferPlan) -> list[CurveKey]:
    return [_curve_key(item.capture, item.layer, plan, seed) for seed in plan.seeds]


def _curve_key(capture: Capture, layer: int, plan: TransferPlan, seed: int) -> CurveKey:
    return CurveKey(capture.manifest.workload, layer, plan.measure, plan.calibrate, seed)


def _describe(capture: MatchedCapture) -> dict[str, object]:
    manifest = capture.source.manifest
    return {
        "model": manifest.model,
        "weights_hash": manifest.weights_hash,
        "workload": manifest.workload,
        "workload_seed": manifest.seed,
        "dtype": manifest.dtype,
        "model_layers": manifest.model_layers,
        "query_heads": manifest.query_heads,
        "kv_heads": manifest.kv_heads,
        "head_dim": manifest.head_dim,
        "sliding_window": manifest.sliding_window,
        "requests": capture.manifest.requests,
        "layers": list(capture.chosen),
        "layer_types": list(capture.manifest.layer_types),
    }
