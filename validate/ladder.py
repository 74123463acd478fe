"""The ladder: one quantity from closed form to captured caches, and what fails between two rungs.

Rung 1 is the recursion in closed form, 2 the Monte Carlo of its process, 3 synthetic blocks through the real
fusion, 4 a capture through the real fusion. Every rung of one ladder stands for the same law of similarity
(rung 4 for the one that the others were calibrated on), so a gap has one cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.errors import InputError
from ratedist.fusion import leader, tree
from ratedist.kernels.fusion.fuse import fuse
from ratedist.montecarlo.chains import simulate_leader, simulate_tree
from ratedist.records import Record, provenance
from ratedist.sim.blocks import SyntheticLayer, generate
from ratedist.sim.calibrate import Calibration, calibrate
from ratedist.sim.distance import LawDistance, law_distance, pair_scores
from ratedist.sim.model import BlockModel
from ratedist.sim.rotary import Rotary
from ratedist.similarity.base import SimilarityLaw
from ratedist.validate.captures.manifest import MANIFEST
from ratedist.validate.captures.store import Capture
from ratedist.validate.marked_law import MarkedLaw
from ratedist.validate.parallel import run_tasks
from ratedist.validate.synthetic import blocks_of, paged

__all__ = ["ASSUMPTIONS", "SCHEMA", "CapturedLadder", "captured_ladder", "law_ladder", "model_ladder"]

FloatArray = NDArray[np.float64]
Progress = Callable[[str], None]

SCHEMA = "ratedist/ladder/1"

NAMES = {1: "closed form", 2: "process", 3: "synthetic blocks", 4: "capture"}

ASSUMPTIONS = {
    (1, 2): "the recursion's closure: means and variances stand for random numbers of kept blocks",
    (
        2,
        3,
    ): "independent exceedances (the Poisson claim): kept blocks repel each other, and some blocks match "
    "more often than others at their position",
    (
        3,
        4,
    ): "the law of similarity: the generator's blocks and contents are not those of the held-out requests",
}
"""What a gap between two rungs says has failed."""

_LAW_REQUESTS = 32
"""Requests that the law of a generator is measured on."""


@dataclass(frozen=True)
class _Rung:
    number: int
    kept: FloatArray  # (replicates, thresholds)
    se: FloatArray | None = None  # (thresholds,) of the mean; from the replicates where None

    @property
    def mean(self) -> FloatArray:
        return self.kept.mean(axis=0)

    @property
    def error(self) -> FloatArray:
        return _standard_error(self.kept) if self.se is None else self.se


@dataclass(frozen=True)
class CapturedLadder:
    """A ladder with its fourth rung, and the distance of the generator's law from the held-out one."""

    record: Record
    calibrations: list[Calibration]


def law_ladder(
    law: SimilarityLaw,
    model: BlockModel,
    *,
    requests: int,
    blocks: int,
    thresholds: Sequence[float],
    variant: str,
    runs: int,
    process_runs: int,
    seed: int,
    backend: str = "auto",
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Record:
    """Rungs 1 to 3 for a law that is known, and a model whose blocks follow it.

    Rung 1 is the plain recursion: the hard core of dense fusion is the gap between rungs 2 and 3. Where
    the law has a hard core of its own (spherical), each row of rung 1 holds what it predicts as
    ``kept_with_hard_core``.

    Args:
        law: law of S.
        model: blocks whose score follows ``law``.
        requests, blocks: the batch.
        thresholds: strictly increasing.
        variant: leader or tree.
        runs: batches of synthetic blocks, at least 2.
        process_runs: runs of the process, at least 2.
        seed: of both.
        backend: what fuses.
        jobs: batches at a time, each in a process of its own where more than one; the record is the same.
        dask: address of a Dask scheduler whose workers take the batches instead, see
            ``ratedist.validate.parallel.run_tasks``; the record is the same.
        progress: called with a word on each step.
    """
    tau = _check(requests, blocks, thresholds, variant, runs, process_runs)
    recursion, simulate = (leader, simulate_leader) if variant == "leader" else (tree, simulate_tree)
    units = np.full(requests, blocks)
    synthetic = _synthetic(
        model, (blocks,) * requests, tau, variant, runs, seed, backend, jobs, dask, progress
    )
    closed = recursion(law, units, tau, hard_core=False)
    corrected = recursion(law, units, tau)
    rng = np.random.default_rng([seed, 2])
    process = np.stack(
        [simulate(law, units, float(t), runs=process_runs, rng=rng, scores=False).kept for t in tau], axis=1
    )
    rungs = [
        _Rung(1, closed.kept[None], np.zeros(tau.size)),
        _Rung(2, process),
        _Rung(3, synthetic),
    ]
    record = _record(rungs, tau, variant, requests * blocks, requests, {"law": law.to_dict()}, paired=False)
    for row, value in zip(record.rows, corrected.kept.tolist(), strict=False):
        row["kept_with_hard_core"] = value
    return record


def model_ladder(
    model: BlockModel,
    *,
    requests: int,
    blocks: int,
    thresholds: Sequence[float],
    variant: str,
    runs: int,
    process_runs: int,
    seed: int,
    backend: str = "auto",
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
    about: dict[str, Any] | None = None,
) -> Record:
    """Rungs 1 to 3 for a generator whose law depends on positions: measured on blocks of its own.

    The chance of an exceedance by pair of positions comes from other blocks of the generator than rung 3; its
    error is that of rungs 1 and 2 (a jackknife over requests; rung 2 adds its own). Arguments as in
    ``law_ladder``.
    """
    tau = _check(requests, blocks, thresholds, variant, runs, process_runs)
    counts = (blocks,) * requests
    synthetic = _synthetic(model, counts, tau, variant, runs, seed, backend, jobs, dask, progress)
    law = MarkedLaw(generate(model, _LAW_REQUESTS, blocks, seed=_other(seed)), tau)
    closed, closed_se = law.jackknife(counts, variant)
    process = law.process(counts, variant, process_runs, np.random.default_rng([seed, 2]))
    rungs = [
        _Rung(1, closed[None], closed_se),
        _Rung(2, process, np.hypot(closed_se, _standard_error(process))),
        _Rung(3, synthetic),
    ]
    # Rungs 1 and 2 share the law's error: their gap has only the Monte Carlo's.
    shared = {(1, 2): _standard_error(process)}
    return _record(rungs, tau, variant, sum(counts), requests, about or {}, paired=False, gaps=shared)


def captured_ladder(
    capture: Capture,
    layer: int,
    *,
    thresholds: Sequence[float],
    variant: str,
    splits: int,
    process_runs: int,
    seed: int,
    requests: int | None = None,
    calibrate_on: int | None = None,
    backend: str = "auto",
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> CapturedLadder:
    """All four rungs: calibrated on some requests of a capture, measured on others.

    Each split draws calibration and held-out requests at random; all rungs are computed for each, so standard
    errors are over splits (they overlap, which makes them somewhat too small) and gaps are paired.

    Args:
        capture: any capture.
        layer: one of its layers.
        thresholds: strictly increasing; none of them is used in calibration.
        variant: leader or tree.
        splits: at least 2.
        process_runs: runs of the process per split.
        seed: of splits, generator and process.
        requests: held-out requests that are fused; default all that are left.
        calibrate_on: requests to calibrate on; default half.
        backend: what fuses.
        jobs, dask: as in ``law_ladder``, of splits.
        progress: called with a word on each step.

    Raises:
        InputError: too few requests for what is asked, or an argument outside its domain.
    """
    manifest = capture.manifest
    usable = [i for i, length in enumerate(manifest.lengths) if length >= manifest.block_size]
    if len(usable) < 4:
        raise InputError(
            "capture",
            len(usable),
            f"has too few requests with a full block of {manifest.block_size} tokens: four are needed, two "
            "to calibrate on and two to fuse",
        )
    wanted = len(usable) // 2 if calibrate_on is None else whole_number("calibrate_on", calibrate_on, low=2)
    left = len(usable) - wanted
    if left < 2:
        raise InputError("calibrate_on", wanted, f"must leave two of {len(usable)} requests to fuse")
    fused = left if requests is None else whole_number("requests", requests, low=2)
    if fused > left:
        raise InputError(
            "requests", fused, f"must be at most {left}: {len(usable)} were captured and {wanted} calibrate"
        )
    if splits < 2:
        raise InputError("runs", splits, "must be at least 2, or nothing is known of the error")
    tau = _check(fused, 1, thresholds, variant, splits, process_runs)
    rng = np.random.default_rng([seed, 4])
    rotary = Rotary.from_config(manifest.rotary)
    if dask is not None:
        capture = capture.resolved()
    tasks = []
    for split in range(splits):
        order = rng.permutation(usable)
        # In the capture's order on both sides: requests arrive in it.
        sample, held = (sorted(part.tolist()) for part in (order[:wanted], order[wanted : wanted + fused]))
        tasks.append((capture, layer, sample, held, rotary, tau, variant, process_runs, seed, split, backend))
    results = run_tasks(
        _run_split, tasks, jobs=jobs, dask=dask, files=[capture.folder / MANIFEST], backend=backend
    )
    found = []
    for split in range(splits):
        if progress:
            progress(f"split {split + 1} of {splits}")
        found.append(next(results))
    kept = {number: [part.kept[number] for part in found] for number in NAMES}
    totals = [part.blocks for part in found]
    rungs = [_Rung(number, np.stack(values)) for number, values in kept.items()]
    about = {
        "model": manifest.model,
        "workload": manifest.workload,
        "layer": layer,
        "calibrated_on": wanted,
        "splits": splits,
        "rotary": None if rotary is None else rotary.theta,
    }
    record = _record(rungs, tau, variant, int(np.mean(totals)), fused, about, paired=True)
    for part in found:
        record.summary += part.distances
    return CapturedLadder(record, [part.calibration for part in found])


@dataclass(frozen=True)
class _Split:
    """All rungs of one split: (thresholds,) kept blocks by rung, of so many blocks in all."""

    kept: dict[int, FloatArray]
    blocks: int
    calibration: Calibration
    distances: list[dict[str, Any]]


def _run_split(
    capture: Capture,
    layer: int,
    sample: list[int],
    held: list[int],
    rotary: Rotary | None,
    tau: FloatArray,
    variant: str,
    process_runs: int,
    seed: int,
    split: int,
    backend: str,
) -> _Split:
    k, v, full = blocks_of(capture.layer(layer, sample))
    calibration = calibrate(k, v, full_blocks=full, rotary=rotary, seed=seed + split)
    measured = capture.layer(layer, held)
    counts = tuple(measured.table.full_blocks.tolist())
    model = calibration.model
    drawn = generate(model, len(counts), counts, seed=seed + split)
    drawn = SyntheticLayer(drawn.k, drawn.v, drawn.full_blocks, measured.table.domains, drawn.identity)
    law = MarkedLaw(generate(model, _LAW_REQUESTS, max(counts), seed=_other(seed + split)), tau)
    rng = np.random.default_rng([seed, split])
    return _Split(
        kept={
            1: law.closed_form(counts, variant),
            2: law.process(counts, variant, process_runs, rng).mean(axis=0),
            3: _fused(paged(drawn), tau, variant, backend),
            4: _fused(measured, tau, variant, backend),
        },
        blocks=sum(counts),
        calibration=calibration,
        distances=_distances(split, drawn, *blocks_of(measured)),
    )


def _synthetic(
    model: BlockModel,
    counts: tuple[int, ...],
    tau: FloatArray,
    variant: str,
    runs: int,
    seed: int,
    backend: str,
    jobs: int,
    dask: str | None,
    progress: Progress | None,
) -> FloatArray:
    """(runs, thresholds) kept blocks of generated batches."""
    # Every run draws other blocks from the same model.
    tasks = [(model, counts, tau, variant, _other(seed) + 1 + run, backend) for run in range(runs)]
    results = run_tasks(_run_batch, tasks, jobs=jobs, dask=dask, backend=backend)
    kept = []
    for run in range(runs):
        if progress:
            progress(f"synthetic batch {run + 1} of {runs}")
        kept.append(next(results))
    return np.stack(kept)


def _run_batch(
    model: BlockModel, counts: tuple[int, ...], tau: FloatArray, variant: str, seed: int, backend: str
) -> FloatArray:
    return _fused(paged(generate(model, len(counts), counts, seed=seed)), tau, variant, backend)


def _fused(layer: Any, tau: FloatArray, variant: str, backend: str) -> FloatArray:
    return np.array(
        [fuse(layer, threshold=float(t), variant=variant, backend=backend).kept for t in tau], dtype=float
    )


def _distances(
    split: int, drawn: SyntheticLayer, k: torch.Tensor, v: torch.Tensor, full: torch.Tensor
) -> list[dict[str, Any]]:
    """Distances of the generator's laws of S from the held-out ones, all and by position difference."""
    rows = []
    for name, synthetic, real in (("keys", drawn.k, k), ("values", drawn.v, v)):
        one = pair_scores(synthetic.float().numpy(), drawn.full_blocks.numpy())
        other = pair_scores(real.float().numpy(), full.numpy())
        for difference in (None, 0, 1, 2, 4, 8, 16):
            a, b = (
                pairs.scores if difference is None else pairs.scores[pairs.difference == difference]
                for pairs in (one, other)
            )
            if a.size == 0 or b.size == 0:
                continue
            distance: LawDistance = law_distance(a, b)
            rows.append(
                {
                    "kind": "law distance",
                    "split": split,
                    "side": name,
                    "position_difference": difference,
                    "kolmogorov": distance.kolmogorov,
                    "wasserstein": distance.wasserstein,
                    "mean_synthetic": float(a.mean()),
                    "mean_held_out": float(b.mean()),
                }
            )
    return rows


def _record(
    rungs: list[_Rung],
    tau: FloatArray,
    variant: str,
    blocks: int,
    requests: int,
    about: dict[str, Any],
    *,
    paired: bool,
    gaps: dict[tuple[int, int], FloatArray] | None = None,
) -> Record:
    rows = [
        {
            "rung": rung.number,
            "name": NAMES[rung.number],
            "threshold": float(t),
            "variant": variant,
            "requests": requests,
            "blocks": blocks,
            "kept": float(rung.mean[at]),
            "kept_se": float(rung.error[at]),
            "compression": float(blocks / rung.mean[at]),
            "compression_se": float(blocks / rung.mean[at] ** 2 * rung.error[at]),
            "replicates": len(rung.kept),
        }
        for rung in rungs
        for at, t in enumerate(tau)
    ]
    summary: list[dict[str, Any]] = []
    for low, high in pairwise(rungs):
        pair = (low.number, high.number)
        if paired:
            error = _standard_error(high.kept - low.kept)
        elif gaps and pair in gaps:
            error = gaps[pair]
        else:
            error = np.hypot(low.error, high.error)
        for at, t in enumerate(tau):
            gap = high.mean[at] - low.mean[at]
            summary.append(
                {
                    "kind": "gap",
                    "from": low.number,
                    "to": high.number,
                    "threshold": float(t),
                    "log_ratio": float(np.log(low.mean[at] / high.mean[at])),
                    "z": float(gap / error[at]) if error[at] > 0 else (0.0 if abs(gap) < 1e-6 else None),
                    "assumption": ASSUMPTIONS[pair],
                }
            )
    return Record(SCHEMA, provenance(variant=variant, **about), rows, summary)


def _standard_error(values: FloatArray) -> FloatArray:
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def _other(seed: int) -> int:
    """A seed whose blocks are not those of the seed itself or its successors."""
    return seed + 1_000_003


def _check(
    requests: int, blocks: int, thresholds: Sequence[float], variant: str, runs: int, process_runs: int
) -> FloatArray:
    whole_number("requests", requests, low=1)
    whole_number("blocks", blocks, low=1)
    whole_number("runs", runs, low=2)
    whole_number("process_runs", process_runs, low=2)
    if variant not in ("leader", "tree"):
        raise InputError("variant", variant, "must be leader or tree")
    return as_thresholds("thresholds", thresholds)
