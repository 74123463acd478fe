"""Layers go to the layouts of vLLM and FlashInfer and come back, byte for byte, with their sharing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from caches import make_layer, make_query
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.adapters.flashinfer import (
    FLASHINFER_FORMS,
    FLASHINFER_LAYOUTS,
    FlashInferCache,
    from_flashinfer,
    to_flashinfer,
)
from ratedist.kernels.adapters.materialise import materialise
from ratedist.kernels.adapters.scales_and_pools import SCALE_EXPORTS
from ratedist.kernels.adapters.vllm import VLLM_LAYOUTS, VllmCache, from_vllm, to_vllm
from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.restore import restore_blocks

Layer = PagedLayer | FusedLayer


@st.composite
def cases(draw: st.DrawFn, least: int = 0) -> Layer:
    """Aliased, shuffled, ragged layers, with scales, without, or all 1; poisoned where nothing is read."""
    lengths = draw(st.lists(st.integers(least, 11), min_size=1, max_size=4))
    kind = draw(st.sampled_from(["paged", "fused", "ones"]))
    layer = make_layer(
        lengths,
        block_size=draw(st.sampled_from([1, 3, 4])),
        kv_heads=draw(st.sampled_from([1, 2])),
        head_dim=draw(st.sampled_from([4, 8])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        fused=kind != "paged",
        seed=draw(st.integers(0, 1000)),
    )
    return one_scales(layer) if kind == "ones" and isinstance(layer, FusedLayer) else layer


def one_scales(layer: FusedLayer) -> FusedLayer:
    ones = torch.where(used(layer), 1.0, float("nan"))
    return replace(layer, k_scale=ones, v_scale=ones)


def used(layer: Layer) -> Tensor:
    return torch.arange(layer.table.entries.shape[1]) < layer.table.used_blocks[:, None]


def scaled(layer: Layer) -> bool:
    return isinstance(layer, FusedLayer) and bool(((layer.k_scale != 1) & used(layer)).any())


def bits(pool: Tensor) -> Tensor:
    return pool.contiguous().view(torch.uint8)


def assert_same(layer: Layer, back: Layer) -> None:
    """Equal lengths, sharing and bytes of what a request holds; and attention equal to the bit."""
    assert torch.equal(back.table.lengths, layer.table.lengths)
    here, there = layer.table.entries[used(layer)].long(), back.table.entries[used(back)].long()
    pairs = set(zip(here.tolist(), there.tolist(), strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs), "other sharing"
    for pool, other in ((layer.k, back.k), (layer.v, back.v)):
        assert torch.equal(bits(pool[here]), bits(other[there]))
    q = make_query(layer, 2)
    for backend in ("reference", "cpu"):
        for result, expected in zip(
            paged_decode_attention(q, back, backend=backend),
            paged_decode_attention(q, layer, backend=backend),
            strict=True,
        ):
            assert torch.equal(result, expected)


def back_from_vllm(cache: VllmCache) -> Layer:
    return from_vllm(
        cache.kv_cache,
        cache.block_table,
        cache.seq_lens,
        layout=cache.layout,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
    )


def back_from_flashinfer(cache: FlashInferCache) -> Layer:
    return from_flashinfer(
        cache.kv_cache,
        cache.indptr,
        cache.indices,
        cache.last_page_len,
        kv_layout=cache.kv_layout,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
    )


@given(cases(), st.sampled_from(sorted(VLLM_LAYOUTS)), st.sampled_from([0, -1]))
def test_to_vllm_and_back(layer: Layer, layout: str, padding: int) -> None:
    cache = to_vllm(layer, layout=layout, scales="separate", padding=padding)
    assert (cache.block_table.dtype, cache.seq_lens.dtype) == (torch.int32, torch.int32)
    assert (cache.block_table[~used(layer)] == padding).all()
    assert (cache.block_table[used(layer)] >= 1).all(), "the null block is in use"
    assert (cache.k_scale is not None) == scaled(layer)
    assert cache.copied
    back = back_from_vllm(cache)
    assert isinstance(back, FusedLayer) == scaled(layer)
    assert_same(layer, back)
    # What came from vLLM is a view, and goes back without a copy.
    assert back.k.untyped_storage().data_ptr() == cache.kv_cache.untyped_storage().data_ptr()
    again = to_vllm(back, layout=layout, scales="separate", padding=padding)
    assert not again.copied
    assert again.kv_cache.data_ptr() == cache.kv_cache.data_ptr()
    assert again.kv_cache.shape == cache.kv_cache.shape
    assert again.kv_cache.stride() == cache.kv_cache.stride()
    assert torch.equal(again.block_table, cache.block_table)
    # In another layout it is copied.
    for other in sorted(VLLM_LAYOUTS):
        if other != layout and back.k.shape[0] > 1 and back.k.shape[1] > 1:
            moved = to_vllm(back, layout=other, scales="separate")
            assert moved.copied
            assert_same(layer, back_from_vllm(moved))


@given(cases(least=1), st.sampled_from(sorted(FLASHINFER_LAYOUTS)), st.sampled_from(FLASHINFER_FORMS))
def test_to_flashinfer_and_back(layer: Layer, kv_layout: str, form: str) -> None:
    cache = to_flashinfer(layer, kv_layout=kv_layout, form=form, scales="separate")
    for tensor in (cache.indptr, cache.indices, cache.last_page_len):
        assert tensor.dtype == torch.int32
    # The length as FlashInfer documents it.
    pages = cache.indptr.diff()
    assert torch.equal((pages - 1) * layer.table.block_size + cache.last_page_len, layer.table.lengths.int())
    assert len(cache.indices) == int(cache.indptr[-1])
    back = back_from_flashinfer(cache)
    assert isinstance(back, FusedLayer) == scaled(layer)
    assert_same(layer, back)
    again = to_flashinfer(back, kv_layout=kv_layout, form=form, scales="separate")
    assert not again.copied
    for one, other in zip(tensors(cache), tensors(again), strict=True):
        assert other.data_ptr() == one.data_ptr()
        assert other.stride() == one.stride()
    assert torch.equal(again.indices, cache.indices)


def tensors(cache: FlashInferCache) -> tuple[Tensor, ...]:
    return cache.kv_cache if isinstance(cache.kv_cache, tuple) else (cache.kv_cache,)


@given(cases(least=1), st.booleans())
def test_materialised_scales_read_the_same(layer: Layer, to_flash: bool) -> None:
    if to_flash:
        back = back_from_flashinfer(to_flashinfer(layer, scales="materialise"))
    else:
        back = back_from_vllm(to_vllm(layer, layout="packed", scales="materialise"))
    assert isinstance(back, PagedLayer)
    here, there = layer.table.entries[used(layer)], back.table.entries[used(back)]
    for which in ("k", "v"):
        pool, other = getattr(layer, which), getattr(back, which)
        scale = getattr(layer, f"{which}_scale", torch.ones(used(layer).shape))[used(layer)]
        expected = restore_blocks(pool, here, scale).to(pool.dtype)
        assert torch.equal(bits(expected.nan_to_num()), bits(other[there.long()].nan_to_num()))


def test_materialising_shares_what_reads_the_same() -> None:
    layer = make_layer([8, 8, 4], block_size=4, fused=True)
    assert isinstance(layer, FusedLayer)
    entries = torch.tensor([[3, 3, -1, -1], [3, 5, -1, -1], [3, -1, -1, -1]], dtype=torch.int32)
    k = torch.randn(6, 4, 2, 24)
    ones = torch.ones(3, 4)
    k_scale, v_scale = ones.clone(), ones.clone()
    k_scale[1, 0] = k_scale[2, 0] = 0.5
    v_scale[2, 0] = 2.0
    fused = FusedLayer(k, -k, replace(layer.table, entries=entries), k_scale, v_scale)
    plain = materialise(fused)
    assert plain.table.entries.tolist() == [[0, 0, -1, -1], [1, 2, -1, -1], [3, -1, -1, -1]]
    assert torch.equal(plain.k, torch.stack([k[3], 0.5 * k[3], k[5], 0.5 * k[3]]))
    assert torch.equal(plain.v, -torch.stack([k[3], k[3], k[5], 2 * k[3]]))
    assert torch.equal(plain.k_scale, ones)
    # With nothing scaled, what was shared still is.
    assert materialise(one_scales(fused)).k.shape[0] == 2


def test_layouts_by_hand() -> None:
    """Where a scalar stands, written out from the engines' documents."""
    k = torch.arange(2 * 3 * 2 * 4, dtype=torch.float32).view(2, 3, 2, 4) + 1
    v = -k
    base = make_layer([5], block_size=3, fused=False)
    entries = torch.tensor([[1, 0, -1]], dtype=torch.int32)
    layer = PagedLayer(k, v, replace(base.table, entries=entries, lengths=torch.tensor([5])))
    for layout, shape in (
        ("kv-first", (2, 3, 3, 2, 4)),
        ("blocks-first", (3, 2, 3, 2, 4)),
        ("packed", (3, 2, 3, 8)),
    ):
        cache = to_vllm(layer, layout=layout)
        assert cache.kv_cache.shape == shape
        # Block 0 is the null block, so all moved up.
        assert cache.block_table.tolist() == [[2, 1, 0]]
        assert cache.seq_lens.tolist() == [5]
        for block, token, head, channel in ((0, 0, 0, 0), (1, 2, 1, 3), (0, 1, 1, 2)):
            at = {
                "kv-first": lambda w, b, t, h, c: (w, b, t, h, c),
                "blocks-first": lambda w, b, t, h, c: (b, w, t, h, c),
                "packed": lambda w, b, t, h, c: (b, h, t, 4 * w + c),
            }[layout]
            for which, pool in enumerate((k, v)):
                assert (
                    cache.kv_cache[at(which, block + 1, token, head, channel)]
                    == pool[block, token, head, channel]
                )
    nhd = to_flashinfer(layer)
    hnd = to_flashinfer(layer, kv_layout="HND")
    assert isinstance(nhd.kv_cache, Tensor)
    assert isinstance(hnd.kv_cache, Tensor)
    assert nhd.kv_cache.shape == (2, 2, 3, 2, 4)
    assert hnd.kv_cache.shape == (2, 2, 2, 3, 4)
    assert nhd.kv_cache[1, 1, 2, 0, 3] == v[1, 2, 0, 3] == hnd.kv_cache[1, 1, 0, 2, 3]
    assert (nhd.indptr.tolist(), nhd.indices.tolist(), nhd.last_page_len.tolist()) == ([0, 2], [1, 0], [2])


def test_strides_of_other_memory_orders_are_followed() -> None:
    """vLLM gives one shape two orders in memory; both are read and given back in place."""
    layer = one_scales(make_layer([9, 6], block_size=4))  # type: ignore[arg-type]
    for layout, heads in (("packed", 1), ("blocks-first", 2), ("kv-first", 2)):
        cache = to_vllm(layer, layout=layout)
        order = cache.kv_cache.transpose(heads, heads + 1).contiguous().transpose(heads, heads + 1)
        assert not order.is_contiguous()
        back = back_from_vllm(replace(cache, kv_cache=order))
        assert_same(layer, back)
        again = to_vllm(back, layout=layout)
        assert (again.copied, again.kv_cache.data_ptr()) == (False, order.data_ptr())
        assert again.kv_cache.stride() == order.stride()


def test_imported_layers_fuse_in_place_and_go_back() -> None:
    """The round an engine would make: its cache in, fused, the new block table out, no copy of K and V."""
    layer = make_layer([16, 16, 16], block_size=4, fused=False)
    layer.k[layer.table.entries[1, :4].long()] = 2 * layer.k[layer.table.entries[0, :4].long()]
    cache = to_vllm(layer, layout="blocks-first")
    fusion = fuse(back_from_vllm(cache), threshold=0.9)
    assert fusion.absorbed > 0
    exported = to_vllm(fusion.layer, layout="blocks-first", scales="separate")
    assert exported.kv_cache.data_ptr() == cache.kv_cache.data_ptr()
    assert exported.k_scale is not None
    assert_same(fusion.layer, back_from_vllm(exported))
    raw = fuse(back_from_vllm(cache), threshold=0.9, scale="raw").layer
    assert to_vllm(raw, layout="blocks-first").k_scale is None


def test_scales_that_an_engine_cannot_apply() -> None:
    layer = make_layer([9, 4])
    message = (
        r"scales = 'refuse': 4 blocks have scales other than 1, which the engine does not apply.*separate"
    )
    with pytest.raises(InputError, match=message):
        to_vllm(layer, layout="packed")
    with pytest.raises(InputError, match=message):
        to_flashinfer(layer)
    with pytest.raises(InputError, match=r"scales = 'drop': must be one of refuse, materialise, separate"):
        to_vllm(layer, layout="packed", scales="drop")
    with pytest.raises(InputError, match=r"layer = 'int': must be a PagedLayer or a FusedLayer"):
        to_flashinfer(3)  # type: ignore[arg-type]
    assert SCALE_EXPORTS == ("refuse", "materialise", "separate")
    # What stands beyond a request's end is no scale.
    assert isinstance(layer, FusedLayer)
    assert to_vllm(one_scales(layer), layout="packed").k_scale is None
    # Scales of the values alone are scales.
    values = replace(one_scales(layer), v_scale=layer.v_scale)
    with pytest.raises(InputError, match="4 blocks have scales other than 1"):
        to_vllm(values, layout="packed")
    assert_same(values, back_from_vllm(to_vllm(values, layout="packed", scales="separate")))


def test_vllm_caches_that_are_refused() -> None:
    layer = make_layer([9, 4], fused=False)
    good = to_vllm(layer, layout="blocks-first")

    def load(**changed: Any) -> Layer:
        arguments: dict[str, Any] = {
            "kv_cache": good.kv_cache,
            "block_table": good.block_table,
            "seq_lens": good.seq_lens,
            "layout": "blocks-first",
        }
        return from_vllm(**(arguments | changed))

    table = good.block_table.clone()
    table[1, 0] = 0
    missing = good.block_table.clone()
    missing[0, 1] = -1
    beyond = good.block_table.clone()
    beyond[0, 1] = 10_000
    scale = torch.ones(good.block_table.shape)
    for changed, message in (
        (
            {"layout": "auto"},
            r"layout = 'auto': must be one of kv-first \(2, num_blocks.*blocks-first.*packed",
        ),
        ({"layout": "kv-first"}, r"must have shape \(2, num_blocks, .*\) in layout kv-first"),
        ({"layout": "packed"}, r"must have shape .*2 \* head_size\)"),
        ({"layout": "packed", "kv_cache": torch.zeros(9, 2, 4, 7)}, "must hold K and V of equal head_size"),
        (
            {"kv_cache": good.kv_cache.to(torch.uint8)},
            "kv_cache = 'torch.uint8': .* 8 or 4 bits are not read",
        ),
        ({"kv_cache": [1]}, "kv_cache = 'list': must be a tensor of shape"),
        (
            {"block_table": good.block_table.float()},
            "block_table = 'torch.float32 of shape .*must be int32 or int64",
        ),
        ({"block_table": good.block_table[0]}, r"must be int32 or int64 of shape \(requests, max_blocks\)"),
        ({"block_table": None}, "block_table = 'NoneType'"),
        ({"seq_lens": good.seq_lens.to("meta")}, "seq_lens = 'meta': must be on cpu like the cache"),
        ({"seq_lens": good.seq_lens[:1]}, r"seq_lens = \(1,\): must have one entry per row, 2"),
        (
            {"seq_lens": good.seq_lens + 100},
            "request 0 needs 28 blocks of 4 tokens, the table has room for 5",
        ),
        ({"seq_lens": -good.seq_lens}, "lengths = -9: must not be negative"),
        ({"block_table": table}, "request 1, block 0 names the null block, so its tokens were dropped"),
        (
            {"block_table": missing},
            "request 0, block 1 lies within the length and must name a physical block",
        ),
        ({"block_table": beyond}, "request 0, block 1 lies beyond the pool"),
        ({"k_scale": scale}, "v_scale = None: must be given where the other scale is"),
        ({"v_scale": scale}, "k_scale = None: must be given where the other scale is"),
        ({"k_scale": scale[:1], "v_scale": scale}, "k_scale = .*must be float32 of shape"),
        ({"domains": torch.zeros(3)}, "domains = .*must be int64"),
    ):
        with pytest.raises(InputError, match=message):
            load(**changed)
    assert load(domains=torch.tensor([3, 4])).table.domains.tolist() == [3, 4]
    with pytest.raises(InputError, match="layout = 'nhd': must be one of kv-first"):
        to_vllm(layer, layout="nhd")
    with pytest.raises(InputError, match=r"padding = 7: must be 0 \(as in vLLM's own tables\) or -1"):
        to_vllm(layer, layout="packed", padding=7)


def test_flashinfer_caches_that_are_refused() -> None:
    layer = make_layer([9, 4], fused=False)
    good = to_flashinfer(layer)
    pair = to_flashinfer(layer, form="pair").kv_cache
    assert isinstance(pair, tuple)

    def load(**changed: Any) -> Layer:
        arguments: dict[str, Any] = {
            "kv_cache": good.kv_cache,
            "indptr": good.indptr,
            "indices": good.indices,
            "last_page_len": good.last_page_len,
        }
        return from_flashinfer(**(arguments | changed))

    integers = torch.tensor
    scale = torch.ones(4)
    for changed, message in (
        ({"kv_layout": "NDH"}, r"kv_layout = 'NDH': must be one of NHD \(…, page_size.*HND"),
        ({"kv_cache": pair[0]}, r"must have shape \(max_num_pages, 2, page_size, num_kv_heads, head_dim\)"),
        ({"kv_cache": (*pair, pair[0])}, "kv_cache = '3 tensors': must be a pair"),
        ({"kv_cache": (pair[0][0], pair[1])}, r"must have shape \(max_num_pages, page_size"),
        ({"kv_cache": (pair[0].to(torch.int8), pair[1])}, "kv_cache = 'torch.int8'"),
        ({"kv_cache": (pair[0], pair[1][1:])}, "v = .*must have the shape of k"),
        ({"kv_cache": (pair[0], pair[1].half())}, "v = 'torch.float16': must have the dtype of k"),
        ({"indptr": good.indptr + 1}, r"indptr = \[1, 4, 5\]: must start with 0 and never fall"),
        ({"indptr": integers([0, 4, 3])}, "must start with 0 and never fall"),
        ({"indptr": integers([], dtype=torch.int32)}, "must start with 0"),
        (
            {"indptr": integers([0, 4, 4])},
            "indptr = 0: request 1 holds no page; leave requests without tokens",
        ),
        ({"indptr": integers([0, 3, 5])}, r"indices = '4 pages': must hold indptr\[-1\] = 5 pages"),
        ({"indptr": integers([0, 4])}, "last_page_len = '2 entries': must have one per request, 1"),
        ({"indptr": good.indptr.float()}, r"must be int32 or int64 of shape \(requests \+ 1,\)"),
        ({"last_page_len": integers([1, 5])}, "last_page_len = 5: request 1 must have 1 to 4 tokens"),
        ({"last_page_len": integers([0, 4])}, "last_page_len = 0: request 0 must have 1 to 4 tokens"),
        ({"indices": good.indices - 100}, "indices = -.*must name pages of the cache"),
        ({"indices": good.indices + 100}, "lies beyond the pool"),
        ({"k_scale": scale}, "v_scale = None: must be given"),
        ({"k_scale": scale, "v_scale": scale[1:]}, "v_scale = .*one beside each of indices"),
    ):
        with pytest.raises(InputError, match=message):
            load(**changed)
    with pytest.raises(InputError, match="kv_layout = 'HDN': must be one of"):
        to_flashinfer(layer, kv_layout="HDN")
    with pytest.raises(InputError, match="form = 'triple': must be one of single, pair"):
        to_flashinfer(layer, form="triple")
    with pytest.raises(InputError, match="layer = 'length 0': request 1 holds no token"):
        to_flashinfer(make_layer([5, 0], fused=False))
    nothing = from_flashinfer(
        good.kv_cache, integers([0]), integers([], dtype=torch.int32), integers([], dtype=torch.int32)
    )
    assert nothing.table.requests == 0


def test_a_cache_in_place_that_uses_the_null_block_is_copied() -> None:
    """FlashInfer's single tensor is vLLM's blocks-first one, but FlashInfer hands page 0 out."""
    layer = one_scales(make_layer([9, 4], block_size=4))  # type: ignore[arg-type]
    paged = back_from_flashinfer(to_flashinfer(materialise(layer)))
    assert (paged.table.entries == 0).any()
    exported = to_vllm(paged, layout="blocks-first")
    assert exported.copied
    assert (exported.block_table[used(paged)] >= 1).all()
    assert_same(paged, back_from_vllm(exported))


def test_keys_and_values_in_one_memory_that_are_no_such_cache_are_copied() -> None:
    layer = one_scales(make_layer([9, 4], block_size=2))  # type: ignore[arg-type]
    blocks = layer.k.shape[0]
    # Values before keys; and values with heads before tokens.
    turned = torch.stack((layer.v, layer.k))
    mixed = torch.cat((layer.k.flatten(), layer.v.transpose(1, 2).flatten()))
    values = mixed[layer.k.numel() :].view(blocks, 2, 2, -1).transpose(1, 2)
    for k, v in ((turned[1], turned[0]), (mixed[: layer.k.numel()].view(layer.k.shape), values)):
        odd = replace(layer, k=k, v=v)
        for layout in VLLM_LAYOUTS:
            cache = to_vllm(odd, layout=layout)
            assert cache.copied
            assert_same(layer, back_from_vllm(cache))
        assert to_flashinfer(odd).copied
        assert_same(layer, back_from_flashinfer(to_flashinfer(odd)))
