"""Quantised layers: what codes hold, and attention over them against the oracle."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from caches import attention_oracle, generator, make_layer, with_reading
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.kernels.attention import paged_attention
from ratedist.kernels.layout import FusedLayer
from ratedist.kernels.quantised import (
    QuantisedLayer,
    dequantise,
    quantise,
    quantised_bytes,
    read_layer_blocks,
)

BACKENDS = ("reference", "cpu", "triton")


def fused_layer(lengths: tuple[int, ...] = (9, 0, 17, 4), **options: Any) -> FusedLayer:
    layer = make_layer(lengths, **options)
    assert isinstance(layer, FusedLayer)
    return layer


def used_logical(layer: FusedLayer) -> torch.Tensor:
    used = torch.arange(layer.table.entries.shape[1]) < layer.table.used_blocks[:, None]
    return torch.nonzero(used.flatten()).flatten()


@settings(max_examples=25)
@given(
    bits=st.sampled_from([8, 4]),
    head_dim=st.sampled_from([1, 5, 8, 24, 40]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    offset=st.sampled_from([0.0, 100.0, -3e4]),
    size=st.sampled_from([1e-6, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_scalars_are_off_by_half_a_step(
    bits: int, head_dim: int, dtype: torch.dtype, offset: float, size: float, seed: int
) -> None:
    """And a step is no more than the range over the levels, with what float16 takes to hold it."""
    layer = fused_layer(head_dim=head_dim, dtype=dtype, seed=seed)
    layer = dataclasses.replace(
        layer, k=(layer.k.float() * size + offset).to(dtype), v=(layer.v.float() * size - offset).to(dtype)
    )
    quantised = quantise(layer, bits)
    full = torch.arange(layer.table.entries.shape[1]) < layer.table.full_blocks[:, None]
    original, coded = layer.table.entries[full].long(), quantised.table.entries[full].long()
    assert len(coded.unique()) == len(original.unique()) == len(quantised.k.codes)
    for pool, stored, axis in ((quantised.k, layer.k, 1), (quantised.v, layer.v, 3)):
        expected = stored[original].double()
        spread = expected.amax(axis, keepdim=True) - expected.amin(axis, keepdim=True)
        step = pool.step[coded].double()
        error = (pool.read(coded).double() - expected).abs()
        assert bool((error <= 0.5 * step + 1e-6 * expected.abs()).all())
        most = (spread + 2.0**-9 * expected.abs().amax(axis, keepdim=True)) / (2**bits - 1)
        assert bool((step <= most * 1.003 + 2.0**-23).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_read_as_codes_or_tail(bits: int) -> None:
    layer = with_reading(fused_layer(), "half", 8)
    quantised = quantise(layer, bits)
    assert (len(quantised.k_tail), len(quantised.v_tail)) == (2, 2)
    logical = used_logical(layer)
    back = dequantise(quantised)
    for part in ("k", "v"):
        read = read_layer_blocks(quantised, part, logical)
        torch.testing.assert_close(read, read_layer_blocks(back, part, logical), equal_nan=True)
        exact = read_layer_blocks(layer, part, logical)
        full = logical % layer.table.entries.shape[1] < layer.table.full_blocks.repeat_interleave(
            layer.table.used_blocks
        )
        torch.testing.assert_close(read[~full], exact[~full], rtol=0, atol=0, equal_nan=True)
        error = (read - exact)[full].abs().max()
        assert 1e-3 < float(error) < (0.05 if bits == 8 else 0.8)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_against_oracle(bits: int, dtype: torch.dtype) -> None:
    layer = quantise(with_reading(fused_layer(dtype=dtype, seed=3), "half", 24), bits)
    query_lengths = torch.tensor([5, 0, 9, 1])
    q = torch.randn(15, 4, 24, generator=generator(4)).to(dtype)
    options: dict[str, Any] = {"window": 12, "softcap": 2.0, "sinks": torch.linspace(-1, 1, 4)}
    expected_out, expected_lse = attention_oracle(q, layer, query_lengths, **options)
    for backend in BACKENDS:
        out, lse = paged_attention(q, layer, query_lengths, backend=backend, **options)
        assert_close(out, expected_out, dtype, f"{backend} out")
        assert_close(lse, expected_lse, dtype, f"{backend} lse")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_that_over_the_dequantised_layer(backend: str, fused: bool) -> None:
    layer = quantise(make_layer((9, 0, 17, 4), fused=fused, head_dim=40, seed=5), 4)
    q = torch.randn(4, 6, 40, generator=generator(6))
    out, lse = paged_attention(q, layer, backend=backend)
    expected_out, expected_lse = paged_attention(q, dequantise(layer), backend=backend)
    assert_close(out, expected_out.double(), torch.float32)
    assert_close(lse, expected_lse.double(), torch.float32)


@pytest.mark.parametrize("lengths", [(3, 2), (8, 4), (0,), ()])
def test_layers_of_tails_or_of_codes_alone(lengths: tuple[int, ...]) -> None:
    layer = quantise(make_layer(lengths, seed=7), 8)
    q = torch.randn(len(lengths), 2, 24, generator=generator(8))
    expected_out, expected_lse = attention_oracle(q, layer)
    for backend in BACKENDS:
        out, lse = paged_attention(q, layer, backend=backend)
        assert_close(out, expected_out, torch.float32)
        assert_close(lse, expected_lse, torch.float32)


def test_bytes_are_those_of_the_tensors() -> None:
    layer = with_reading(fused_layer((64, 64, 7), block_size=16, head_dim=64), "half", 64)
    table = 3 * 6
    for bits in (8, 4):
        quantised = quantise(layer, bits)
        blocks = len(quantised.k.codes)
        codes = blocks * 16 * 2 * 64 * bits // 8
        keys, values = blocks * 2 * 64 * 2 * 2, blocks * 16 * 2 * 2 * 2
        tails = 2 * 16 * 2 * 64 * 4
        means = 2 * 3 * 16 * 2 * 64 * 4
        assert quantised_bytes(quantised) == 2 * codes + keys + values + tails + means + table * (3 + 3) * 4
    padded = quantise(fused_layer((4,), head_dim=40), 4)
    assert padded.k.codes.shape[3] == 32, "20 bytes of codes, padded to two of 16"


def test_refuses_what_cannot_be() -> None:
    layer = fused_layer()
    with pytest.raises(InputError, match=r"bits = 2: must be one of 8, 4"):
        quantise(layer, 2)
    with pytest.raises(InputError, match=r"layer = 'Tensor': must be a PagedLayer or a FusedLayer"):
        quantise(layer.k, 8)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"v = 'infinity, NaN or a range beyond float16': cannot be quantised"
    ):
        quantise(dataclasses.replace(layer, v=layer.v * 1e5), 8)
    broken = layer.k.clone()
    broken[layer.table.entries[2, 1], 2, 0, 3] = float("nan")
    with pytest.raises(InputError, match=r"k = 'infinity, NaN"):
        quantise(dataclasses.replace(layer, k=broken), 4)


def test_refuses_what_does_not_fit() -> None:
    layer = quantise(fused_layer(), 8)
    other = quantise(fused_layer(), 4)
    pool = layer.k

    def changed(**changes: Any) -> QuantisedLayer:
        return dataclasses.replace(layer, **changes)

    with pytest.raises(InputError, match=r"v = '4 bits of torch.float32.*must be like k, 8 bits"):
        changed(v=other.v)
    with pytest.raises(InputError, match=r"must be per channel for k, per token for v"):
        changed(k=layer.v)
    with pytest.raises(InputError, match=r"k_tail = 'torch.float16 of shape"):
        changed(k_tail=layer.k_tail.half())
    with pytest.raises(InputError, match=r"v_tail = 1: must hold the 2 blocks of k_tail"):
        changed(v_tail=layer.v_tail[:1])
    with pytest.raises(InputError, match="lies beyond the pool of 5 blocks"):
        changed(k_tail=layer.k_tail[:0], v_tail=layer.v_tail[:0])
    with pytest.raises(InputError, match=r"k_scale = .*one per block table entry"):
        changed(k_scale=layer.k_scale[:1])
    with pytest.raises(InputError, match=r"v_tail = 'meta': must be on cpu like the codes of k"):
        changed(v_tail=layer.v_tail.to("meta"))
    with pytest.raises(
        InputError, match=r"codes = .*must be uint8 of shape \(blocks, block_size, kv_heads, 32\)"
    ):
        dataclasses.replace(pool, codes=pool.codes[..., :24])
    with pytest.raises(InputError, match=r"low = .*must be float16 of shape"):
        dataclasses.replace(pool, low=pool.low.float())
    with pytest.raises(InputError, match=r"step = .*must be of the shape of low"):
        dataclasses.replace(pool, step=layer.v.step)
    with pytest.raises(InputError, match=r"step = 'meta': must be on cpu like the codes"):
        dataclasses.replace(pool, step=pool.step.to("meta"))
    with pytest.raises(InputError, match=r"bits = 3: must be one of 8, 4"):
        dataclasses.replace(pool, bits=3)
    with pytest.raises(InputError, match=r"must have the dtype of the cache, torch.float32"):
        paged_attention(torch.zeros(4, 2, 24).half(), layer)
