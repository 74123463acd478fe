"""What this machine can do at best, measured: bytes per second and multiply-adds per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Floors", "best_seconds", "measure_floors", "seconds_of"]


@dataclass(frozen=True)
class Floors:
    """Rates of one device.

    Attributes:
        bandwidth: bytes per second, reading and writing counted, of a copy that no cache holds.
        matrix_rate: operations per second of a large matrix product in the dtype in question, a
            multiply-add counting two.
    """

    bandwidth: float
    matrix_rate: float

    def seconds(self, read: float, operations: float) -> float:
        """Least time for so many bytes and operations, if one hides behind the other."""
        return max(read / self.bandwidth, operations / self.matrix_rate)


def measure_floors(device: torch.device, dtype: torch.dtype, repeats: int = 3) -> Floors:
    """Measure now; other work on the machine lowers what is found.

    Args:
        device: where.
        dtype: of the matrix product.
        repeats: runs of which the best counts.
    """
    on_gpu = device.type == "cuda"
    source = torch.ones((2**31 if on_gpu else 2**27) // 4, device=device)
    target = torch.empty_like(source)
    copied = best_seconds(lambda: target.copy_(source), device, repeats)
    size = 8192 if on_gpu else 1536
    a = torch.ones(size, size, dtype=dtype, device=device)
    out = torch.empty_like(a)
    multiplied = best_seconds(lambda: torch.mm(a, a, out=out), device, repeats)
    return Floors(2 * source.numel() * 4 / copied, 2 * size**3 / multiplied)


def best_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least wall time of several runs, after one that is not counted; waits for a GPU to finish."""
    call()
    return min(seconds_of(call, device) for _ in range(repeats))


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one run; waits for a GPU before it and after it."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
