"""Published figures of GPUs, for estimates; from the makers' data sheets, for dense data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GPU", "GPUS"]


@dataclass(frozen=True)
class GPU:
    """Peaks of one GPU, which real kernels stay below.

    Attributes:
        name: as its maker calls it.
        memory: bytes.
        bandwidth: of memory, bytes per second.
        matrix: float16 and bfloat16 operations per second of the matrix units, a multiply-add as two.
        vector: float32 operations per second, likewise.
    """

    name: str
    memory: float
    bandwidth: float
    matrix: float
    vector: float


GPUS = {
    "a100": GPU("A100 SXM 80 GB", 80e9, 2.039e12, 312e12, 19.5e12),
    "h100": GPU("H100 SXM", 80e9, 3.35e12, 989.4e12, 66.9e12),
    "h200": GPU("H200 SXM", 141e9, 4.8e12, 989.4e12, 66.9e12),
    "l4": GPU("L4", 24e9, 0.3e12, 121e12, 30.3e12),
    "mi300x": GPU("MI300X", 192e9, 5.3e12, 1307.4e12, 163.4e12),
}
"""By the names that the command line takes."""
