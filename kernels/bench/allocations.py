"""Counting what a call allocates, temporaries inside operators included."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_extra_bytes"]


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch held at one time during ``call`` beyond what it held before.

    On a CPU this sums the allocations and releases that torch's profiler records, in order of time:
    exact for tensors and for temporaries inside operators, blind to what a BLAS library keeps for
    itself. On a GPU it is the allocator's own peak.

    Args:
        call: runs once; what it returns is kept until the end, and so counts.
        device: where it allocates.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Above the highest level: the profiler would announce itself on standard error at its first start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # What an earlier call left to the garbage collector would be released, with a warning, during this one.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    results = profiler.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak
