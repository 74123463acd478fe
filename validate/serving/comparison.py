"""A trace served with and without fusion at several pool sizes, each beside what the capacity model predicts.

Prompts are divided: a profile on the first ones gives the cost of a pass, what resident prompts take in
blocks, and how long a prefix is shared; the trace is made of the others. So a prediction has seen neither
the requests nor the pools that it is compared on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ratedist.capacity import Capacity, Demand, PromptBlocks, StepCost, fit_step_cost, simulate_capacity
from ratedist.errors import InputError
from ratedist.records import Record, provenance
from ratedist.validate.models import LoadedModel
from ratedist.validate.serving.engine import EngineOptions, ServingRun, profile_prompts, run_engine
from ratedist.validate.serving.packed import PackedModel
from ratedist.validate.serving.trace import Request
from ratedist.validate.serving.transformers_batching import TransformersRun, run_transformers

__all__ = ["FUSED", "MODES", "SCHEMA", "TRANSFORMERS", "UNFUSED", "compare_serving"]

SCHEMA = "ratedist/serve/1"
UNFUSED, FUSED = "prefix sharing", "prefix sharing and fusion"
MODES = (UNFUSED, FUSED)
"""Exact prefix sharing is on in both."""

TRANSFORMERS = "transformers"
"""transformers' continuous batching, with prefix sharing: the unfused reference."""

Progress = Callable[[str, int, int], None]
"""Called with what is under way, its generated tokens so far and in total."""


@dataclass(frozen=True)
class _Profile:
    cost: StepCost
    prompt_blocks: PromptBlocks
    shared_prefix: int
    settle_seconds: float


def compare_serving(
    loaded: LoadedModel,
    workload: str,
    profile: Sequence[Request],
    trace: Sequence[Request],
    *,
    fused_layers: Sequence[int],
    threshold: float,
    criterion: str = "keys",
    scale: str = "own-norm",
    pools: Sequence[float] = (1 / 3, 0.5, 1.0),
    max_batch: int = 32,
    step_tokens: int = 256,
    block_size: int = 16,
    repeats: int = 1,
    transformers: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    command: list[str] | None = None,
) -> Record:
    """Serve ``trace`` without a limit and at every pool size in both modes, in turn.

    Args:
        loaded: the model.
        workload: name for the rows.
        profile: requests to calibrate the capacity model on.
        trace: requests to serve, by arrival.
        fused_layers: layers that are fused in mode ``FUSED``.
        threshold, criterion, scale: of fusion, see ``ratedist.kernels.fusion.fuse.fuse``.
        pools: pool sizes as shares of what the trace takes at most, unfused, with shared prefixes, unlimited.
        max_batch, step_tokens, block_size: see ``EngineOptions``.
        repeats: rounds over all cells; each run is a row.
        transformers: serve the trace with transformers' continuous batching in every cell too.
        seed: for the record.
        progress: called as tokens are generated.
        command: for the record; this process's own where None.

    Returns:
        Rows by pool, mode and repeat with throughput, times to first token and between tokens (seconds),
        waiting, batch, blocks, compression and predictions; a summary per pool with the gain of fusion and
        its ceiling: what the engine without fusion gains if nothing limits the pool. Saved blocks buy no
        more, because they save no computing.

    Raises:
        InputError: an empty profile or trace, pool shares that are not positive, or a pool that is too small
            for one request.
    """
    if len(profile) < 2:
        raise InputError("profile", len(profile), "needs at least two requests to calibrate on")
    if not trace:
        raise InputError("trace", [], "holds no request")
    if repeats < 1:
        raise InputError("repeats", repeats, "must be at least 1")
    for share in pools:
        if not (math.isfinite(share) and share > 0):
            raise InputError("pools", share, "must be positive shares of what the trace takes unfused")
    everything = max(
        loaded.layers * sum(-(-request.tokens // block_size) for request in requests)
        for requests in (profile, trace)
    )
    unlimited = EngineOptions(
        pool_blocks=everything,
        threshold=threshold,
        criterion=criterion,
        scale=scale,
        block_size=block_size,
        max_batch=max_batch,
        step_tokens=max(step_tokens, max_batch),
    )
    layers_of = {UNFUSED: (), FUSED: tuple(fused_layers)}

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else (lambda done, total: progress(what, done, total))

    packed = PackedModel(loaded.model)

    def run(options: EngineOptions, requests: Sequence[Request], what: str) -> ServingRun:
        with packed:
            return run_engine(packed, requests, options, max_tokens=loaded.max_tokens, progress=told(what))

    # The first run takes its memory from the system, and is slower for it: it is thrown away.
    run(unlimited, trace, "warming up")
    calibration = run(unlimited, profile, "profile")
    profiles = {}
    for mode in MODES:
        options = replace(unlimited, fused_layers=layers_of[mode])
        with packed:
            blocks, settle = profile_prompts(packed, profile, options)
        profiles[mode] = _Profile(
            cost=fit_step_cost(*_passes([calibration])),
            prompt_blocks=PromptBlocks(np.array(blocks, dtype=np.float64)),
            shared_prefix=round(float(np.median([one.prefix_tokens for one in calibration.served[1:]]))),
            settle_seconds=settle,
        )
    reference = run(unlimited, trace, "without a limit")
    needed = max(step.blocks for step in reference.steps)
    limits: list[float | None] = [None, *pools]
    rows = []
    for repeat in range(repeats):
        for limit in limits:
            size = everything if limit is None else max(1, math.floor(limit * needed))
            for mode in (UNFUSED,) if limit is None else MODES:
                options = replace(unlimited, pool_blocks=size, fused_layers=layers_of[mode])
                what = "without a limit" if limit is None else f"pool {limit:.2f}, {mode}"
                served = reference if limit is None and repeat == 0 else run(options, trace, what)
                row = _row(served, reference, workload, mode, limit, needed, profiles[mode], loaded, trace)
                rows.append(row | {"repeat": repeat})
            if transformers:
                other = run_transformers(loaded, trace, replace(unlimited, pool_blocks=size))
                row = _transformers_row(other, reference, workload, limit, trace)
                rows.append(row | {"repeat": repeat})
    block_bytes = 2 * block_size * loaded.kv_heads * loaded.head_dim * loaded.model.dtype.itemsize
    return Record(
        schema=SCHEMA,
        provenance=provenance(
            command,
            seed=seed,
            model=loaded.name,
            dtype=loaded.dtype,
            device=loaded.device.type,
            workload=workload,
            fused_layers=list(fused_layers),
            threshold=threshold,
            criterion=criterion,
            scale=scale,
            max_batch=max_batch,
            step_tokens=unlimited.step_tokens,
            block_size=block_size,
            block_bytes=block_bytes,
            needed_blocks=needed,
            profile_requests=len(profile),
            trace_requests=len(trace),
            step_cost={
                name: getattr(profiles[UNFUSED].cost, name)
                for name in ("base", "per_token", "per_context_token")
            },
        ),
        rows=rows,
        summary=_summarise(rows),
    )


def _row(
    run: ServingRun,
    reference: ServingRun,
    workload: str,
    mode: str,
    share: float | None,
    needed: int,
    profile: _Profile,
    loaded: LoadedModel,
    trace: Sequence[Request],
) -> dict[str, Any]:
    predicted = _predict(run.options, profile, loaded.layers, trace)
    first = [one.token_times[0] - one.arrival for one in run.served]
    fused = run.candidates > 0
    return {
        "workload": workload,
        "mode": mode,
        "pool_share": share,
        "pool_blocks": run.options.pool_blocks if share is not None else needed,
        "repeat": 0,
        "requests": len(run.served),
        "generated_tokens": run.generated,
        "seconds": run.seconds,
        "tokens_per_second": run.generated / run.seconds,
        "tokens_per_second_predicted": predicted.tokens_per_second,
        "mean_running": float(np.mean([step.running for step in run.steps])),
        "mean_running_predicted": predicted.mean_running,
        "max_running": max(step.running for step in run.steps),
        "passes": len(run.steps),
        "computed_tokens": sum(step.new_tokens for step in run.steps),
        **_latency(first, [one.token_times for one in run.served]),
        "waiting_mean": float(np.mean([one.admitted - one.arrival for one in run.served])),
        "preemptions": sum(one.preemptions for one in run.served),
        "peak_blocks": max(step.blocks for step in run.steps),
        "fusion_seconds": sum(step.fusion_seconds for step in run.steps),
        "compression": run.candidates / run.kept if fused else None,
        "same_tokens": _same([one.tokens for one in run.served], reference),
    }


def _transformers_row(
    run: TransformersRun,
    reference: ServingRun,
    workload: str,
    share: float | None,
    trace: Sequence[Request],
) -> dict[str, Any]:
    """The same fields; what transformers does not tell is None."""
    first = [times[0] - request.arrival for times, request in zip(run.token_times, trace, strict=True)]
    unknown = (
        "tokens_per_second_predicted mean_running mean_running_predicted max_running passes computed_tokens "
        "waiting_mean preemptions peak_blocks fusion_seconds compression"
    )
    return {
        **dict.fromkeys(unknown.split()),
        "workload": workload,
        "mode": TRANSFORMERS,
        "pool_share": share,
        "pool_blocks": run.blocks,
        "requests": len(trace),
        "generated_tokens": run.generated,
        "seconds": run.seconds,
        "tokens_per_second": run.generated / run.seconds,
        **_latency(first, run.token_times),
        "same_tokens": _same(run.tokens, reference),
    }


def _latency(first: Sequence[float], token_times: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Seconds to the first token and between tokens, mean and 99 % quantile."""
    gaps = np.concatenate([np.diff(times) for times in token_times])
    return {
        "time_to_first_token_mean": float(np.mean(first)),
        "time_to_first_token_p99": float(np.quantile(first, 0.99)),
        "time_between_tokens_mean": float(gaps.mean()) if len(gaps) else None,
        "time_between_tokens_p99": float(np.quantile(gaps, 0.99)) if len(gaps) else None,
    }


def _same(tokens: Sequence[Sequence[int]], reference: ServingRun) -> float:
    """Mean over requests of the share of tokens that are those of another run, place by place."""
    shares = [
        sum(a == b for a, b in zip(one, other.tokens, strict=True)) / len(other.tokens)
        for one, other in zip(tokens, reference.served, strict=True)
    ]
    return float(np.mean(shares))


def _predict(options: EngineOptions, profile: _Profile, layers: int, trace: Sequence[Request]) -> Capacity:
    demands = [
        Demand(
            request.arrival,
            len(request.prompt),
            request.new_tokens,
            min(profile.shared_prefix, (len(request.prompt) - 1) // options.block_size * options.block_size),
        )
        for request in trace
    ]
    return simulate_capacity(
        demands,
        profile.cost,
        pool_blocks=options.pool_blocks,
        layers=layers,
        prompt_blocks=profile.prompt_blocks,
        block_size=options.block_size,
        max_batch=options.max_batch,
        step_tokens=options.step_tokens,
        settle_seconds=profile.settle_seconds,
    )


def _passes(runs: Iterable[ServingRun]) -> tuple[list[float], list[int], list[int]]:
    steps = [step for run in runs for step in run.steps]
    return (
        [step.seconds for step in steps],
        [step.new_tokens for step in steps],
        [step.context_tokens for step in steps],
    )


def _summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per pool: tokens per second (mean over repeats), gain of fusion, its ceiling (by medians), the model's
    errors."""
    summary = []
    unlimited = [row for row in rows if row["pool_share"] is None and row["mode"] == UNFUSED]
    # The largest pool is where a round pays most for its memory, the first above all; a mean would follow it.
    most = float(np.median([row["tokens_per_second"] for row in unlimited]))
    for share in dict.fromkeys(row["pool_share"] for row in rows if row["pool_share"] is not None):
        cells = {
            mode: [row for row in rows if row["pool_share"] == share and row["mode"] == mode]
            for mode in MODES
        }
        rate = {mode: np.array([row["tokens_per_second"] for row in cells[mode]]) for mode in MODES}
        predicted = {mode: cells[mode][0]["tokens_per_second_predicted"] for mode in MODES}
        gains = rate[FUSED] / rate[UNFUSED]
        other = [
            row["tokens_per_second"]
            for row in rows
            if row["pool_share"] == share and row["mode"] == TRANSFORMERS
        ]
        compression = [row["compression"] for row in cells[FUSED] if row["compression"] is not None]
        summary.append(
            {
                "workload": rows[0]["workload"],
                "pool_share": share,
                "tokens_per_second_unfused": float(rate[UNFUSED].mean()),
                "tokens_per_second_fused": float(rate[FUSED].mean()),
                "tokens_per_second_transformers": float(np.mean(other)) if other else None,
                "compression": float(np.mean(compression)) if compression else None,
                "gain": float(gains.mean()),
                "gain_low": float(gains.min()),
                "gain_high": float(gains.max()),
                "gain_predicted": predicted[FUSED] / predicted[UNFUSED],
                "ceiling": most / float(np.median(rate[UNFUSED])),
                "ceiling_predicted": unlimited[0]["tokens_per_second_predicted"] / predicted[UNFUSED],
                "prediction_error_unfused": float(predicted[UNFUSED] / rate[UNFUSED].mean() - 1),
                "prediction_error_fused": float(predicted[FUSED] / rate[FUSED].mean() - 1),
                "same_tokens_fused": float(np.mean([row["same_tokens"] for row in cells[FUSED]])),
            }
        )
    return summary
