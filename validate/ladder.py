"""The ladder: one quantity from closed form to captured caches, and what fails between two rungs.

Rung 1 is the recursion in closed form, 2 the Monte Carlo of its process, 3 synthetic blocks through the real
fusion, 4 a capture through the real fusion. Every rung of one ladder stands for the same law of similarity
(rung 4 for the one that the others were calibrated on), so a gap has one cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.fusion import leader, tree
from ratedist.montecarlo.chains import simulate_leader, simulate_tree
from ratedist.records import Record
from ratedist.sim.blocks import generate
from ratedist.sim.model import BlockModel
from ratedist.similarity.base import SimilarityLaw
from ratedist.validate.marked_law import MarkedLaw
from ratedist.validate.parallel import run_tasks
from ratedist.validate.rungs import (
    LAW_REQUESTS,
    Rung,
    check_batch,
    fused_counts,
    ladder_record,
    other_seed,
    standard_error,
)
from ratedist.validate.synthetic import paged

__all__ = ["law_ladder", "model_ladder"]

FloatArray = NDArray[np.float64]
Progress = Callable[[str], None]


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
    tau = check_batch(requests, blocks, thresholds, variant, runs, process_runs)
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
        Rung(1, closed.kept[None], np.zeros(tau.size)),
        Rung(2, process),
        Rung(3, synthetic),
    ]
    record = ladder_record(
        rungs, tau, variant, requests * blocks, requests, {"law": law.to_dict()}, paired=False
    )
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
    tau = check_batch(requests, blocks, thresholds, variant, runs, process_runs)
    counts = (blocks,) * requests
    synthetic = _synthetic(model, counts, tau, variant, runs, seed, backend, jobs, dask, progress)
    law = MarkedLaw(generate(model, LAW_REQUESTS, blocks, seed=other_seed(seed)), tau)
    closed, closed_se = law.jackknife(counts, variant)
    process = law.process(counts, variant, process_runs, np.random.default_rng([seed, 2]))
    rungs = [
        Rung(1, closed[None], closed_se),
        Rung(2, process, np.hypot(closed_se, standard_error(process))),
        Rung(3, synthetic),
    ]
    # Rungs 1 and 2 share the law's error: their gap has only the Monte Carlo's.
    shared = {(1, 2): standard_error(process)}
    return ladder_record(rungs, tau, variant, sum(counts), requests, about or {}, paired=False, gaps=shared)


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
    tasks = [(model, counts, tau, variant, other_seed(seed) + 1 + run, backend) for run in range(runs)]
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
    return fused_counts(paged(generate(model, len(counts), counts, seed=seed)), tau, variant, backend)
