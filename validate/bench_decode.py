"""Benchmark of decoding with a real model: on the fused cache, beside its floor and the unmodified model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ratedist.errors import InputError
from ratedist.kernels.bench.floors import measure_floors
from ratedist.validate.generate import generate_both_ways
from ratedist.validate.models import LoadedModel
from ratedist.validate.workloads.prompts import PromptSet

__all__ = ["bench_decode"]


def bench_decode(
    loaded: LoadedModel,
    prompts: PromptSet,
    *,
    new_tokens: int = 64,
    thresholds: Sequence[float] = (0.8, 0.9),
    **fuse_options: Any,
) -> Iterator[dict[str, Any]]:
    """Greedy generation of the unmodified model, on a paged cache, and on fused ones, in one run.

    The floor of a step is what must be read (all weights, and the cache as it is at the end, what is shared
    once) over the bandwidth of a copy, or what must be computed over the rate of a matrix product, whichever
    is more, both measured in this run. ``torch_ratio`` is the time over that of the unmodified model.

    Args:
        loaded: from ``load_model``.
        prompts: one batch.
        new_tokens: per request, at least 2.
        thresholds: of the fused caches, one generation each.
        fuse_options: as ``ratedist.kernels.huggingface.FusedCache``.

    Returns:
        Rows, measured when they are asked for: ``name, dtype, device, requests, tokens_per_second,
        seconds`` (of a step), ``floor_seconds, ratio, torch_ratio, cache_bytes, same_tokens`` (share),
        ``compression``.

    Raises:
        InputError: no thresholds, or what ``generate_both_ways`` refuses.
    """
    if not thresholds:
        raise InputError("thresholds", list(thresholds), "name at least one")

    def measure() -> Iterator[dict[str, Any]]:
        model = loaded.model
        floors = measure_floors(loaded.device, model.dtype)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        requests = len(prompts.prompts)
        operations = 2 * sum(p.numel() for p in model.parameters()) * requests
        for index, threshold in enumerate(thresholds):
            record = generate_both_ways(
                loaded, prompts, new_tokens=new_tokens, threshold=threshold, **fuse_options
            )
            unmodified = record.rows[0]["decode_seconds"]
            # The unmodified model and the unfused cache are the same every time; the first stands for all.
            for row in record.rows[0 if index == 0 else 2 :]:
                read = weights + row["cache_bytes"]
                seconds = row["decode_seconds"] / (new_tokens - 1)
                floor = floors.seconds(read, operations)
                fusion = row["fusion"]
                yield {
                    "name": f"decode/{row['name']}" + (f"/{threshold:g}" if fusion else ""),
                    "dtype": loaded.dtype,
                    "device": str(torch.empty(0, device=loaded.device).device),
                    "requests": requests,
                    "tokens_per_second": row["tokens_per_second"],
                    "seconds": seconds,
                    "floor_seconds": floor,
                    "ratio": seconds / floor,
                    "torch_ratio": row["decode_seconds"] / unmodified,
                    "cache_bytes": row["cache_bytes"],
                    "same_tokens": row["same_tokens"] / row["tokens"],
                    "compression": fusion["compression"] if fusion else None,
                }

    return measure()
