"""What the rungs of a ladder have in common: how they are counted, and the record that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import as_thresholds, whole_number
from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import PagedLayer
from ratedist.records import Record, provenance

__all__ = [
    "ASSUMPTIONS",
    "LAW_REQUESTS",
    "NAMES",
    "SCHEMA",
    "Rung",
    "check_batch",
    "fused_counts",
    "ladder_record",
    "other_seed",
    "standard_error",
]

FloatArray = NDArray[np.float64]

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

LAW_REQUESTS = 32
"""Requests that the law of a generator is measured on."""


@dataclass(frozen=True)
class Rung:
    """Kept blocks of one rung; its replicates are independent runs, or splits.

    Attributes:
        number: 1 to 4.
        kept: (replicates, thresholds).
        se: (thresholds,) standard error of the mean; from the replicates where None.
    """

    number: int
    kept: FloatArray
    se: FloatArray | None = None

    @property
    def mean(self) -> FloatArray:
        """(thresholds,) over the replicates."""
        return self.kept.mean(axis=0)

    @property
    def error(self) -> FloatArray:
        """(thresholds,) standard error of the mean."""
        return standard_error(self.kept) if self.se is None else self.se


def fused_counts(layer: PagedLayer, tau: FloatArray, variant: str, backend: str) -> FloatArray:
    """(thresholds,) kept blocks of the real fusion."""
    return np.array(
        [fuse(layer, threshold=float(t), variant=variant, backend=backend).kept for t in tau], dtype=float
    )


def ladder_record(
    rungs: list[Rung],
    tau: FloatArray,
    variant: str,
    blocks: int,
    requests: int,
    about: dict[str, Any],
    *,
    paired: bool,
    gaps: dict[tuple[int, int], FloatArray] | None = None,
) -> Record:
    """Rows by rung and threshold, and the gaps between neighbouring rungs.

    Args:
        rungs: from the lowest on.
        tau: (thresholds,).
        variant: leader or tree.
        blocks, requests: of the batch.
        about: further provenance.
        paired: whether replicates of different rungs are of the same split.
        gaps: standard errors (thresholds,) of gaps by pair of rungs, where they are not those of both.
    """
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
            error = standard_error(high.kept - low.kept)
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


def standard_error(values: FloatArray) -> FloatArray:
    """Of the mean over the first axis."""
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def other_seed(seed: int) -> int:
    """A seed whose blocks are not those of the seed itself or its successors."""
    return seed + 1_000_003


def check_batch(
    requests: int, blocks: int, thresholds: Sequence[float], variant: str, runs: int, process_runs: int
) -> FloatArray:
    """The thresholds as an array; raises InputError for an argument outside its domain."""
    whole_number("requests", requests, low=1)
    whole_number("blocks", blocks, low=1)
    whole_number("runs", runs, low=2)
    whole_number("process_runs", process_runs, low=2)
    if variant not in ("leader", "tree"):
        raise InputError("variant", variant, "must be leader or tree")
    return as_thresholds("thresholds", thresholds)
