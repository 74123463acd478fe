"""The one comparison of kernels' results with a float64 oracle, and the one table of tolerances."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative, by the dtype of the inputs; for the largest error and for the root mean square of all."""


def errors(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest and root mean square relative error; NaN where ``actual`` holds a NaN.

    The largest is relative to the greater of the entry itself and the root mean square of all, so that
    an entry near 0 is not asked to be exact; the other is relative to the root mean square of all.
    """
    size = expected.square().mean().sqrt()
    error = (actual.double() - expected).abs()
    largest = (error / torch.maximum(expected.abs(), size).clamp(min=1e-300)).max()
    return float(largest), float(error.square().mean().sqrt() / size.clamp(min=1e-300))


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str = "result") -> None:
    """Fail unless ``actual`` is within the tolerance of ``dtype`` of the float64 ``expected``.

    Infinities must be equal and in the same places.
    """
    assert expected.dtype == torch.float64, "the oracle must be float64"
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    infinite = expected.isinf()
    assert torch.equal(actual.double()[infinite], expected[infinite]), f"{what}: other infinities"
    actual, expected = actual[~infinite], expected[~infinite]
    if actual.numel() == 0:
        return
    largest, mean = errors(actual, expected)
    tolerance = TOLERANCE[dtype]
    shown = f"{what}: relative error {largest:.2e} at most, {mean:.2e} root mean square; {dtype}: {tolerance}"
    # NaN compares as false, and fails.
    assert largest <= tolerance, shown
    assert mean <= tolerance, shown
