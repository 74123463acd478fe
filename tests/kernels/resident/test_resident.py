"""Incremental use: one request after the other is what the batch is; and what is refused, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import generator
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import criteria, decided, layers, scales, thresholds
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.resident.cache import ResidentCache
from ratedist.kernels.resident.layer import ResidentLayer
from ratedist.kernels.resident.pool import BlockPool, PoolExhaustedError
from ratedist.kernels.restore import block_errors, restore_blocks

BLOCK, HEADS, DIM = 2, 1, 3


def resident(blocks: int = 8, *, block_size: int = BLOCK, **options: Any) -> ResidentLayer:
    dtype = options.pop("dtype", torch.float32)
    return ResidentLayer(
        BlockPool(blocks, block_size, HEADS, DIM, dtype=dtype), **{"threshold": 0.8} | options
    )


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, HEADS, DIM, generator=generator(seed))


def same(count: int, *values: float) -> Tensor:
    """Tokens that all hold the same vector."""
    return torch.tensor(values).expand(count, HEADS, DIM).clone()


def written(layer: PagedLayer) -> list[tuple[Tensor, Tensor]]:
    """(tokens, kv_heads, head_dim) keys and values of every request."""
    requests = []
    for entries, length in zip(layer.table.entries, layer.table.lengths.tolist(), strict=True):
        used = entries[: -(-length // layer.table.block_size)].long()
        requests.append((layer.k[used].flatten(0, 1)[:length], layer.v[used].flatten(0, 1)[:length]))
    return requests


def unshared(layer: PagedLayer) -> PagedLayer:
    """The same requests, each in blocks of its own."""
    table = layer.table
    used = torch.arange(table.entries.shape[1]) < table.used_blocks[:, None]
    entries = torch.full_like(table.entries, UNUSED)
    entries[used] = torch.arange(int(used.sum()), dtype=torch.int32)
    ids = table.entries[used].long()
    return PagedLayer(
        layer.k[ids], layer.v[ids], BlockTable(entries, table.lengths, table.domains, table.block_size)
    )


def representatives(layer: FusedLayer) -> Tensor:
    """(requests, max_blocks): flat logical index of the first block that reads each one's physical block."""
    first: dict[int, int] = {}
    flat = layer.table.entries.flatten().tolist()
    for logical, physical in enumerate(flat):
        first.setdefault(physical, logical)
    return torch.tensor([-1 if p == UNUSED else first[p] for p in flat]).view(layer.table.entries.shape)


@settings(max_examples=30)
@given(layers(ties=False), thresholds, criteria, scales, st.sampled_from([1, 2, 100]))
def test_fusing_as_requests_come_is_fusing_the_batch(
    layer: PagedLayer, threshold: float, criterion: str, scale: str, at_once: int
) -> None:
    assume(decided(layer, threshold, criterion))
    layer = unshared(layer)
    batch = fuse(layer, threshold=threshold, criterion=criterion, scale=scale)
    cache = ResidentLayer(
        BlockPool(max(1, layer.k.shape[0]), *layer.k.shape[1:], dtype=layer.k.dtype),
        threshold=threshold,
        criterion=criterion,
        scale=scale,
    )
    requests, candidates, waiting = [], 0, []
    for (k, v), domain in zip(written(layer), layer.table.domains.tolist(), strict=True):
        waiting.append(cache.admit(k, v, domain=domain))
        if len(waiting) == at_once:
            candidates += cache.fuse(waiting).candidates
            requests, waiting = requests + waiting, []
    candidates += cache.fuse().candidates
    one_by_one = cache.layer()
    width = one_by_one.table.entries.shape[1]
    max_blocks = layer.table.entries.shape[1]
    used = torch.arange(width) < layer.table.used_blocks[:, None]

    mapping = representatives(one_by_one)
    mapping = torch.where(used, mapping // max(1, width) * max_blocks + mapping % max(1, width), -1)
    assert torch.equal(mapping, batch.representative[:, :width])
    assert candidates == batch.candidates
    assert cache.pool.blocks - cache.pool.free_blocks == len(
        batch.layer.table.entries[:, :width][used].unique()
    )
    for name in ("k_scale", "v_scale"):
        torch.testing.assert_close(
            getattr(one_by_one, name)[used], getattr(batch.layer, name)[:, :width][used], rtol=1e-5, atol=1e-6
        )


@settings(max_examples=30)
@given(layers(), thresholds, criteria, scales)
def test_what_fusion_reports_is_what_is_read(
    layer: PagedLayer, threshold: float, criterion: str, scale: str
) -> None:
    cache = ResidentLayer(
        BlockPool(layer.k.shape[0] * 8, *layer.k.shape[1:], dtype=layer.k.dtype),
        threshold=threshold,
        criterion=criterion,
        scale=scale,
    )
    domains = layer.table.domains.tolist()
    for (k, v), domain in zip(written(layer), domains, strict=True):
        cache.admit(k, v, domain=domain)
    fusion = cache.fuse()
    fused = cache.layer()
    width = fused.table.entries.shape[1]
    table = layer.table
    entries = table.entries[:, :width].contiguous()
    original = PagedLayer(
        layer.k, layer.v, BlockTable(entries, table.lengths, table.domains, table.block_size)
    )
    k_error, v_error = block_errors(original, fused)
    reported = torch.zeros(2, *k_error.shape)
    last = {}
    for one in fusion.absorbed:
        again = (one.request, one.block) in last
        last[one.request, one.block] = one.representative
        assert one.exact or one.score > torch.tensor(threshold).float()
        if again:
            assert one.exact
            assert (one.k_error, one.v_error) == (0.0, 0.0)
        else:
            reported[0, one.request, one.block] = one.k_error
            reported[1, one.request, one.block] = one.v_error
    for (request, block), representative in last.items():
        assert int(fused.table.entries[request, block]) == representative
    torch.testing.assert_close(reported, torch.stack([k_error, v_error]), rtol=1e-5, atol=1e-6)
    # Nothing is left to fuse.
    twice = cache.fuse()
    assert (twice.candidates, twice.absorbed) == (0, ())


def test_a_representative_outlives_the_request_that_brought_it() -> None:
    cache = resident()
    block, scaled = tokens(BLOCK), 2 * tokens(BLOCK)
    first = cache.admit(block, block)
    second = cache.admit(scaled, scaled)
    fusion = cache.fuse()
    assert (fusion.candidates, fusion.kept, fusion.reclaimed) == (2, 1, 1)
    (one,) = fusion.absorbed
    assert (one.request, one.block, one.representative, one.exact) == (second, 0, 0, False)
    assert one.k_error < 1e-12
    assert cache.release(first) == 0
    assert cache.pool.references(0) == 1
    layer = cache.layer()
    assert layer.table.entries.tolist() == [[0]]
    assert float(layer.k_scale) == pytest.approx(2.0)
    torch.testing.assert_close(restore_blocks(layer.k, layer.table.entries[0], layer.k_scale[0])[0], scaled)
    # It still represents whoever comes next, and is free when its last member has left.
    third = cache.admit(scaled, block)
    assert cache.fuse([third]).reclaimed == 1
    assert [cache.release(second), cache.release(third)] == [0, 1]
    assert cache.pool.free_blocks == cache.pool.blocks
    # A block that is free again represents nothing.
    cache.admit(block, block)
    assert cache.fuse().kept == 1


def test_the_first_write_to_a_shared_partial_block_copies_it() -> None:
    cache = resident()
    prompt = tokens(3)
    first = cache.admit(prompt, prompt)
    second = cache.fork(first)
    assert cache.layer().table.entries.tolist() == [[0, 1], [0, 1]]
    assert cache.blocks_for(1, second) == 1
    cache.append(second, tokens(1, 5), tokens(1, 6))
    assert cache.layer().table.entries.tolist() == [[0, 1], [0, 2]]
    assert torch.equal(cache.pool.k[2], torch.cat((prompt[2:], tokens(1, 5))))
    assert torch.equal(cache.pool.v[1, :1], prompt[2:])
    # Alone with it now, the other writes in place.
    assert cache.blocks_for(1, first) == 0
    cache.append(first, tokens(1, 7), tokens(1, 8))
    assert cache.layer().table.entries.tolist() == [[0, 1], [0, 2]]


def test_no_copy_of_a_full_shared_block_nor_for_no_tokens() -> None:
    cache = resident()
    first = cache.admit(tokens(2), tokens(2))
    second = cache.fork(first)
    assert (cache.blocks_for(1, second), cache.blocks_for(0, second)) == (1, 0)
    cache.append(second, tokens(1), tokens(1))
    assert cache.layer().table.entries.tolist() == [[0, -1], [0, 1]]
    third = cache.fork(second)
    cache.append(third, tokens(0), tokens(0))
    assert cache.layer([third]).table.entries.tolist() == [[0, 1]]


def test_a_duplicate_follows_the_absorbed_block_whose_bytes_are_gone() -> None:
    cache = resident(threshold=0.5)
    first, member, closer = (same(BLOCK, *v) for v in ((1.0, 0.0, 0.0), (0.6, 0.8, 0.0), (0.0, 1.0, 0.0)))
    cache.admit(first, first)
    cache.admit(member, member)
    cache.admit(closer, closer)
    assert cache.fuse().reclaimed == 1
    # Nearer to the third block, but equal in every byte to one that the first absorbed: so does the batch.
    duplicate = cache.admit(member, member)
    (one,) = cache.fuse().absorbed
    assert (one.request, one.representative, one.exact) == (duplicate, 0, True)
    assert one.score == pytest.approx(0.6)
    assert one.k_error == pytest.approx(2 - 2 * 0.6, rel=1e-5)
    keys = torch.cat([first, member, closer, member]).view(4, BLOCK, HEADS, DIM)
    table = BlockTable(
        torch.arange(4, dtype=torch.int32)[:, None], torch.full((4,), BLOCK), torch.zeros(4).long(), BLOCK
    )
    batch = fuse(PagedLayer(keys, keys, table), threshold=0.5)
    assert torch.equal(batch.representative, representatives(cache.layer()))


def test_twins_of_one_request_join_when_another_brings_the_same() -> None:
    cache = resident(threshold=1.0)
    twice = tokens(BLOCK).repeat(2, 1, 1)
    first = cache.admit(twice, twice)
    assert cache.fuse().kept == 2
    second = cache.admit(tokens(BLOCK), tokens(BLOCK))
    fusion = cache.fuse()
    assert [(one.request, one.block, one.exact, one.k_error) for one in fusion.absorbed] == [
        (first, 1, True, 0.0),
        (second, 0, True, 0.0),
    ]
    assert cache.layer().table.entries.tolist() == [[0, 0], [0, -1]]
    assert (fusion.reclaimed, cache.pool.references(0)) == (2, 3)


def test_blocks_that_one_request_adds_later_do_not_match_its_own() -> None:
    cache = resident(threshold=0.5)
    request = cache.admit(tokens(BLOCK), tokens(BLOCK))
    cache.fuse()
    cache.append(request, 2 * tokens(BLOCK), tokens(BLOCK))
    assert cache.fuse().kept == 1
    assert cache.layer().table.entries.tolist() == [[0, 1]]


def test_domains_never_share() -> None:
    cache = resident(threshold=0.5)
    for domain in (0, 7):
        cache.admit(tokens(BLOCK), tokens(BLOCK), domain=domain)
    assert cache.fuse().kept == 2
    assert cache.domain(cache.fork(1)) == 7
    with pytest.raises(InputError, match=r"domain = 7: block 0 belongs to domain 0; domains never share"):
        cache.pool.share(0, 7)
    with pytest.raises(InputError, match=r"domain = 'a': must be an integer"):
        cache.admit(tokens(1), tokens(1), domain="a")  # type: ignore[arg-type]


def test_an_exhausted_pool_says_what_is_needed_and_changes_nothing() -> None:
    cache = resident(3)
    request = cache.admit(tokens(4), tokens(4))
    with pytest.raises(
        PoolExhaustedError, match=r"k = \(3, 1, 3\): needs 2 free blocks, 1 of 3 is free; release"
    ):
        cache.admit(tokens(3), tokens(3))
    cache.append(request, tokens(1), tokens(1))
    fork = cache.fork(request)
    with pytest.raises(PoolExhaustedError, match=r"needs 1 free block, 0 of 3 are free"):
        cache.append(fork, tokens(1), tokens(1))
    assert (cache.requests, cache.length(fork)) == ((request, fork), 5)
    with pytest.raises(PoolExhaustedError, match="needs 1 free block"):
        cache.pool.take(0)


def test_what_no_request_can_be_asked() -> None:
    cache = resident()
    request = cache.admit(tokens(3), tokens(3))
    cache.release(request)
    for call in (
        lambda r: cache.release(r),
        lambda r: cache.append(r, tokens(1), tokens(1)),
        lambda r: cache.fork(r),
        lambda r: cache.fuse([r]),
        lambda r: cache.layer([r]),
        lambda r: cache.length(r),
        lambda r: cache.blocks_for(1, r),
    ):
        with pytest.raises(InputError, match=r"request = 0: was released before"):
            call(request)
        with pytest.raises(InputError, match=r"request = 9: is unknown; admit returns the numbers"):
            call(9)


def test_tokens_that_no_request_can_hold() -> None:
    cache = resident(dtype=torch.float16)
    good = tokens(2).half()
    bad = good.clone()
    bad[1, 0, 2] = float("inf")
    request = cache.admit(good, good)
    for k, v, message in (
        (good.float(), good, r"k = 'torch.float32': must have the dtype of the pool, torch.float16"),
        (good, good[..., :2], r"v = \(2, 1, 2\): must have shape \(tokens, 1, 3\)"),
        (good[0], good, r"k = \(1, 3\): must have shape"),
        (good, good[:1], r"v = \(1, 1, 3\): must have the shape of k, \(2, 1, 3\)"),
        (good, bad, r"v = inf: token 1 holds NaN or infinity"),
        (good.to("meta"), good, r"k = 'meta': must be on cpu like the pool"),
        (good, None, r"v = 'NoneType': must be a tensor"),
    ):
        with pytest.raises(InputError, match=message):
            cache.admit(k, v)
        with pytest.raises(InputError, match=message):
            cache.append(request, k, v)
    assert cache.pool.free_blocks == 7


def test_a_norm_beyond_float32_is_refused_before_anything_changes() -> None:
    cache = resident(threshold=0.5)
    cache.admit(tokens(BLOCK), tokens(BLOCK))
    cache.admit(tokens(BLOCK), tokens(BLOCK))
    cache.admit(tokens(BLOCK), same(BLOCK, 1e30, 0.0, 0.0))
    with pytest.raises(InputError, match=r"v = 1.4.*e\+30: request 2, block 0 has a norm whose square"):
        cache.fuse()
    assert cache.pool.free_blocks == 5


def test_the_raw_path_never_writes_what_is_shared_or_free() -> None:
    pool = BlockPool(2, BLOCK, HEADS, DIM)
    block = pool.take(0)
    pool.write(block, 1, tokens(1), tokens(1))
    assert torch.equal(pool.k[block, 1:], tokens(1))
    pool.share(block, 0)
    before = pool.k.clone()
    with pytest.raises(
        InputError, match=r"block = 0: is shared by 2 entries of block tables and must not be wr"
    ):
        pool.write(block, 0, tokens(1), tokens(1))
    with pytest.raises(InputError, match=r"block = 0: is shared"):
        pool.copy(block, block)
    assert torch.equal(pool.k, before)
    assert [pool.drop(block), pool.drop(block)] == [False, True]
    for call in (
        lambda: pool.drop(block),
        lambda: pool.share(block, 0),
        lambda: pool.write(block, 0, tokens(1), tokens(1)),
    ):
        with pytest.raises(InputError, match=r"block = 0: is free: no block table names it"):
            call()
    with pytest.raises(InputError, match=r"block = -1: must be one of the pool's 2 blocks"):
        pool.references(-1)
    block = pool.take(0)
    for slot, bad in ((-1, -1), (1, 2)):
        with pytest.raises(InputError, match=rf"slot = {bad}: lies outside a block of 2 tokens"):
            pool.write(block, slot, tokens(2), tokens(2))
    with pytest.raises(InputError, match=r"1 blocks, 2 slots': must be as many as tokens, 2"):
        pool.write_tokens([block], [0, 1], tokens(2), tokens(2))


def test_pools_and_caches_that_cannot_be() -> None:
    for size, name in enumerate(("blocks", "block_size", "kv_heads", "head_dim")):
        sizes: list[Any] = [1, 1, 1, 1]
        for sizes[size] in (0, 1.5, True):
            with pytest.raises(InputError, match=f"{name} = .*: must be an integer of at least 1"):
                BlockPool(*sizes)
    with pytest.raises(InputError, match=r"dtype = 'torch.int8': must be float32, float16 or bfloat16"):
        BlockPool(1, 1, 1, 1, dtype=torch.int8)
    with pytest.raises(InputError, match=r"pool = 'int': must be a BlockPool"):
        ResidentLayer(3, threshold=0.5)  # type: ignore[arg-type]
    for options, message in (
        ({"threshold": 1.5}, "threshold = 1.5"),
        ({"criterion": "values"}, "criterion = 'values'"),
        ({"scale": "none"}, "scale = 'none'"),
        ({"backend": "reference"}, "backend = 'reference'"),
    ):
        with pytest.raises(InputError, match=message):
            resident(**options)
    used = BlockPool(2, 1, 1, 1)
    used.take(0)
    with pytest.raises(InputError, match=r"pool = '1 blocks in use': must be all free"):
        ResidentLayer(used, threshold=0.5)


def test_layers_fuse_by_themselves_and_refuse_together() -> None:
    layers_of = [resident(threshold=0.5), resident(3, threshold=0.5)]
    cache = ResidentCache(layers_of)
    block, other = same(BLOCK, 1.0, 0.0, 0.0), same(BLOCK, 0.0, 1.0, 0.0)
    first = cache.admit([block, block], [block, block])
    second = cache.admit([2 * block, other], [block, block])
    assert [fusion.kept for fusion in cache.fuse()] == [1, 2]
    assert cache.layer(0).table.entries.tolist() == [[0], [0]]
    assert cache.layer(1).table.entries.tolist() == [[0], [1]]
    before = [layer.pool.free_blocks for layer in cache.layers]
    with pytest.raises(PoolExhaustedError, match="needs 2 free blocks, 1 of 3 is free"):
        cache.append(first, [tokens(3)] * 2, [tokens(3)] * 2)
    with pytest.raises(InputError, match=r"k = '1 tensors': must hold one per layer, 2"):
        cache.admit([block], [block, block])
    with pytest.raises(InputError, match=r"must hold 2 tokens in every layer"):
        cache.admit([block, tokens(1)], [block, tokens(1)])
    with pytest.raises(InputError, match=r"token 0 holds NaN"):
        cache.append(second, [block, block * float("nan")], [block, block])
    with pytest.raises(InputError, match=r"request = 5: is unknown"):
        cache.fuse([5])
    assert before == [layer.pool.free_blocks for layer in cache.layers]
    assert cache.requests == (first, second)
    third = cache.fork(second)
    cache.append(first, [tokens(1)] * 2, [tokens(1)] * 2)
    assert [layer.length(first) for layer in cache.layers] == [3, 3]
    assert cache.release(third) == (0, 0)
    assert cache.release(first) == (1, 2)
    assert cache.release(second) == (1, 1)
    for bad, message in (
        ([], "must hold at least one ResidentLayer"),
        ([layers_of[0], layers_of[0]], "must hold each layer once"),
        ([resident(), layers_of[0]], "layers = 1: must not have had requests of its own"),
    ):
        with pytest.raises(InputError, match=message):
            ResidentCache(bad)


def test_layers_may_share_a_pool() -> None:
    """Two layers draw on 5 blocks; what both need together is what counts, and each reads its own."""
    pool = BlockPool(5, BLOCK, HEADS, DIM)
    cache = ResidentCache([ResidentLayer(pool, threshold=0.9) for _ in range(2)])
    k = [tokens(4, 0), tokens(4, 1)]
    request = cache.admit(k, k)
    assert pool.free_blocks == 1
    with pytest.raises(PoolExhaustedError, match=r"needs 2 free blocks, 1 of 5 is free"):
        cache.append(request, [tokens(1)] * 2, [tokens(1)] * 2)
    with pytest.raises(PoolExhaustedError, match=r"needs 2 free blocks, 1 of 5 is free"):
        cache.require([request], [1])
    for index in range(2):
        layer = cache.layer(index)
        assert torch.equal(
            restore_blocks(pool.k, layer.table.entries[0], layer.k_scale[0]).flatten(0, 1), k[index]
        )
    cache.fuse()
    again = cache.admit([k[1][:0]] * 2, [k[1][:0]] * 2)
    assert cache.fork(request, 1) == again + 1
    assert [layer.length(again + 1) for layer in cache.layers] == [BLOCK, BLOCK]
    cache.require([request, again], [0, 0])
    assert sum(cache.release(again + 1)) == 0
    assert sum(cache.release(request)) == 4


def test_a_request_is_written_layer_by_layer() -> None:
    cache = ResidentCache([resident(), resident()])
    request, other = cache.open(domain=3), cache.open()
    cache.require([request, other], [3, 1])
    for index, layer in enumerate(cache.layers):
        new = tokens(4, index)
        layer.extend([request, other], [3, 1], new, 2 * new)
        for part, factor in (("k", 1), ("v", 2)):
            read = getattr(layer.pool, part)[layer.layer().table.entries.long()].flatten(1, 2)
            assert torch.equal(read[0, :3], factor * new[:3])
            assert torch.equal(read[1, :1], factor * new[3:])
    assert cache.layers[1].domain(request) == 3


def test_extending_several_is_refused_whole() -> None:
    layer = resident()
    first, second = layer.admit(tokens(3), tokens(3)), layer.admit(tokens(1), tokens(1))
    free = layer.pool.free_blocks
    for requests, counts, message in (
        ([first, first], [1, 1], "must be different"),
        ([first, second], [1, 2], "must say for each request how many of the 2"),
        ([first, second], [2], "must say for each request how many of the 2"),
        ([first, second], [3, -1], "must say for each request how many of the 2"),
        ([first, 9], [1, 1], "is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            layer.extend(requests, counts, tokens(2), tokens(2))
    with pytest.raises(InputError, match=r"blocks = 2: request 0 has 1 full blocks"):
        layer.fork(first, 2)
    assert (layer.pool.free_blocks, layer.length(first), layer.length(second)) == (free, 3, 1)


def test_attention_reads_the_resident_layer_on_every_backend() -> None:
    cache = resident(16, threshold=0.5, block_size=4)
    for seed in range(3):
        block = torch.cat((tokens(4), tokens(5, seed)))
        cache.admit(block, block)
    assert cache.fuse().reclaimed >= 2
    q = torch.randn(3, 2 * HEADS, DIM, generator=generator(3))
    expected = paged_decode_attention(q, cache.layer(), backend="reference")[0]
    for backend in ("cpu", "triton"):
        torch.testing.assert_close(
            paged_decode_attention(q, cache.layer(), backend=backend)[0], expected, rtol=2e-5, atol=2e-5
        )
    assert cache.layer().k.data_ptr() == cache.pool.k.data_ptr()
    assert resident().layer().table.entries.shape == (0, 0)


def test_the_triton_matcher_gives_the_same_cache() -> None:
    tables = []
    for backend in ("cpu", "triton"):
        cache = resident(8, threshold=0.5, backend=backend)
        for seed in (0, 1, 0):
            cache.admit(tokens(4, seed), tokens(4, seed))
        cache.fuse()
        tables.append(cache.layer().table.entries.tolist())
    assert tables[0] == tables[1]


def test_a_request_shares_its_own_bytes_once_another_has_brought_them() -> None:
    cache = resident(threshold=0.5)
    first = cache.admit(tokens(BLOCK), tokens(BLOCK))
    cache.fuse()
    cache.append(first, tokens(BLOCK), tokens(BLOCK))
    assert cache.fuse().kept == 1
    assert cache.layer().table.entries.tolist() == [[0, 1]]
    cache.admit(tokens(BLOCK), tokens(BLOCK))
    cache.fuse()
    assert cache.layer().table.entries.tolist() == [[0, 0], [0, -1]]
    cache.append(first, tokens(BLOCK), tokens(BLOCK))
    (one,) = cache.fuse().absorbed
    assert (one.request, one.block, one.exact) == (first, 2, True)


def test_equal_keys_with_other_values_are_no_duplicates() -> None:
    cache = resident(threshold=1.0)
    cache.admit(tokens(BLOCK), tokens(BLOCK))
    cache.admit(tokens(BLOCK), tokens(BLOCK, 1))
    assert cache.fuse().kept == 2
