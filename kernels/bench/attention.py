"""Benchmark of attention: beside its floor, and beside PyTorch's own on the dense, unfused cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.attention.operations import paged_attention
from ratedist.kernels.bench.arguments import check_at_least, check_dtypes, check_known, usable_device
from ratedist.kernels.bench.floors import Floors, best_seconds, measure_floors
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.quantised import QuantisedLayer, quantise
from ratedist.kernels.triton_support import choose_backend

__all__ = ["CACHES", "KINDS", "bench_attention", "random_cache"]

KINDS = ("decode", "prefill")
CACHES = ("unfused", "fused", "int8", "int4")
"""What is attended over; "fused" and the quantised ones share blocks ``compression`` times."""

_CHUNK = 128
"""Queries per request in a chunk of prefill."""


def random_cache(
    requests: int,
    tokens: int,
    *,
    compression: float,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    block_size: int = 16,
) -> tuple[PagedLayer, FusedLayer]:
    """A random cache in a shuffled pool, and one of the same shape in which blocks are shared at random.

    Args:
        requests: of equal length.
        tokens: per request.
        compression: logical over physical blocks of the fused one; at least 1.
        kv_heads: KV heads.
        head_dim: scalars per head.
        dtype: of the pool.
        device: where.
        seed: of every draw.
        block_size: tokens per block.
    """
    generator = torch.Generator(device).manual_seed(seed)
    width = -(-tokens // block_size)
    blocks = requests * width
    shape = (blocks, block_size, kv_heads, head_dim)
    k, v = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    lengths = torch.full((requests,), tokens, dtype=torch.int64, device=device)
    own = torch.randperm(blocks, generator=generator, device=device).view(requests, width)
    kept = max(1, round(blocks / compression))
    shared = own.flatten()[torch.randint(kept, (blocks,), generator=generator, device=device)]
    scale = 0.5 + torch.rand(2, requests, width, generator=generator, device=device)

    def table(entries: Tensor) -> BlockTable:
        return BlockTable(entries.int(), lengths, torch.zeros_like(lengths), block_size)

    fused = FusedLayer(k, v, table(shared.view(requests, width)), scale[0], scale[1])
    return PagedLayer(k, v, table(own)), fused


def bench_attention(
    *,
    kinds: tuple[str, ...] = KINDS,
    caches: tuple[str, ...] = CACHES,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    requests: int = 16,
    tokens: int = 1024,
    kv_heads: int = 3,
    group: int = 3,
    head_dim: int = 64,
    compression: float = 2.0,
    backend: str = "auto",
    device: str = "cpu",
    repeats: int = 5,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure attention over one layer, one row per dtype, kind and cache.

    The floor is the bytes that must move (every physical block that the table names once, the queries and
    the results) over the bandwidth of a copy, or the operations over the rate of a large matrix product,
    whichever is more, both measured in this run. The comparison is PyTorch's scaled dot product
    attention on dense keys and values of the unfused cache; fused caches read as many logical tokens.

    Args:
        kinds: of ``KINDS``; prefill is a chunk of 128 queries per request at the end of the cache.
        caches: of ``CACHES``.
        dtypes: of queries and cache.
        requests: requests of equal length.
        tokens: per request.
        kv_heads: KV heads.
        group: query heads per KV head.
        head_dim: scalars per head.
        compression: of the caches that share.
        backend: of ``ratedist.kernels.attention.operations.BACKENDS`` without "reference".
        device: where.
        repeats: runs of which the least counts.
        seed: of the data.

    Returns:
        Rows, each measured when it is asked for: ``name, kind, cache, dtype, backend, device, seconds,
        floor_seconds, ratio, torch_seconds, torch_ratio, bytes, operations, bandwidth, matrix_rate``.

    Raises:
        InputError: an argument outside what is listed.
    """
    check_at_least(1, requests=requests, tokens=tokens, repeats=repeats, compression=compression)
    check_at_least(1, kv_heads=kv_heads, group=group, head_dim=head_dim)
    check_known("kind", kinds, KINDS)
    check_known("cache", caches, CACHES)
    check_dtypes(dtypes)
    if backend == "reference":
        raise InputError("backend", backend, "is not measured: it loops over tokens and heads by design")
    place = usable_device(device)
    chosen = choose_backend(backend, place)

    def measure() -> Iterator[dict[str, Any]]:
        for name in dtypes:
            dtype: torch.dtype = getattr(torch, name)
            floors = measure_floors(place, dtype)
            plain, fused = random_cache(
                requests,
                tokens,
                compression=compression,
                kv_heads=kv_heads,
                head_dim=head_dim,
                dtype=dtype,
                device=place,
                seed=seed,
            )
            for kind in kinds:
                queries = 1 if kind == "decode" else min(_CHUNK, tokens)
                generator = torch.Generator(place).manual_seed(seed + 1)
                q = torch.randn(
                    requests * queries, kv_heads * group, head_dim, generator=generator, device=place
                ).to(dtype)
                for cache in caches:
                    layer: PagedLayer | FusedLayer | QuantisedLayer = plain if cache == "unfused" else fused
                    if cache.startswith("int"):
                        layer = quantise(fused, int(cache[3:]))
                    row = _measure(q, layer, plain, queries, floors, chosen, repeats)
                    yield {
                        "name": f"attention/{kind}/{cache}/{name}",
                        "kind": kind,
                        "cache": cache,
                        "dtype": name,
                        "backend": chosen,
                        "device": str(place),
                        **row,
                    }

    return measure()


def _measure(
    q: Tensor,
    layer: PagedLayer | FusedLayer | QuantisedLayer,
    plain: PagedLayer,
    queries: int,
    floors: Floors,
    backend: str,
    repeats: int,
) -> dict[str, Any]:
    requests, device = plain.table.requests, q.device
    tokens = int(plain.table.lengths[0])
    heads, head_dim = q.shape[1:]
    counts = torch.full((requests,), queries, dtype=torch.int64, device=device)
    # (requests, heads, tokens, head_dim)
    dense = [
        pool[plain.table.entries.long()].flatten(1, 2)[:, :tokens].transpose(1, 2).contiguous()
        for pool in (plain.k, plain.v)
    ]
    q_dense = q.view(requests, queries, heads, head_dim).transpose(1, 2).contiguous()
    mask = None
    if queries > 1:
        position = torch.arange(tokens, device=device)
        mask = position[None, :] <= position[tokens - queries :, None]

    def run() -> object:
        return paged_attention(q, layer, counts, backend=backend)

    def run_torch() -> object:
        return torch.nn.functional.scaled_dot_product_attention(
            q_dense, dense[0], dense[1], attn_mask=mask, enable_gqa=True
        )

    seconds = torch_seconds = float("inf")
    for _ in range(repeats):
        # In turn, so that what else the machine does falls on both.
        seconds = min(seconds, best_seconds(run, device, 1))
        torch_seconds = min(torch_seconds, best_seconds(run_torch, device, 1))
    read = _stored_bytes(layer) + 2 * q.numel() * q.element_size()
    context = queries * tokens - queries * (queries - 1) // 2
    operations = 4 * requests * context * heads * head_dim
    floor = floors.seconds(read, operations)
    return {
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "torch_seconds": torch_seconds,
        "torch_ratio": seconds / torch_seconds,
        "bytes": read,
        "operations": operations,
        "bandwidth": floors.bandwidth,
        "matrix_rate": floors.matrix_rate,
    }


def _stored_bytes(layer: PagedLayer | FusedLayer | QuantisedLayer) -> int:
    """Bytes of keys and values of the physical blocks that the table names, each once."""
    if isinstance(layer, QuantisedLayer):
        tails = layer.k_tail.numel() + layer.v_tail.numel()
        return layer.k.nbytes + layer.v.nbytes + tails * layer.k_tail.element_size()
    return 2 * len(torch.unique(layer.table.entries)) * layer.k[:1].numel() * layer.k.element_size()
