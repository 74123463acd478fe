"""ratedist.rate: bytes counted beside bytes of arrays, and the ratio over the whole cache."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.rate import CacheShape, bits_per_scalar, cache_rate

SHAPE = CacheShape(layers=32, fused_layers=28, blocks=4096, block_scalars=16 * 8 * 128)


def test_whole_cache_beside_fused_layers() -> None:
    """cache_rate: 4.38× over 28 of 32 layers is 3.08× of the whole, bookkeeping included."""
    rate = cache_rate(SHAPE, SHAPE.blocks / 4.38)
    assert rate.fused_layer_compression == pytest.approx(4.38)
    assert rate.compression == pytest.approx(32 / (28 / 4.38 + 4), rel=1e-3)
    assert round(float(rate.compression), 2) == 3.08
    assert rate.compression < 32 / (28 / 4.38 + 4)


def test_bytes_of_arrays() -> None:
    """cache_rate against the nbytes of the arrays that a fused cache holds."""
    layers, fused, blocks, kept, t, h, d, partial = 5, 3, 12, 7, 4, 2, 8, 24
    shape = CacheShape(layers, fused, blocks, t * h * d, partial_scalars=partial)
    tail = 2 * np.zeros(partial, np.float16).nbytes
    pools = 2 * np.zeros((kept, t, h, d), np.float16).nbytes
    alone = 2 * np.zeros((blocks, t, h, d), np.float16).nbytes
    table, scales = np.zeros(blocks, np.int32).nbytes, np.zeros((2, blocks), np.float32).nbytes
    rate = cache_rate(shape, kept)
    assert rate.fused_bytes == fused * (pools + table + scales + tail) + (layers - fused) * (alone + tail)
    assert rate.unfused_bytes == layers * (alone + tail)
    assert rate.overhead_bytes == fused * (table + scales)
    assert rate.bits_per_scalar == pytest.approx(16 * rate.fused_bytes / rate.unfused_bytes)


def test_bits_per_scalar_agree_with_the_bytes() -> None:
    """bits_per_scalar is the rate of a cache whose layers are all fused."""
    shape = CacheShape(4, 4, 100, 256, scalar_bits=5.0)
    kept = np.array([10.0, 50.0, 100.0])
    np.testing.assert_allclose(
        bits_per_scalar(kept / 100, scalar_bits=5.0, block_scalars=256),
        cache_rate(shape, kept).bits_per_scalar,
    )
    np.testing.assert_allclose(bits_per_scalar([0.25, 1.0]), [4.0, 16.0])


@given(kept=st.floats(0.01, 4096), fused=st.integers(0, 32))
def test_compression_is_bounded(kept: float, fused: int) -> None:
    shape = CacheShape(32, fused, 4096, 16384)
    rate = cache_rate(shape, kept)
    assert rate.compression <= rate.fused_layer_compression
    assert fused == 32 or rate.compression <= 32 / (32 - fused)
    assert cache_rate(shape, min(kept + 1, 4096)).fused_bytes >= rate.fused_bytes


def test_no_layer_fused_is_the_unfused_cache() -> None:
    rate = cache_rate(CacheShape(8, 0, 10, 64), 3)
    assert (rate.compression, rate.overhead_bytes, rate.bits_per_scalar) == (1.0, 0.0, 16.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CacheShape(0, 0, 1, 1), r"layers = 0: must be a whole number of at least 1"),
        (lambda: CacheShape(2, 3, 1, 1), r"fused_layers = 3: must be at most layers = 2"),
        (lambda: CacheShape(2, -1, 1, 1), r"fused_layers = -1: must be a whole number of at least 0"),
        (lambda: CacheShape(2, 1, 0, 1), r"blocks = 0: must be a whole number of at least 1"),
        (lambda: CacheShape(2, 1, 1.5, 1), r"blocks = 1\.5: must be a whole number"),  # type: ignore[arg-type]
        (lambda: CacheShape(2, 1, 1, 0), r"block_scalars = 0: must be a whole number of at least 1"),
        (lambda: CacheShape(2, 1, 1, 1, 0.0), r"scalar_bits = 0\.0: must be finite and above 0"),
        (lambda: CacheShape(2, 1, 1, 1, partial_scalars=-1), r"partial_scalars = -1: must be a whole"),
        (lambda: CacheShape(True, 1, 1, 1), r"layers = True: must be a whole number"),
        (lambda: cache_rate(SHAPE, 0.0), r"kept = 0\.0: must be finite and above 0"),
        (lambda: cache_rate(SHAPE, 5000.0), r"kept = 5000\.0: must be at most the 4096 logical blocks"),
        (lambda: bits_per_scalar(1.5), r"kept_share = 1\.5: must be finite and lie in \[0, 1\]"),
        (lambda: bits_per_scalar(0.5, scalar_bits=-1), r"scalar_bits = -1\.0: must be finite and above 0"),
        (lambda: bits_per_scalar(0.5, block_scalars=0), r"block_scalars = 0\.0: must be finite and above 0"),
    ],
)
def test_refusals(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
