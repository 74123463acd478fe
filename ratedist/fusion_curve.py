"""A fusion's whole curve: kept blocks, error and rate over thresholds, as arrays, rows and a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers, as_thresholds, whole_number
from ratedist.curve import RateDistortionCurve, bound_curve, quantisation_curve
from ratedist.errors import InputError
from ratedist.fusion.centroid import centroid
from ratedist.fusion.components import components
from ratedist.fusion.hardcore import HardCore
from ratedist.fusion.leader import leader
from ratedist.fusion.result import KeptBlocks
from ratedist.fusion.tree import tree
from ratedist.fusion.units import batch_units
from ratedist.montecarlo.chains import simulate_centroid, simulate_leader, simulate_tree
from ratedist.montecarlo.directions import simulate_directions
from ratedist.montecarlo.graph import simulate_components
from ratedist.montecarlo.sample import RunSample
from ratedist.rate import CacheShape, bits_per_scalar, cache_rate
from ratedist.records import Record, provenance
from ratedist.similarity import SimilarityLaw, Spherical

__all__ = [
    "CURVE_RECORD_SCHEMA",
    "SIMULATIONS",
    "VARIANTS",
    "FusionCurve",
    "curve_record",
    "fusion_curve",
    "simulated_rows",
]

FloatArray = NDArray[np.float64]
Spread = Callable[[Callable[..., dict[str, Any]], Sequence[tuple[Any, ...]]], Iterable[dict[str, Any]]]

CURVE_RECORD_SCHEMA = "ratedist/curve/1"

VARIANTS: dict[str, Callable[..., KeptBlocks]] = {
    "leader": leader,
    "tree": tree,
    "centroid": centroid,
    "components": components,
}
"""Recursions by the name of what they predict."""

_WITHOUT_HARD_CORE = ("components",)


@dataclass(frozen=True, eq=False)
class FusionCurve:
    """What fusing a batch is expected to give at each of T thresholds.

    Attributes:
        law: law of the score of a random pair.
        requests, blocks: requests of the batch, and full blocks of each.
        variant: one of ``VARIANTS``.
        hard_core: how representatives repel each other, one number per threshold; None where they were
            counted as independent.
        confidence: share of runs that the band holds.
        scalar_bits, block_scalars: what the rate was counted with, see ``ratedist.rate.bits_per_scalar``.
        thresholds: (T,).
        kept: (T,) expected kept blocks.
        kept_std: (T,) their standard deviation from run to run.
        kept_low, kept_high: (T,) whole numbers, the band of kept blocks.
        direct_error2: (T,) mean own-norm e² of an absorbed block against the block that absorbed it; NaN
            where nothing is absorbed, and in variants without a direct match.
        absorbed_error2: (T,) the same against its final representative; for centroids the error of all
            members of all groups, shared out over absorbed blocks. NaN for components, which chain.
    """

    law: SimilarityLaw
    requests: int
    blocks: int
    variant: str
    hard_core: HardCore | None
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
        """(T,) mean e² over all blocks, kept ones counting 0: the distortion that time sharing averages.

        NaN where blocks are absorbed at an error that the variant does not know.
        """
        return self._mean_error2(self.kept)

    def _mean_error2(self, kept: FloatArray) -> FloatArray:
        share = 1 - kept / self.logical
        return np.where(share > 0, share * self.absorbed_error2, 0.0)

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

        Raises InputError for components, whose error is not known.
        """
        if np.isnan(self.mean_error2).any():
            raise InputError("variant", self.variant, "has no known error, and so no rate-distortion curve")
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
        mean_error2 = self.mean_error2
        known = not np.isnan(mean_error2).any()
        columns = {
            "kept": self.kept,
            "kept_low": self.kept_low,
            "kept_high": self.kept_high,
            "compression": self.compression,
            "compression_low": self.logical / self.kept_high,
            "compression_high": self.logical / self.kept_low,
            "direct_error2": self.direct_error2,
            "absorbed_error2": self.absorbed_error2,
            "mean_error2": mean_error2,
            "bits_per_scalar": self.bits_per_scalar,
            "slope": self.rate_distortion().slopes() if known else np.full(self.thresholds.shape, np.nan),
        }
        return [
            {
                "threshold": float(threshold),
                "variant": self.variant,
                **{name: _number(column[i]) for name, column in columns.items()},
            }
            for i, threshold in enumerate(self.thresholds)
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
    core = _hard_core(law, tau, hard_core, transitivity)
    units = batch_units(requests, blocks)
    if variant in _WITHOUT_HARD_CORE:
        if transitivity is not None:
            raise InputError("transitivity", transitivity, f"has no part in the recursion of {variant}")
        core, result = None, VARIANTS[variant](law, units, tau)
    else:
        result = VARIANTS[variant](law, units, tau, hard_core=False if core is None else core)
    low, high = result.band(level)
    return FusionCurve(
        law=law,
        requests=int(requests),
        blocks=int(blocks),
        variant=variant,
        hard_core=core,
        confidence=level,
        scalar_bits=float(scalar_bits),
        block_scalars=block_scalars,
        thresholds=tau,
        kept=result.kept,
        kept_std=result.kept_std,
        kept_low=low,
        kept_high=high,
        direct_error2=_error_of(result, "direct_error2"),
        absorbed_error2=_error_of(result, "final_error2"),
    )


def _hard_core(
    law: SimilarityLaw, thresholds: FloatArray, wanted: bool, transitivity: float | None
) -> HardCore | None:
    if transitivity is not None:
        if not wanted:
            raise InputError("transitivity", transitivity, "belongs to the hard core, which is left out")
        return HardCore.of_transitivity(transitivity, thresholds.size)
    if wanted and isinstance(law, Spherical):
        return HardCore.spherical(law.dim, thresholds)
    return None


def _error_of(result: KeptBlocks, field: str) -> FloatArray:
    error: FloatArray = getattr(result, field, np.full(result.kept.shape, np.nan))
    return np.where(result.absorbed > 0, error, np.nan)


SIMULATIONS = ("process", "directions")
"""What can be simulated beside a curve: its point process, or fusion of random vectors."""


def simulated_rows(
    curve: FusionCurve,
    runs: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
    *,
    method: str = "process",
    spread: Spread = starmap,
) -> list[dict[str, Any]]:
    """Monte Carlo of what a curve predicts: one dict per threshold, to merge into its rows.

    ``simulated_kept`` and ``simulated_compression`` with standard errors (``…_se``), and the share of runs
    within the curve's band, ``simulated_coverage``; without a hard core also ``simulated_direct_error2`` and
    ``simulated_absorbed_error2``, where the variant has them. With a hard core the process counts kept blocks
    only (``ratedist.montecarlo``).

    Args:
        curve: of any variant.
        runs: at least 2 for each threshold.
        seed: of all randomness; each threshold has a stream of its own.
        advance: called after each threshold.
        method: "process" draws counts and scores and shares the curve's assumptions; "directions" fuses
            uniform directions by their actual cosines, at the cost of a matrix product per merge, for the
            spherical law of a whole dimension and any variant but components.
        spread: calls a function with each of many arguments and gives the results in their order, perhaps in
            other processes; the rows are the same.

    Raises:
        InputError: an argument outside its domain, or a curve that the method cannot simulate.

    Test: tests/ratedist/test_fusion_curve.py::test_simulated_rows_agree_with_the_curve.
    """
    whole_number("runs", runs, low=2)
    whole_number("seed", seed, low=0)
    if method not in SIMULATIONS:
        raise InputError("method", method, f"must be one of {', '.join(SIMULATIONS)}")
    rows = []
    tasks = [(curve, i, runs, seed, method) for i in range(curve.thresholds.size)]
    for row in spread(_simulated_row, tasks):
        rows.append(row)
        advance()
    return rows


def _simulated_row(curve: FusionCurve, i: int, runs: int, seed: int, method: str) -> dict[str, Any]:
    simulate = _simulate if method == "process" else _simulate_directions
    sample = simulate(curve, i, runs, np.random.default_rng([seed, i]))
    kept = sample.mean_kept()
    row = {
        "simulated_runs": runs,
        "simulated_kept": kept.mean,
        "simulated_kept_se": kept.standard_error,
        "simulated_compression": curve.logical / kept.mean,
        "simulated_compression_se": curve.logical / kept.mean**2 * kept.standard_error,
        "simulated_coverage": sample.coverage(float(curve.kept_low[i]), float(curve.kept_high[i])),
    }
    for which, field in (("direct", "direct_error2"), ("final", "absorbed_error2")):
        error = sample.mean_error2(which)
        if np.isfinite(error.mean):
            row[f"simulated_{field}"] = error.mean
            row[f"simulated_{field}_se"] = error.standard_error
    return row


def _simulate_directions(curve: FusionCurve, index: int, runs: int, rng: np.random.Generator) -> RunSample:
    if not isinstance(curve.law, Spherical) or curve.law.dim != int(curve.law.dim):
        raise InputError(
            "method", "directions", f"needs the spherical law of a whole dimension, not {curve.law!r}"
        )
    if curve.variant == "components":
        raise InputError("method", "directions", "does not know components; simulate their process")
    units, threshold = batch_units(curve.requests, curve.blocks), float(curve.thresholds[index])
    dim = int(curve.law.dim)
    return simulate_directions(dim, units, threshold, variant=curve.variant, runs=runs, rng=rng)


def _simulate(curve: FusionCurve, index: int, runs: int, rng: np.random.Generator) -> RunSample:
    units, threshold = batch_units(curve.requests, curve.blocks), float(curve.thresholds[index])
    options: dict[str, Any] = {"runs": runs, "rng": rng}
    if curve.variant == "components":
        return simulate_components(curve.law, units, threshold, **options)
    if curve.hard_core is None:
        if curve.variant == "tree":
            return _simulate_centred_tree(curve.law, units, threshold, **options)
        simulate = simulate_leader if curve.variant == "leader" else simulate_centroid
        return simulate(curve.law, units, threshold, **options)
    core = curve.hard_core
    options |= {
        "scores": False,
        "hard_core": HardCore(core.transitivity[[index]], core.crowding[[index]], core.common[[index]]),
    }
    # Centroids of uniform directions meet as representatives do, so that their count is the tree's.
    if curve.variant == "leader":
        return simulate_leader(curve.law, units, threshold, **options)
    return simulate_tree(curve.law, units, threshold, **options)


@dataclass(frozen=True)
class _Centred:
    """Law of c = (S − b)/(1 − b): as much of a law as the simulation reads."""

    law: SimilarityLaw
    baseline: float

    def sf(self, c: ArrayLike) -> FloatArray:
        return self.law.sf(self.baseline + (1 - self.baseline) * np.asarray(c))

    def isf(self, q: ArrayLike) -> FloatArray:
        return (self.law.isf(q) - self.baseline) / (1 - self.baseline)


def _simulate_centred_tree(
    law: SimilarityLaw, units: NDArray[np.int64], threshold: float, **options: Any
) -> RunSample:
    """The tree process in which, as in the recursion, similarities multiply once the common direction is out.

    It multiplies what it draws, so it draws c = (S − b)/(1 − b), b = E[S], and 2 − 2s = (1 − b)(2 − 2c).
    """
    baseline = float(law.mean())
    lowest = (threshold - baseline) / (1 - baseline)
    if lowest < -1:  # no threshold on a similarity; far below all scores, where it does not matter
        lowest = -1.0
    centred = cast(SimilarityLaw, _Centred(law, baseline))
    sample = simulate_tree(centred, units, lowest, **options)
    assert sample.direct_error2 is not None
    assert sample.final_error2 is not None
    return replace(
        sample,
        direct_error2=(1 - baseline) * sample.direct_error2,
        final_error2=(1 - baseline) * sample.final_error2,
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
        if not np.isnan(curve.mean_error2).any()
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
            hard_core=first.hard_core is not None,
            confidence=first.confidence,
            scalar_bits=first.scalar_bits,
            block_scalars=first.block_scalars,
            **extra,
        ),
        rows,
        summary,
    )
