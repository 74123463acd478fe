"""Methods of compression: their names, what they restore, and their bytes against another count."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.kernels.restore import block_errors
from ratedist.rate import CacheShape, cache_rate
from ratedist.validate.quality.methods import (
    BASELINES,
    CompressedLayer,
    LayerCache,
    Method,
    compress,
    fusion_methods,
    parse_method,
    settings,
)
from ratedist.validate.quality.quantise import quantise_keys, quantise_values

HEADS, DIM, SIZE = 2, 8, 16


def layer(lengths: list[int], *, shared_tokens: int = 32, seed: int = 0) -> LayerCache:
    """Requests that begin alike and go on around a common mean, zero behind their ends, as float16."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-max(lengths) // SIZE)
    pools = []
    for _ in range(2):
        mean = torch.randn(blocks * SIZE, HEADS, DIM, generator=generator)
        pool = mean + 0.5 * torch.randn(len(lengths), blocks * SIZE, HEADS, DIM, generator=generator)
        pool[:, :shared_tokens] = pool[0, :shared_tokens].clone()
        for row, length in enumerate(lengths):
            pool[row, length:] = 0
        pools.append(pool.half().view(-1, SIZE, HEADS, DIM))
    entries = torch.arange(len(lengths) * blocks, dtype=torch.int32).view(len(lengths), blocks)
    used = torch.arange(blocks) < -(-torch.tensor(lengths) // SIZE)[:, None]
    table = BlockTable(
        torch.where(used, entries, UNUSED),
        torch.tensor(lengths),
        torch.zeros(len(lengths), dtype=torch.int64),
        SIZE,
    )
    received = torch.rand(len(lengths), HEADS, max(lengths), generator=generator)
    return LayerCache(3, PagedLayer(*pools, table), True, received)


def shape_of(lengths: list[int], scalar_bits: float = 16.0) -> CacheShape:
    r = SIZE * HEADS * DIM
    return CacheShape(
        layers=1,
        fused_layers=1,
        blocks=sum(length // SIZE for length in lengths),
        block_scalars=r,
        scalar_bits=scalar_bits,
        partial_scalars=sum(length % SIZE for length in lengths) * HEADS * DIM,
    )


def logical(pool: torch.Tensor, requests: int) -> torch.Tensor:
    return pool.float().view(requests, -1, HEADS, DIM)


@pytest.mark.parametrize("name", [*BASELINES, "fusion", "fusion+int8", "kivi4r64", "exact+int8"])
def test_names_are_read_back(name: str) -> None:
    assert parse_method(name).name == name


@pytest.mark.parametrize(
    "name", ["", "kivi", "kivi9", "4bit", "exact+", "evict", "kivi4+exact", "fusion+exact"]
)
def test_unknown_names_are_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(InputError, match=r"method.*(unknown; use one of nothing, exact, fusion)"):
        parse_method(name)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match=r"keep.*\(0, 1\]"):
        parse_method("evict0")
    with pytest.raises(InputError, match="drop r"):
        parse_method("exact+kivi4r64")
    with pytest.raises(InputError, match="threshold"):
        Method("fusion", threshold=1.5)
    with pytest.raises(InputError, match="by itself"):
        Method("exact", keep=0.5)
    with pytest.raises(InputError, match="bits"):
        Method(coding="kivi")
    with pytest.raises(InputError, match="named twice"):
        fusion_methods(["fusion"], [0.8, 0.8], ["leader"], ["keys"])


def test_fusion_is_repeated_over_its_settings_and_nothing_else_is() -> None:
    methods = fusion_methods(["exact", "fusion", "fusion+kivi4"], [0.7, 0.9], ["leader", "tree"], ["both"])
    assert [m.name for m in methods] == ["exact", *["fusion"] * 4, *["fusion+kivi4"] * 4]
    rows = [settings(m) for m in methods]
    assert rows[0]["threshold"] is None
    assert [(r["variant"], r["threshold"]) for r in rows[1:5]] == [
        ("leader", 0.7),
        ("leader", 0.9),
        ("tree", 0.7),
        ("tree", 0.9),
    ]
    assert {r["bits"] for r in rows[5:]} == {4}


@pytest.mark.parametrize("lengths", [[64, 64, 64], [64, 41, 20]])
def test_nothing_changes_nothing(lengths: list[int]) -> None:
    cache = layer(lengths)
    result = compress(Method(), cache)
    assert torch.equal(result.k.float(), logical(cache.paged.k, 3))
    assert torch.equal(result.v.float(), logical(cache.paged.v, 3))
    assert float(result.bytes.sum()) == shape_of(lengths).layer_bytes


@pytest.mark.parametrize("lengths", [[64, 64, 64], [64, 41, 20]])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_fusion_restores_and_counts_as_the_kernels_and_the_theory_do(
    lengths: list[int], threshold: float
) -> None:
    cache = layer(lengths)
    result = compress(Method("fusion", variant="tree", threshold=threshold), cache)
    expected = fuse(cache.paged, threshold=threshold, variant="tree")
    assert result.fusion is not None
    assert torch.equal(result.fusion.representative, expected.representative)
    for restored, pool, error in zip(
        (result.k, result.v),
        (cache.paged.k, cache.paged.v),
        block_errors(cache.paged, expected.layer),
        strict=True,
    ):
        before = logical(pool, 3).view(3, -1, SIZE * HEADS * DIM)
        after = restored.view(before.shape)
        error2 = (after - before).square().sum(2) / before.square().sum(2).clamp(min=1e-9)
        torch.testing.assert_close(error2, error, rtol=1e-4, atol=1e-6)
    rate = cache_rate(shape_of(lengths), expected.kept)
    assert float(result.bytes.sum()) == pytest.approx(float(rate.fused_bytes))


def test_bytes_that_are_shared_are_split_among_their_readers() -> None:
    result = compress(Method("exact"), layer([64, 64, 48]))
    block = 2 * SIZE * HEADS * DIM * 2
    assert result.bytes.tolist() == pytest.approx(
        [2 * block / 3 + 2 * block + 48, 2 * block / 3 + 2 * block + 48, 2 * block / 3 + block + 36]
    )


def test_exact_sharing_knows_no_threshold() -> None:
    cache = layer([64, 64])
    exact, low = compress(Method("exact"), cache), compress(Method("exact", threshold=0.2), cache)
    assert exact.fusion is not None
    assert low.fusion is not None
    assert exact.fusion.kept == low.fusion.kept > compress(Method("fusion", threshold=0.2), cache).fusion.kept
    assert torch.equal(low.k.float(), logical(cache.paged.k, 2))


def test_layers_left_alone_are_only_coded() -> None:
    cache = replace(layer([64, 64]), shared=False)
    for name in ("exact", "fusion"):
        result = compress(replace(parse_method(name), threshold=0.0), cache)
        assert torch.equal(result.k.float(), logical(cache.paged.k, 2))
        assert result.fusion is None
    coded, alone = compress(parse_method("exact+kivi4"), cache), compress(parse_method("kivi4"), cache)
    assert torch.equal(coded.k, alone.k)
    assert torch.equal(coded.bytes, alone.bytes)


@pytest.mark.parametrize("residual", [0, 40])
def test_kivi_leaves_alone_what_fills_no_group(residual: int) -> None:
    lengths = [80, 64, 41]
    cache = layer(lengths)
    result = compress(Method(coding="kivi", bits=3, residual=residual), cache)
    total = 0.0
    for row, length in enumerate(lengths):
        coded = max(0, length - residual) // 32 * 32
        for restored, pool, codec in (
            (result.k, cache.paged.k, quantise_keys),
            (result.v, cache.paged.v, quantise_values),
        ):
            before = logical(pool, 3)[row]
            if coded:
                assert torch.equal(restored[row, :coded], codec(before[None, :coded], 3)[0])
                assert not torch.equal(restored[row, :coded], before[:coded])
            assert torch.equal(restored[row, coded:], before[coded:])
        # 3 bits a scalar; 2 × 2 bytes for 32 keys of a channel and for the 16 channels of a token's values.
        keys = coded * 16 * 3 / 8 + coded / 32 * 16 * 4
        values = coded * 16 * 3 / 8 + coded * 4
        total += keys + values + (length - coded) * 16 * 2 * 2
    assert float(result.bytes.sum()) == pytest.approx(total)


def test_int8_counts_a_byte_and_a_share_of_the_scale() -> None:
    lengths = [64, 41]
    result = compress(parse_method("int8"), layer(lengths))
    assert float(result.bytes.sum()) == pytest.approx(sum(lengths) * 2 * HEADS * (DIM + 2))


@given(
    st.integers(1, 5),
    st.sampled_from(["", "kivi"]),
    st.sampled_from(["exact", "fusion"]),
    st.lists(st.integers(0, 96), min_size=1, max_size=3),
    st.integers(0, 99),
)
@hypothesis.settings(deadline=None, max_examples=25)
def test_across_chunks_every_request_is_alone(
    chunk_blocks: int, coding: str, sharing: str, lengths: list[int], seed: int
) -> None:
    """With ``"cff"`` a request's bytes and blocks do not depend on the others, and are those of the kernels:
    kept blocks once, every full block its table entry and scales, the rest as it is."""
    cache = layer([*lengths, 80], seed=seed, shared_tokens=48)
    method = Method(sharing, coding, 4 if coding else 0, threshold=0.5, mode="cff", chunk_blocks=chunk_blocks)
    result = compress(method, cache)
    threshold = 0.5 if sharing == "fusion" else 1.0
    expected = fuse(cache.paged, threshold=threshold, mode="cff", chunk_blocks=chunk_blocks)
    blocks = cache.paged.table.entries.shape[1]
    per_block = SIZE * HEADS * DIM * 2 * ((6 if coding else 16) / 8)
    for request, length in enumerate([*lengths, 80]):
        own = slice(request * blocks, (request + 1) * blocks)
        alone = replace(
            cache,
            paged=PagedLayer(
                cache.paged.k[own],
                cache.paged.v[own],
                replace(
                    cache.paged.table,
                    entries=torch.where(
                        cache.paged.table.entries[request : request + 1] < 0,
                        UNUSED,
                        torch.arange(blocks, dtype=torch.int32),
                    ),
                    lengths=cache.paged.table.lengths[request : request + 1],
                    domains=cache.paged.table.domains[request : request + 1],
                ),
            ),
        )
        apart = compress(method, alone)
        torch.testing.assert_close(apart.k[0], result.k[request])
        torch.testing.assert_close(apart.v[0], result.v[request])
        full = length // SIZE
        kept = len(expected.layer.table.entries[request, :full].unique())
        size = kept * per_block + 12 * full + 2 * (length % SIZE) * HEADS * DIM * 2
        assert float(result.bytes[request]) == pytest.approx(size)
        assert float(apart.bytes[0]) == pytest.approx(size)


def test_the_mode_is_stored_where_it_is_not_the_usual_one() -> None:
    """So that files of versions without modes, and what they call a cell, stay what they are."""
    usual = Method("fusion", threshold=0.8)
    assert set(usual.to_json()) == {
        "sharing",
        "coding",
        "bits",
        "residual",
        "keep",
        "variant",
        "criterion",
        "scale",
        "threshold",
    }
    for method in (usual, Method("exact", mode="cff", chunk_blocks=4)):
        assert Method(**method.to_json()) == method
    assert settings(Method("fusion", mode="cff", chunk_blocks=2))["mode"] == "cff"
    with pytest.raises(InputError, match="chunk_blocks = None: must be a whole number of blocks"):
        Method("fusion", mode="cff")


def test_coded_representatives_are_read_with_the_scales_of_their_members() -> None:
    lengths = [64, 64, 50]
    cache = layer(lengths)
    method = Method("fusion", "kivi", 4, threshold=0.5)
    result = compress(method, cache)
    fusion = fuse(cache.paged, threshold=0.5)
    assert 0 < fusion.kept < fusion.candidates
    coded = quantise_keys(cache.paged.k, 4, SIZE)
    for request, length in enumerate(lengths):
        for block in range(-(-length // SIZE)):
            physical = int(fusion.layer.table.entries[request, block])
            read = result.k.view(3, -1, SIZE, HEADS, DIM)[request, block]
            source = coded if (block + 1) * SIZE <= length else cache.paged.k.float()
            expected = source[physical] * fusion.layer.k_scale[request, block]
            assert torch.equal(read, expected)
    # Groups of 16 tokens for keys, of 16 channels for values: 4 + 2 bits each.
    shape = replace(shape_of(lengths, 6.0), partial_scalars=0)
    partial = 2 * (50 % SIZE) * HEADS * DIM * 2
    assert float(result.bytes.sum()) == pytest.approx(
        float(cache_rate(shape, fusion.kept).fused_bytes) + partial
    )


def test_eviction_counts_tokens_and_positions() -> None:
    cache = layer([64, 40])
    result = compress(parse_method("evict0.5"), cache)
    assert result.hidden is not None
    assert result.hidden.shape == (2, HEADS, 64)
    seen = ~result.hidden
    assert [int(seen[0].sum()), int(seen[1, :, :40].sum())] == [HEADS * 32, HEADS * 20]
    assert float(result.bytes.sum()) == (HEADS * 32 + HEADS * 20) * (2 * DIM * 2 + 4)
    with pytest.raises(InputError, match="eviction needs the attention"):
        compress(parse_method("evict0.5"), replace(cache, received=None))


def test_methods_without_sharing_do_not_look_at_other_requests() -> None:
    both, alone = layer([64, 64]), layer([64, 64])
    alone.paged.k[4:] = 7.0
    for name in ("int8", "kivi2", "evict0.5"):
        results: list[CompressedLayer] = [compress(parse_method(name), cache) for cache in (both, alone)]
        assert torch.equal(results[0].k[0], results[1].k[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["int8", "kivi2", "exact+kivi2", "fusion", "evict0.5"])
def test_the_original_cache_is_left_as_it_is(name: str, dtype: torch.dtype) -> None:
    cache = layer([64, 41])
    paged = replace(cache.paged, k=cache.paged.k.to(dtype), v=cache.paged.v.to(dtype))
    before = paged.k.clone(), paged.v.clone()
    compress(replace(parse_method(name), threshold=0.5), replace(cache, paged=paged))
    assert torch.equal(paged.k, before[0])
    assert torch.equal(paged.v, before[1])
