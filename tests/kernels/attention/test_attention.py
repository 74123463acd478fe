"""Decoding attention: reference, vectorised torch and Triton (interpreted) against a float64 oracle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import decode_oracle, generator, make_layer, make_query
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.kernels.attention import _attention_triton, merge_attention, paged_decode_attention
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer

BACKENDS = ("reference", "cpu", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN, so that an entry nobody wrote is seen."""
    for name in ("empty", "empty_like"):
        allocate: Callable[..., torch.Tensor] = getattr(torch, name)

        def poisoned(
            *args: Any, allocate: Callable[..., torch.Tensor] = allocate, **kwargs: Any
        ) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)


# lengths, group, block_size, kv_heads, head_dim
CASES = {
    "grouped-odd-dim": ((9, 0, 17, 1, 16), 3, 4, 2, 24),
    "one-kv-head": ((33, 5), 5, 16, 1, 64),
    "plain-heads": ((3, 21), 1, 7, 3, 80),
    "unaligned": ((6, 2), 2, 3, 2, 5),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_against_oracle(case: str, backend: str, dtype: torch.dtype, fused: bool) -> None:
    lengths, group, block_size, kv_heads, head_dim = CASES[case]
    layer = make_layer(
        lengths, block_size=block_size, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, fused=fused
    )
    q = make_query(layer, group)
    out, lse = paged_decode_attention(q, layer, backend=backend)
    assert (out.dtype, out.shape) == (dtype, q.shape)
    assert (lse.dtype, lse.shape) == (torch.float32, q.shape[:2])
    expected_out, expected_lse = decode_oracle(q, layer)
    assert_close(out, expected_out, dtype, "out")
    assert_close(lse, expected_lse, dtype, "lse")


@settings(max_examples=12)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=3),
    block_size=st.integers(1, 9),
    heads=st.tuples(st.integers(1, 2), st.integers(1, 4)),
    head_dim=st.sampled_from([1, 8, 12, 16]),
    softmax_scale=st.sampled_from([None, 0.0, -0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_backends_agree(
    lengths: list[int],
    block_size: int,
    heads: tuple[int, int],
    head_dim: int,
    softmax_scale: float | None,
    seed: int,
) -> None:
    layer = make_layer(lengths, block_size=block_size, kv_heads=heads[0], head_dim=head_dim, seed=seed)
    q = make_query(layer, heads[1], seed)
    expected_out, expected_lse = decode_oracle(q, layer, softmax_scale)
    for backend in BACKENDS:
        out, lse = paged_decode_attention(q, layer, softmax_scale=softmax_scale, backend=backend)
        assert_close(out, expected_out, torch.float32, f"{backend} out")
        assert_close(lse, expected_lse, torch.float32, f"{backend} lse")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Interpreted with the tiles that are compiled: several tiles of tokens and several of query heads."""
    monkeypatch.setattr(_attention_triton, "_TILES_OF_DATA", False)
    layer = make_layer((150, 0, 64), block_size=16, kv_heads=1, head_dim=72, dtype=dtype)
    q = make_query(layer, 19)
    out, lse = paged_decode_attention(q, layer, backend="triton")
    expected_out, expected_lse = decode_oracle(q, layer)
    assert_close(out, expected_out, dtype, "out")
    assert_close(lse, expected_lse, dtype, "lse")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_without_fusion_keeps_its_bits(backend: str, dtype: torch.dtype) -> None:
    plain = make_layer((13, 20, 9), dtype=dtype, fused=False, seed=3)
    entries = plain.table.entries.clone()
    entries[0, 0] = entries[1, 1]
    entries[1, 0] = entries[1, 2]
    scale = torch.ones(entries.shape)
    scale[0, 0], scale[1, 0] = 1.3, -0.7
    fused = FusedLayer(plain.k, plain.v, dataclasses.replace(plain.table, entries=entries), scale, 1 / scale)
    q = make_query(plain, 3)
    before, after = (paged_decode_attention(q, layer, backend=backend) for layer in (plain, fused))
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[2], new[2])
        assert not torch.equal(old[0], new[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_beyond_float16(backend: str) -> None:
    """A tiny representative of large values: its scale exceeds what float16 holds, the product does not."""
    layer = make_layer((12, 5), dtype=torch.float16, seed=5)
    assert isinstance(layer, FusedLayer)
    layer = FusedLayer(
        layer.k, (layer.v * 2**-10).half(), layer.table, layer.k_scale, layer.v_scale * 2.0**20
    )
    q = make_query(layer, 2)
    out, _ = paged_decode_attention(q, layer, backend=backend)
    assert_close(out, decode_oracle(q, layer)[0], torch.float16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_far_from_zero(backend: str) -> None:
    """Weights are taken relative to the largest, so exp() neither overflows nor loses all of them."""
    layer = make_layer((40, 7), seed=6)
    q = make_query(layer, 2)
    out, lse = paged_decode_attention(q, layer, softmax_scale=20.0, backend=backend)
    expected_out, expected_lse = decode_oracle(q, layer, 20.0)
    assert float(expected_lse.max()) > 89, "exp() of this is beyond float32"
    assert_close(lse, expected_lse, torch.float32)
    # The scores themselves are in the hundreds, where float32 has steps of 3e-5.
    assert_close(out, expected_out, torch.float16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_requests(backend: str) -> None:
    layer = make_layer((0, 0))
    out, lse = paged_decode_attention(make_query(layer, 2), layer, backend=backend)
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(lse, torch.full_like(lse, -math.inf))
    none = make_layer(())
    out, lse = paged_decode_attention(make_query(none, 2), none, backend=backend)
    assert out.shape == (0, 4, 24)
    assert lse.shape == (0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_merge_by_log_sum_exp(backend: str) -> None:
    layer = make_layer((24,), block_size=8, fused=False, seed=7)
    q = make_query(layer, 2)
    whole, whole_lse = paged_decode_attention(q, layer, backend=backend)
    parts = []
    for blocks, length in ((slice(0, 2), 16), (slice(2, 3), 8)):
        entries = layer.table.entries[:, blocks].contiguous()
        table = BlockTable(entries, torch.tensor([length]), layer.table.domains, 8)
        parts.append(paged_decode_attention(q, PagedLayer(layer.k, layer.v, table), backend=backend))
    (a, a_lse), (b, b_lse) = parts
    nothing = torch.zeros_like(a), torch.full_like(a_lse, -math.inf)
    merged, merged_lse = merge_attention([a, b, nothing[0]], [a_lse, b_lse, nothing[1]])
    share = torch.sigmoid(a_lse - b_lse)[..., None]
    for out, lse in ((share * a + (1 - share) * b, torch.logaddexp(a_lse, b_lse)), (merged, merged_lse)):
        assert_close(out, whole.double(), torch.float32)
        assert_close(lse, whole_lse.double(), torch.float32)
    assert torch.equal(merge_attention(nothing[:1], nothing[1:])[0], nothing[0])


def test_parts_that_do_not_merge() -> None:
    out, lse = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(InputError, match="outs = '0 with 0 lses': must be as many as lses, at least one"):
        merge_attention([], [])
    with pytest.raises(InputError, match="outs = '1 with 2 lses'"):
        merge_attention([out], [lse, lse])
    with pytest.raises(
        InputError, match=r"outs = 'torch.float16 of shape \(2, 3, 4\)': must all be torch.float32"
    ):
        merge_attention([out, out.half()], [lse, lse])
    with pytest.raises(InputError, match=r"lses = 'torch.float32 of shape \(3,\)': must be float32 of shape"):
        merge_attention([out], [lse[0]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_interleaved_pools(backend: str) -> None:
    """Keys and values as two slices of one tensor, as serving engines hold them."""
    layer = make_layer((9, 4), seed=8)
    both = torch.stack([layer.k, layer.v], dim=1)
    apart = dataclasses.replace(layer, k=both[:, 0], v=both[:, 1])
    q = make_query(layer, 2)
    for one, other in zip(
        paged_decode_attention(q, layer, backend=backend),
        paged_decode_attention(q, apart, backend=backend),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_offsets_beyond_32_bits() -> None:
    """A block that starts 2^32 elements into the pool; the memory between is reserved, never touched."""
    spread = torch.empty_strided((2, 4, 1, 8), (2**32, 8, 8, 1), dtype=torch.float16)
    spread[1] = torch.randn(4, 1, 8, generator=generator(9)).half()
    table = BlockTable(
        torch.tensor([[1]], dtype=torch.int32), torch.tensor([4]), torch.zeros(1, dtype=torch.int64), 4
    )
    layer = PagedLayer(spread, spread, table)
    q = make_query(layer, 2)
    out, _ = paged_decode_attention(q, layer, backend="triton")
    assert_close(out, decode_oracle(q, layer)[0], torch.float16)


def test_the_vectorised_path_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer((9, 0, 17, 1, 16), seed=10)
    q = make_query(layer, 2)
    monkeypatch.setattr("ratedist.kernels.attention._attention_torch._WORKING_SCALARS", 5 * 4 * 2 * 52)
    out, lse = paged_decode_attention(q, layer, backend="cpu")
    expected_out, expected_lse = decode_oracle(q, layer)
    assert_close(out, expected_out, torch.float32)
    assert_close(lse, expected_lse, torch.float32)


def _with(**changes: Any) -> dict[str, Any]:
    layer = make_layer((5, 3))
    return {"q": make_query(layer, 2), "layer": layer, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "cache"}, "layer = 'str': must be a PagedLayer, FusedLayer or QuantisedLayer"),
        ({"q": None}, "q = 'NoneType': must have shape"),
        ({"q": torch.zeros(2, 4)}, r"q = \(2, 4\): must have shape \(queries, query_heads, head_dim\)"),
        ({"q": torch.zeros(3, 4, 24)}, r"q = \(3, 4, 24\): must hold one row for each of 2 requests"),
        ({"q": torch.zeros(2, 4, 16)}, r"q = \(2, 4, 16\): must have the cache's head_dim, 24"),
        (
            {"q": torch.zeros(2, 3, 24)},
            r"q = \(2, 3, 24\): query_heads must be a positive multiple of 2 KV heads",
        ),
        ({"q": torch.zeros(2, 0, 24)}, r"query_heads must be a positive multiple of 2 KV heads"),
        ({"q": torch.zeros(2, 4, 24).half()}, "q = 'torch.float16': must have the dtype of the cache"),
        ({"q": torch.zeros(2, 4, 24, device="meta")}, "q = 'meta': must be on cpu like the cache"),
        ({"softmax_scale": math.nan}, "softmax_scale = nan: must be a finite number"),
        ({"softmax_scale": "1"}, "softmax_scale = '1': must be a finite number"),
        ({"backend": "cuda"}, "backend = 'cuda': must be one of auto, reference, cpu, triton"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paged_decode_attention(**_with(**changes))


def test_bad_input_of_the_kernel() -> None:
    wide = make_layer((3,), head_dim=264)
    with pytest.raises(
        InputError, match="head_dim = 264: the kernel takes multiples of 8 up to 256; backend 'cpu' takes any"
    ):
        paged_decode_attention(make_query(wide, 1), wide, backend="triton")
    layer = make_layer((3,))
    turned = dataclasses.replace(layer, v=layer.v.transpose(2, 3).contiguous().transpose(2, 3))
    with pytest.raises(InputError, match=r"v = .*must be dense in head_dim"):
        paged_decode_attention(make_query(layer, 1), turned, backend="triton")
