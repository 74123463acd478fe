"""A fusion's whole curve: kept blocks, error and rate over thresholds, as arrays, rows and a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, as_thresholds, whole_number
from ratedist.curve import RateDistortionCurve, bound_curve, quantisation_curve
from ratedist.errors import InputError
from ratedist.fusion import FusionResult, HardCore, batch_units, leader, prediction_band, tree
from ratedist.rate import CacheShape, bits_per_scalar, cache_rate
from ratedist.records import Record, provenance
from ratedist.similarity import SimilarityLaw, Spherical

__all__ = ["CURVE_RECORD_SCHEMA", "VARIANTS", "FusionCurve", "curve_record", "fusion_curve"]

FloatArray = NDArray[np.float64]

CURVE_RECORD_SCHEMA = "ratedist.curve/1"

VARIANTS: dict[str, Callable[..., FusionResult]] = {"leader": leader, "tree": tree}
"""Recursions by the name of what they predict."""


@dataclass(frozen=True, eq=False)
class FusionCurve:
    """What fusing a batch is expected to give at each of T thresholds.

    Attributes:
        law: law of the score of a random pair.
        requests, blocks: requests of the batch, and full blocks of each.
        variant: "leader" or "tree".
        hard_core: whether representatives were counted as repelling each other.
        confidence: share of runs that the band holds.
        scalar_bits, block_scalars: what the rate was counted with, see ``ratedist.rate.bits_per_scalar``.
        thresholds: (T,).
        kept: (T,) expected kept blocks.
        kept_std: (T,) their standard deviation from run to run.
        kept_low, kept_high: (T,) whole numbers, the band of kept blocks.
        direct_error2: (T,) mean own-norm e² of an absorbed block against the block that absorbed it; NaN
            where nothing is absorbed.
        absorbed_error2: (T,) the same against its final representative.
    """

    law: SimilarityLaw
    requests: int
    blocks: int
    variant: str
    hard_core: bool
    confidence: float
    scalar_bits: float
    block_scalars: int | None
    thresholds: FloatArray
    kept: FloatArray
    kept_std: FloatArray
    kept_low: FloatArray
    kept_high: FloatArray
    direct_error2: FloatArray
    absorbed_error2: FloatArray

    @property
    def logical(self) -> int:
        """Blocks before fusion."""
        return self.requests * self.blocks

    @property
    def compression(self) -> FloatArray:
        """(T,) logical over expected kept blocks, in the fused layers."""
        return self.logical / self.kept

    @property
    def mean_error2(self) -> FloatArray:
        """(T,) mean e² over all blocks, kept ones counting 0: the distortion that time sharing averages."""
        return self._mean_error2(self.kept)

    def _mean_error2(self, kept: FloatArray) -> FloatArray:
        return (1 - kept / self.logical) * np.nan_to_num(self.absorbed_error2)

    def _bits(self, kept: FloatArray) -> FloatArray:
        return bits_per_scalar(
            np.clip(kept / self.logical, 0.0, 1.0),
            scalar_bits=self.scalar_bits,
            block_scalars=self.block_scalars,
        )

    @property
    def bits_per_scalar(self) -> FloatArray:
        """(T,) bits per scalar of the fused layers."""
        return self._bits(self.kept)

    def rate_distortion(self) -> RateDistortionCurve:
        """The curve of (bits per scalar, mean e² over all blocks), with the band of kept blocks in both.

        Where more blocks are kept the rate is higher and fewer blocks carry an error, so the two bands move
        against each other. A band of whole numbers is widened where it misses the expectation.
        """
        low, high = np.minimum(self.kept_low, self.kept), np.maximum(self.kept_high, self.kept)
        return RateDistortionCurve(
            self.variant,
            self.bits_per_scalar,
            self.mean_error2,
            self.thresholds,
            self._bits(low),
            self._bits(high),
            self._mean_error2(high),
            self._mean_error2(low),
        )

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-ready row per threshold; None where a quantity does not exist."""
        slopes = self.rate_distortion().slopes()
        return [
            {
                "threshold": float(self.thresholds[i]),
                "variant": self.variant,
                "kept": float(self.kept[i]),
                "kept_low": float(self.kept_low[i]),
                "kept_high": float(self.kept_high[i]),
                "compression": float(self.compression[i]),
                "compression_low": float(self.logical / self.kept_high[i]),
                "compression_high": float(self.logical / self.kept_low[i]),
                "direct_error2": _number(self.direct_error2[i]),
                "absorbed_error2": _number(self.absorbed_error2[i]),
                "mean_error2": float(self.mean_error2[i]),
                "bits_per_scalar": float(self.bits_per_scalar[i]),
                "slope": _number(slopes[i]),
            }
            for i in range(self.thresholds.size)
        ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def fusion_curve(
    law: SimilarityLaw,
    *,
    requests: int,
    blocks: int,
    thresholds: ArrayLike,
    variant: str = "leader",
    hard_core: bool = True,
    transitivity: float | None = None,
    confidence: float = 0.9,
    scalar_bits: float = 16.0,
    block_scalars: int | None = None,
) -> FusionCurve:
    """Expected outcome of fusing a batch of equal requests, by the recursions of ``ratedist.fusion``.

    Args:
        law: law of the score of a random pair of blocks of different requests.
        requests: B, at least 1.
        blocks: full blocks of each request, at least 1.
        thresholds: strictly increasing, within [-1, 1].
        variant: one of ``VARIANTS``.
        hard_core: count with representatives that repel each other. Known for the spherical law; for others
            it needs ``transitivity`` and is left out without it.
        transitivity: chance that two blocks exceed against each other, given that both do against a third.
        confidence: share of runs that the band of kept blocks is to hold, within (0, 1).
        scalar_bits, block_scalars: see ``ratedist.rate.bits_per_scalar``.

    Test: tests/ratedist/test_fusion_curve.py::test_simulated_directions_of_the_theory.

    Raises:
        InputError: an argument outside its domain.
    """
    if variant not in VARIANTS:
        raise InputError("variant", variant, f"must be one of {', '.join(VARIANTS)}")
    level = float(as_numbers("confidence", confidence, low=0.0, high=1.0, low_open=True))
    if level == 1.0:
        raise InputError("confidence", confidence, "must be below 1; no finite band holds every run")
    as_numbers("scalar_bits", scalar_bits, low=0.0, low_open=True)
    if block_scalars is not None:
        whole_number("block_scalars", block_scalars, low=1)
    tau = as_thresholds("thresholds", thresholds)
    core: HardCore | bool = hard_core
    if transitivity is not None:
        if not hard_core:
            raise InputError("transitivity", transitivity, "belongs to the hard core, which is left out")
        core = HardCore.of_transitivity(transitivity, tau.size)
    result = VARIANTS[variant](law, batch_units(requests, blocks), tau, hard_core=core)
    low, high = prediction_band(
        result.kept, result.kept_std, low=float(blocks), high=float(result.blocks), level=level
    )
    return FusionCurve(
        law=law,
        requests=int(requests),
        blocks=int(blocks),
        variant=variant,
        hard_core=hard_core,
        confidence=level,
        scalar_bits=float(scalar_bits),
        block_scalars=block_scalars,
        thresholds=tau,
        kept=result.kept,
        kept_std=result.kept_std,
        kept_low=low,
        kept_high=high,
        direct_error2=np.where(result.absorbed > 0, result.direct_error2, np.nan),
        absorbed_error2=np.where(result.absorbed > 0, result.final_error2, np.nan),
    )


def curve_record(
    curves: Sequence[FusionCurve],
    *,
    simulated: Sequence[Sequence[dict[str, Any]]] | None = None,
    layers: int | None = None,
    fused_layers: int | None = None,
    **extra: Any,
) -> Record:
    """The record of curves of one law and one batch, one per variant.

    Rows are those of ``FusionCurve.rows``, with the fields of ``simulated`` rows where they are given, and
    ``whole_compression`` where ``layers`` is. The summary holds curves to draw beside them, as dicts of
    ``RateDistortionCurve``: ``hull`` of each variant, ``quantisation``, and for the spherical law ``bound``
    and ``limit``.

    Args:
        curves: at least one; all of one law, batch and thresholds.
        simulated: for each curve, one dict per threshold to merge into its rows.
        layers: layers of the model; ``block_scalars`` of the curves must be known.
        fused_layers: layers among them that are fused; all by default.
        **extra: goes into the provenance.
    """
    if not curves:
        raise InputError("curves", [], "needs at least one curve")
    first = curves[0]
    rows = [row for curve in curves for row in curve.rows()]
    if simulated is not None:
        for row, found in zip(rows, [row for part in simulated for row in part], strict=True):
            row.update(found)
    if layers is not None:
        if first.block_scalars is None:
            raise InputError("layers", layers, "needs block_scalars, to count tables and scales against")
        shape = CacheShape(
            layers,
            layers if fused_layers is None else fused_layers,
            first.logical,
            first.block_scalars,
            first.scalar_bits,
        )
        for row in rows:
            row["whole_compression"] = float(cache_rate(shape, row["kept"]).compression)
    summary: list[dict[str, Any]] = [
        {"kind": "hull", "variant": curve.variant, "curve": curve.rate_distortion().hull().to_dict()}
        for curve in curves
    ]
    if isinstance(first.law, Spherical):
        error = np.geomspace(1e-3, 1.9, 120)
        summary.append({"kind": "bound", "curve": bound_curve(error, first.law.dim).to_dict()})
        summary.append({"kind": "limit", "curve": bound_curve(error).to_dict()})
    summary.append({"kind": "quantisation", "curve": quantisation_curve().to_dict()})
    title = f"{first.law!r}, {first.requests:,} requests of {first.blocks:,} blocks"
    return Record(
        CURVE_RECORD_SCHEMA,
        provenance(
            title=title,
            law=first.law.to_dict(),
            requests=first.requests,
            blocks=first.blocks,
            hard_core=first.hard_core,
            confidence=first.confidence,
            scalar_bits=first.scalar_bits,
            block_scalars=first.block_scalars,
            **extra,
        ),
        rows,
        summary,
    )
