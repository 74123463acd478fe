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
from ratedist.fusion import leader, leader_marked, tree, tree_marked
from ratedist.kernels.fusion.fuse import fuse
from ratedist.montecarlo.chains import simulate_leader, simulate_tree
from ratedist.records import Record, provenance
from ratedist.sim.blocks import SyntheticLayer, generate
from ratedist.sim.calibrate import Calibration, calibrate
from ratedist.sim.distance import LawDistance, law_distance, pair_scores
from ratedist.sim.marked_process import simulate_marked
from ratedist.sim.model import BlockModel
from ratedist.sim.rotary import Rotary
from ratedist.similarity.base import SimilarityLaw
from ratedist.validate.captures.store import Capture
from ratedist.validate.synthetic import blocks_of, paged

__all__ = ["ASSUMPTIONS", "SCHEMA", "CapturedLadder", "captured_ladder", "law_ladder", "model_ladder"]

FloatArray = NDArray[np.float64]
Progress = Callable[[str], None]

SCHEMA = "ratedist.ladder/1"

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

# Requests that the law of a generator is measured on, and groups of them that are left out in turn.
_LAW_REQUESTS = 32
_GROUPS = 8


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
        progress: called with a word on each step.
    """
    tau = _check(requests, blocks, thresholds, variant, runs, process_runs)
    recursion, simulate = (leader, simulate_leader) if variant == "leader" else (tree, simulate_tree)
    units = np.full(requests, blocks)
    closed = recursion(law, units, tau, hard_core=False)
    corrected = recursion(law, units, tau)
    rng = np.random.default_rng([seed, 2])
    process = np.stack(
        [simulate(law, units, float(t), runs=process_runs, rng=rng, scores=False).kept for t in tau], axis=1
    )
    rungs = [
        _Rung(1, closed.kept[None], np.zeros(tau.size)),
        _Rung(2, process),
        _Rung(3, _synthetic(model, (blocks,) * requests, tau, variant, runs, seed, backend, progress)),
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
    law = _MarkedLaw(generate(model, _LAW_REQUESTS, blocks, seed=_other(seed)), tau)
    closed, closed_se = law.jackknife(counts, variant)
    process = law.process(counts, variant, process_runs, np.random.default_rng([seed, 2]))
    rungs = [
        _Rung(1, closed[None], closed_se),
        _Rung(2, process, np.hypot(closed_se, _standard_error(process))),
        _Rung(3, _synthetic(model, counts, tau, variant, runs, seed, backend, progress)),
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
    kept: dict[int, list[FloatArray]] = {1: [], 2: [], 3: [], 4: []}
    distances: list[dict[str, Any]] = []
    calibrations: list[Calibration] = []
    totals = []
    for split in range(splits):
        order = rng.permutation(usable)
        # In the capture's order on both sides: requests arrive in it.
        sample, held = (sorted(part.tolist()) for part in (order[:wanted], order[wanted : wanted + fused]))
        if progress:
            progress(f"split {split + 1} of {splits}")
        k, v, full = blocks_of(capture.layer(layer, sample))
        calibration = calibrate(k, v, full_blocks=full, rotary=rotary, seed=seed + split)
        calibrations.append(calibration)
        measured = capture.layer(layer, held)
        counts = tuple(measured.table.full_blocks.tolist())
        totals.append(sum(counts))
        model = calibration.model
        drawn = generate(model, len(counts), counts, seed=seed + split)
        drawn = SyntheticLayer(drawn.k, drawn.v, drawn.full_blocks, measured.table.domains, drawn.identity)
        kept[4].append(_fused(measured, tau, variant, backend))
        kept[3].append(_fused(paged(drawn), tau, variant, backend))
        law = _MarkedLaw(generate(model, _LAW_REQUESTS, max(counts), seed=_other(seed + split)), tau)
        kept[1].append(law.closed_form(counts, variant))
        kept[2].append(
            law.process(counts, variant, process_runs, np.random.default_rng([seed, split])).mean(axis=0)
        )
        distances += _distances(split, drawn, *blocks_of(measured))
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
    record.summary += distances
    return CapturedLadder(record, calibrations)


class _MarkedLaw:
    """Chances of an exceedance by pair of positions, counted on blocks of a generator."""

    def __init__(self, layer: SyntheticLayer, tau: FloatArray) -> None:
        requests, positions = layer.identity.shape
        flat = layer.k.flatten(0, 1).flatten(1).float()
        flat = flat / flat.norm(dim=1, keepdim=True)
        scores = (flat @ flat.T).numpy().reshape(requests, positions, requests, positions)
        same = (layer.identity.flatten()[:, None] == layer.identity.flatten()).numpy().reshape(scores.shape)
        self.tau = tau
        # Byte-equal blocks share at every threshold, at 1 too.
        over = [((scores > t) if t < 1 else np.zeros_like(same)) | same for t in tau]
        apart = ~np.eye(requests, dtype=bool)
        # (thresholds, requests, requests, positions, positions), own pairs left out.
        self._over = np.stack(over).transpose(0, 1, 3, 2, 4) & apart[None, :, :, None, None]
        self._requests = requests

    def chance(self, without: NDArray[np.int64] | None = None) -> FloatArray:
        """(thresholds, positions, positions) shares of pairs that exceed, of all requests but some."""
        use = np.ones(self._requests, dtype=bool)
        if without is not None:
            use[without] = False
        count = int(use.sum())
        return np.asarray(self._over[:, use][:, :, use].sum(axis=(1, 2)) / (count * (count - 1)))

    def closed_form(
        self, counts: Sequence[int], variant: str, without: NDArray[np.int64] | None = None
    ) -> FloatArray:
        """(thresholds,) kept blocks by the marked recursion."""
        recursion = leader_marked if variant == "leader" else tree_marked
        chance = self.chance(without)
        # The recursion knows no exceedance at 1, where byte-equal blocks share all the same.
        tau = np.minimum(self.tau, np.nextafter(1.0, 0.0))
        return np.asarray(recursion(chance, counts, thresholds=tau, matches=False).total_kept)

    def jackknife(self, counts: Sequence[int], variant: str) -> tuple[FloatArray, FloatArray]:
        """Kept blocks, and their standard error from leaving groups of requests out of the law."""
        groups = np.array_split(np.arange(self._requests), _GROUPS)
        parts = np.stack([self.closed_form(counts, variant, group) for group in groups])
        spread = np.sqrt((_GROUPS - 1) / _GROUPS * np.square(parts - parts.mean(axis=0)).sum(axis=0))
        return self.closed_form(counts, variant), spread

    def process(self, counts: Sequence[int], variant: str, runs: int, rng: np.random.Generator) -> FloatArray:
        """(runs, thresholds) kept blocks of the simulated process."""
        return np.stack(
            [
                simulate_marked(chance, counts, variant=variant, runs=runs, rng=rng).astype(np.float64)
                for chance in self.chance()
            ],
            axis=1,
        )


def _synthetic(
    model: BlockModel,
    counts: tuple[int, ...],
    tau: FloatArray,
    variant: str,
    runs: int,
    seed: int,
    backend: str,
    progress: Progress | None,
) -> FloatArray:
    """(runs, thresholds) kept blocks of generated batches."""
    kept = []
    for run in range(runs):
        if progress:
            progress(f"synthetic batch {run + 1} of {runs}")
        # Every run draws other blocks from the same model.
        drawn = generate(model, len(counts), counts, seed=_other(seed) + 1 + run)
        kept.append(_fused(paged(drawn), tau, variant, backend))
    return np.stack(kept)


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
