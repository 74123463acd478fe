"""Benchmark of the search by hashing: time, and which of the near-duplicates planted in a pool it finds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.kernels.search.leader import Hashing, choose_hashing, fuse_hashed

__all__ = ["COMMON", "Planted", "bench_search", "planted_layer"]

COMMON = {"isotropic": 0.0, "mean": 0.45}
"""Similarity of unrelated blocks: none, and what a mean direction leaves that all blocks share."""

_COPIES = 0.1
_SPREAD = (0.7, 1.0)
_BELOW_COPIES = 0.65
_BLOCKS_PER_REQUEST = 64
_BLOCK_SIZE = 16
_GENERATED = 1 << 14
_FLOOR_TILE = (8192, 512)


@dataclass(frozen=True)
class Planted:
    """A layer of unrelated blocks, some of which have one near-duplicate in a later request.

    Attributes:
        layer: keys and values in a shuffled pool, float32, norms lognormal.
        copy: (m,) int64 flat logical index of the later block of each pair.
        source: (m,) int64 the earlier one; no block is in two pairs.
        similarity: (m,) float32 similarity of each pair without the common mean, even over [0.7, 1).
        threshold: cosine with the mean that every pair exceeds and unrelated blocks do not.
    """

    layer: PagedLayer
    copy: Tensor
    source: Tensor
    similarity: Tensor
    threshold: float


def planted_layer(blocks: int, dim: int, *, common: float, seed: int) -> Planted:
    """Blocks x = |x|·(√c·m + √(1 − c)·u): a mean direction m, and uniform directions u at right angles to it.

    A tenth of the blocks are copies in the second half of the requests of one in the first, with directions
    u′ = s·u + √(1 − s²)·w, w at right angles to u: their cosine is c + (1 − c)·s.

    Args:
        blocks: blocks in all, a multiple of 128.
        dim: scalars of a block's keys, a multiple of 16.
        common: c.
        seed: seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def unit(x: Tensor, *across: Tensor) -> Tensor:
        for other in across:
            x = x - (x * other).sum(-1, keepdim=True) * other
        return x / x.norm(dim=-1, keepdim=True)

    mean = unit(normal(dim))
    slots = torch.randperm(blocks, generator=generator)
    pairs = int(_COPIES * blocks)
    half = blocks // 2
    source = torch.randperm(half, generator=generator)[:pairs]
    copy = half + torch.randperm(half, generator=generator)[:pairs]
    low, high = _SPREAD
    similarity = low + (high - low) * torch.rand(pairs, generator=generator)
    k = torch.empty(blocks, dim)
    v = torch.empty(blocks, dim)
    for part in torch.arange(blocks).split(_GENERATED):
        k[slots[part]] = unit(normal(len(part), dim), mean)
        v[slots[part]] = normal(len(part), dim)
    for part in torch.arange(pairs).split(_GENERATED):
        u, s = k[slots[source[part]]], similarity[part, None]
        k[slots[copy[part]]] = s * u + (1 - s**2).sqrt() * unit(normal(len(part), dim), mean, u)
    for part in torch.arange(blocks).split(_GENERATED):
        norm = (0.2 * normal(len(part), 1)).exp()
        k[part] = norm * (common**0.5 * mean + (1 - common) ** 0.5 * k[part])
    requests = blocks // _BLOCKS_PER_REQUEST
    shape = (blocks, _BLOCK_SIZE, 1, dim // _BLOCK_SIZE)
    layer = PagedLayer(
        k.view(shape),
        v.view(shape),
        BlockTable(
            slots.view(requests, _BLOCKS_PER_REQUEST).int(),
            torch.full((requests,), _BLOCKS_PER_REQUEST * _BLOCK_SIZE, dtype=torch.int64),
            torch.zeros(requests, dtype=torch.int64),
            _BLOCK_SIZE,
        ),
    )
    return Planted(layer, copy, source, similarity, common + (1 - common) * _BELOW_COPIES)


def bench_search(
    *,
    blocks: int = 100_000,
    dim: int = 256,
    recall: float = 0.9,
    similarity: float = 0.9,
    draws: int = 1,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure ``fuse_hashed`` on pools of ``blocks`` / 10 and ``blocks``, isotropic and with a mean of 0.45.

    Tables and bits are chosen for each size (``choose_hashing``), and are the same with and without the
    mean. The floor is the products of all blocks with all hyperplanes, as matrix products of contiguous
    blocks. A pair counts as found where the copy is absorbed by its source in the fusion.

    Args:
        blocks: blocks of the larger pool; pools are rounded down to a multiple of 128, at least 128.
        dim: scalars of a block's keys, a multiple of 16.
        recall: chance that is asked for.
        similarity: at this similarity.
        draws: draws of the hyperplanes; seconds are the least of them, pairs are those of all.
        seed: seed of the pools; draw i hashes with the seed ``seed`` + i.

    Returns:
        Rows, each measured when it is asked for: ``name, seconds, cpu_seconds`` (of all threads),
        ``floor_seconds, ratio, blocks, dim, common, tables, bits, draws, compared, kept, false`` (absorbed by
        another block than its source), ``similarity`` (m,) and ``found`` (m,) shares of the draws, as
        tensors, and ``exponent`` of time between the two sizes (None in the row of the smaller).

    Raises:
        InputError: an argument outside what is listed.
    """
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1280:
        raise InputError("blocks", blocks, "must be a whole number, at least 1280")
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < _BLOCK_SIZE or dim % _BLOCK_SIZE:
        raise InputError("dim", dim, f"must be a multiple of {_BLOCK_SIZE}")
    if draws < 1:
        raise InputError("draws", draws, "must be at least 1")
    sizes = [size // 128 * 128 for size in (blocks // 10, blocks)]
    hashings = [choose_hashing(recall, similarity, size, dim=dim, seed=seed) for size in sizes]

    def measure() -> Iterator[dict[str, Any]]:
        for name, common in COMMON.items():
            smaller: dict[str, Any] | None = None
            for size, hashing in zip(sizes, hashings, strict=True):
                row = {"name": f"search/{name}/{size}", **_measure(size, dim, common, hashing, draws, seed)}
                row["exponent"] = None
                if smaller is not None:
                    row["exponent"] = _exponent(smaller, row)
                yield row
                smaller = row

    # Checked above and at once; measured as the rows are asked for.
    return measure()


def _measure(blocks: int, dim: int, common: float, hashing: Hashing, draws: int, seed: int) -> dict[str, Any]:
    planted = planted_layer(blocks, dim, common=common, seed=seed)
    found = torch.zeros(len(planted.copy))
    seconds, cpu_seconds, compared, false, kept = [], [], 0, 0, 0
    for draw in range(draws):
        drawn = Hashing(hashing.tables, hashing.bits, seed + draw)
        start, start_processor = time.perf_counter(), time.process_time()
        fusion = fuse_hashed(planted.layer, threshold=planted.threshold, hashing=drawn)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_processor)
        hit = fusion.representative.flatten()[planted.copy] == planted.source
        found += hit
        compared += fusion.compared
        false += fusion.absorbed - int(hit.sum())
        kept += fusion.kept
    floor = _floor(planted.layer.k.view(blocks, dim), hashing)
    return {
        "seconds": min(seconds),
        "cpu_seconds": min(cpu_seconds),
        "floor_seconds": floor,
        "ratio": min(seconds) / floor,
        "blocks": blocks,
        "dim": dim,
        "common": common,
        "tables": hashing.tables,
        "bits": hashing.bits,
        "draws": draws,
        "compared": compared / draws,
        "kept": kept / draws,
        "false": false / draws,
        "similarity": planted.similarity,
        "found": found / draws,
    }


def _floor(rows: Tensor, hashing: Hashing) -> float:
    """Seconds of the products of all blocks with all hyperplanes alone."""
    tall, wide = _FLOOR_TILE
    planes = hashing.tables * hashing.bits
    drawn = torch.randn(rows.shape[1], min(wide, planes))
    out = torch.empty(min(tall, len(rows)), drawn.shape[1])
    start = time.perf_counter()
    for first in range(0, planes, wide):
        width = min(wide, planes - first)
        for part in rows.split(tall):
            torch.mm(part, drawn[:, :width], out=out.view(-1)[: len(part) * width].view(len(part), width))
    return time.perf_counter() - start


def _exponent(smaller: dict[str, Any], larger: dict[str, Any]) -> float:
    seconds = torch.tensor([smaller["seconds"], larger["seconds"]], dtype=torch.float64).log()
    blocks = torch.tensor([smaller["blocks"], larger["blocks"]], dtype=torch.float64).log()
    return float((seconds[1] - seconds[0]) / (blocks[1] - blocks[0]))
