"""The ladder up to its fourth rung: a capture through the real fusion, beside what is calibrated on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ratedist._arguments import whole_number
from ratedist.errors import InputError
from ratedist.records import Record
from ratedist.sim.blocks import SyntheticLayer, generate
from ratedist.sim.calibrate import Calibration, calibrate
from ratedist.sim.distance import LawDistance, law_distance, pair_scores
from ratedist.sim.rotary import Rotary
from ratedist.validate.captures.manifest import MANIFEST
from ratedist.validate.captures.store import Capture
from ratedist.validate.marked_law import MarkedLaw
from ratedist.validate.parallel import run_tasks
from ratedist.validate.rungs import (
    LAW_REQUESTS,
    NAMES,
    Rung,
    check_batch,
    fused_counts,
    ladder_record,
    other_seed,
)
from ratedist.validate.synthetic import blocks_of, paged

__all__ = ["CapturedLadder", "captured_ladder"]

FloatArray = NDArray[np.float64]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class CapturedLadder:
    """A ladder with its fourth rung, and the distance of the generator's law from the held-out one."""

    record: Record
    calibrations: list[Calibration]


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
        jobs, dask: as in ``ratedist.validate.ladder.law_ladder``, of splits.
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
    tau = check_batch(fused, 1, thresholds, variant, splits, process_runs)
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
    rungs = [Rung(number, np.stack(values)) for number, values in kept.items()]
    about = {
        "model": manifest.model,
        "workload": manifest.workload,
        "layer": layer,
        "calibrated_on": wanted,
        "splits": splits,
        "rotary": None if rotary is None else rotary.theta,
    }
    record = ladder_record(rungs, tau, variant, int(np.mean(totals)), fused, about, paired=True)
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
    law = MarkedLaw(generate(model, LAW_REQUESTS, max(counts), seed=other_seed(seed + split)), tau)
    rng = np.random.default_rng([seed, split])
    return _Split(
        kept={
            1: law.closed_form(counts, variant),
            2: law.process(counts, variant, process_runs, rng).mean(axis=0),
            3: fused_counts(paged(drawn), tau, variant, backend),
            4: fused_counts(measured, tau, variant, backend),
        },
        blocks=sum(counts),
        calibration=calibration,
        distances=_distances(split, drawn, *blocks_of(measured)),
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
