"""Requests of captures, one after the other, through a resident cache whose threshold a policy sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ratedist._arguments import as_numbers, whole_number
from ratedist.adaptive import (
    AdaptiveThreshold,
    Decision,
    FixedThreshold,
    Observation,
    Policy,
    error_ceiling,
)
from ratedist.errors import InputError
from ratedist.kernels.resident.layer import ResidentFusion, ResidentLayer
from ratedist.kernels.resident.pool import BlockPool
from ratedist.records import Record, provenance
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import check_captures

__all__ = ["SCHEMA", "AdaptiveFusion", "adapt", "observe"]

SCHEMA = "ratedist/adapt/1"

Progress = Callable[[str], None]

# Thresholds among which baselines are calibrated.
_FIXED = tuple(np.linspace(0.5, 1.0, 41).tolist())


def observe(fusion: ResidentFusion, request: int) -> Observation | None:
    """What fusing one request showed: its probes and its realised error, keys and values averaged.

    None where it had no full block that was not looked at before.

    Test: tests/validate/test_adaptive.py::test_realised_error_is_that_of_the_restored_blocks.

    Args:
        fusion: of this request alone, with at least one probe.
        request: its number.
    """
    if fusion.candidates == 0:
        return None
    # An entry is named again, without a further error, where its representative joins a byte-equal one.
    errors = [0.5 * (one.k_error + one.v_error) for one in fusion.absorbed if one.request == request]
    return Observation(
        np.array([max(one.score, -1.0) for one in fusion.probed]),
        np.array([0.5 * (one.k_error + one.v_error) for one in fusion.probed]),
        sum(errors) / fusion.candidates,
    )


class AdaptiveFusion:
    """A resident layer in which every request is fused under the threshold that a policy sets for it."""

    def __init__(self, layer: ResidentLayer, policy: Policy, *, probes: int = 8, seed: int = 0) -> None:
        """Take both as they are.

        Args:
            layer: admits and releases requests as ever; fuse through this object.
            policy: an ``AdaptiveThreshold``, or anything else that has a threshold and learns.
            probes: blocks per request whose best match is looked at whatever the threshold, at least 1.
            seed: of the draws of probes.

        Raises:
            InputError: a number of probes below 1, or a negative seed.
        """
        self.layer = layer
        self.policy = policy
        self._probes = whole_number("probes", probes, low=1)
        self._generator = torch.Generator().manual_seed(whole_number("seed", seed, low=0))

    def fuse(self, request: int) -> tuple[ResidentFusion, object]:
        """Fuse one request's new full blocks; what that did, and what the policy made of it.

        Raises:
            InputError: as ``ResidentLayer.fuse``, or as the policy's ``update``.
        """
        fusion = self.layer.fuse(
            [request], threshold=self.policy.threshold, probes=self._probes, generator=self._generator
        )
        seen = observe(fusion, request)
        return fusion, None if seen is None else self.policy.update(seen)


def adapt(
    captures: Sequence[Capture],
    *,
    layer: int,
    target: float,
    window: int = 50,
    resident: int = 32,
    probes: int = 8,
    criterion: str = "both",
    scale: str = "own-norm",
    alarm_rate: float = 1e-3,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Record:
    """Stream the requests of captures through one layer's cache under several policies.

    The requests of each capture come in an order drawn by ``seed``, one capture after the other. When more
    than ``resident`` are in the cache the oldest leaves. Policies:

    - ``integral`` and ``bound``: ``AdaptiveThreshold`` with either driver;
    - ``mean``: integral, aiming at the target itself;
    - ``fixed``: the lowest of 0.5, 0.5125 … 1 that keeps the mean error of the *first* capture's requests
      at most the target;
    - ``oracle``: knows where each capture begins and uses for each the lowest that keeps its mean there. Both
      are found by streaming under fixed thresholds.

    Args:
        captures: at least two, each of another workload, of one model.
        layer: index of a captured layer.
        target: promised mean squared relative error.
        window: requests over which the promise is kept.
        resident: requests in the cache at a time, at least 2.
        probes: blocks probed per request.
        criterion: ``keys`` or ``both``.
        scale: ``own-norm`` or ``projection``.
        alarm_rate: false alarms per request.
        seed: of order and probes.
        progress: told what is under way.

    Returns:
        A record of schema ``SCHEMA``: a row per policy and request, and a summary per policy.

    Test: tests/validate/test_adaptive.py::test_rows_and_summary_of_a_stream.

    Raises:
        InputError: an argument outside what is listed, or captures that do not fit each other.
    """
    if len(captures) < 2:
        raise InputError("captures", len(captures), "needs at least two: a stream that changes")
    check_captures(captures)
    resident = whole_number("resident", resident, low=2)
    limit = float(as_numbers("target", target, low=0.0, low_open=True))
    grid = np.linspace(0.5, 1.0, 101)
    ceiling = error_ceiling(grid, criterion=criterion, scale=scale)
    kept: dict[str, Any] = {
        "ceiling": ceiling,
        "thresholds": grid,
        "window": window,
        "alarm_rate": alarm_rate,
        "seed": seed,
    }
    policies: dict[str, Policy] = {
        "integral": AdaptiveThreshold(limit, **kept),
        "bound": AdaptiveThreshold(limit, driver="bound", **kept),
        "mean": AdaptiveThreshold(limit, aim=limit, **kept),
    }
    streams = [
        _requests(capture, layer, np.random.default_rng([seed, n])) for n, capture in enumerate(captures)
    ]
    names = [capture.manifest.workload for capture in captures]
    counts = [len(stream) for stream in streams]
    of_capture = np.repeat(np.arange(len(captures)), counts)
    stream = [request for requests in streams for request in requests]
    options: dict[str, Any] = {
        "resident": resident,
        "probes": probes,
        "criterion": criterion,
        "scale": scale,
        "seed": seed,
    }

    @cache
    def errors(threshold: float) -> list[float]:
        progress(f"threshold {threshold:g}")
        steps = _run(stream, FixedThreshold(threshold), **(options | {"probes": 1}))
        course = np.array([step["error"] for step in steps])
        return [float(course[of_capture == n].mean()) for n in range(len(captures))]

    lowest = [_lowest(errors, n, limit) for n in range(len(captures))]
    policies["fixed"] = FixedThreshold(lowest[0])
    policies["oracle"] = _Scheduled([lowest[n] for n in of_capture])

    rows: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for name, policy in policies.items():
        progress(name)
        steps = [
            {"policy": name, "request": index, "workload": names[of_capture[index]], **step}
            for index, step in enumerate(_run(stream, policy, **options))
        ]
        rows += steps
        summary.append(_summary(name, policy, steps, window, names))
    return Record(
        SCHEMA,
        provenance(
            model=captures[0].manifest.model,
            layer=layer,
            workloads=names,
            requests=counts,
            target=limit,
            window=window,
            alarm_rate=alarm_rate,
            **options,
        ),
        rows,
        summary,
    )


class _Scheduled:
    """A threshold per request, known beforehand."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self._left = list(thresholds)[::-1]

    @property
    def threshold(self) -> float:
        return self._left[-1]

    def update(self, observation: Observation) -> None:
        self._left.pop()


def _lowest(errors: Callable[[float], Sequence[float]], of: int, target: float) -> float:
    """Lowest of ``_FIXED`` with an error within the target, by bisection, since the error falls."""
    low, high = 0, len(_FIXED) - 1
    while low < high:
        middle = (low + high) // 2
        if errors(_FIXED[middle])[of] <= target:
            high = middle
        else:
            low = middle + 1
    return _FIXED[low]


def _requests(capture: Capture, layer: int, rng: np.random.Generator) -> list[tuple[Tensor, Tensor, int]]:
    """Keys and values (tokens, kv_heads, head_dim) and domain of requests, in random order."""
    paged = capture.layer(layer)
    table = paged.table
    drawn = []
    for request in rng.permutation(len(table.lengths)).tolist():
        length = int(table.lengths[request])
        used = table.entries[request, : -(-length // table.block_size)].long()
        k, v = (pool[used].flatten(0, 1)[:length] for pool in (paged.k, paged.v))
        if length >= table.block_size:
            drawn.append((k, v, int(table.domains[request])))
    return drawn


def _run(
    stream: Sequence[tuple[Tensor, Tensor, int]],
    policy: Policy,
    *,
    resident: int,
    probes: int,
    criterion: str,
    scale: str,
    seed: int,
    block_size: int = 16,
) -> Iterator[dict[str, Any]]:
    k, _, _ = stream[0]
    blocks = (resident + 1) * max(-(-len(one[0]) // block_size) for one in stream)
    pool = BlockPool(blocks, block_size, k.shape[1], k.shape[2], dtype=k.dtype)
    layer = ResidentLayer(pool, threshold=1.0, criterion=criterion, scale=scale)
    fusion = AdaptiveFusion(layer, policy, probes=probes, seed=seed)
    for k, v, domain in stream:
        request = layer.admit(k, v, domain=domain)
        threshold = policy.threshold
        done, decision = fusion.fuse(request)
        seen = observe(done, request)
        assert seen is not None
        step: dict[str, Any] = {
            "threshold": threshold,
            "error": seen.realised,
            "absorbed": 1 - done.kept / done.candidates,
            "blocks_in_use": pool.blocks - pool.free_blocks,
            "blocks_held": sum(-(-layer.length(held) // block_size) for held in layer.requests),
        }
        if isinstance(decision, Decision):
            step |= {
                "estimate": decision.estimate,
                "upper": decision.upper if np.isfinite(decision.upper) else None,
                "allowed": decision.allowed,
                "evidence": decision.evidence,
                "calibration_due": decision.calibration_due,
            }
        yield step
        if len(layer.requests) > resident:
            layer.release(layer.requests[0])


def _summary(
    name: str, policy: Policy, steps: Sequence[dict[str, Any]], window: int, names: Sequence[str]
) -> dict[str, Any]:
    errors = np.array([step["error"] for step in steps])
    total = np.concatenate([[0.0], np.cumsum(errors)])
    means = (
        (total[window:] - total[:-window]) / window if len(errors) >= window else errors.mean(keepdims=True)
    )
    held, used = (sum(step[key] for step in steps) for key in ("blocks_held", "blocks_in_use"))
    return {
        "policy": name,
        "error": float(errors.mean()),
        "largest_window_error": float(means.max()),
        "guarantee": policy.guarantee(window) if isinstance(policy, AdaptiveThreshold) else None,
        "absorbed": float(np.mean([step["absorbed"] for step in steps])),
        "compression": held / used,
        "alarms": [step["request"] for step in steps if step.get("calibration_due")],
        "by_workload": {
            workload: {
                key: float(np.mean([step[key] for step in steps if step["workload"] == workload]))
                for key in ("error", "absorbed", "threshold")
            }
            for workload in names
        },
    }
