"""Benchmark of fusion: its time beside the similarity products that it cannot do without, and its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.bench.allocations import peak_extra_bytes
from ratedist.kernels.bench.arguments import check_at_least, check_known, usable_device
from ratedist.kernels.bench.floors import seconds_of
from ratedist.kernels.fusion.driver import fuse_with
from ratedist.kernels.fusion.fuse import Fusion, check_options, fuse, matcher_of
from ratedist.kernels.fusion.matching import Centring, Matcher, Turns
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.scoring import Scoring
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.kernels.triton_support import choose_backend

__all__ = [
    "DATASETS",
    "DEFAULT_DATASETS",
    "MEASURED",
    "THRESHOLDS",
    "bench_fusion",
    "needed_products",
    "replay",
    "synthetic_layer",
]

MEASURED = ("leader", "tree")
"""Variants that score every pair once at most, as the floor does."""

THRESHOLDS = (0.6, 0.75, 0.9)
DATASETS = {
    "fusing": ((0.4, 0.2, 0.6), (0.6, 0.75, 0.98)),
    "apart": ((1.0, 0.2, 0.55),),
    "dense": ((1.0, 0.6, 0.98),),
}
"""Cosine between a block's keys and the mean of its position: (share of the blocks, lowest, highest).

Two blocks at one position with cosines a and b have similarity a·b to within a few 1/√r, and at
different positions ``_SHARED`` times that; so a block is absorbed once a representative near enough to
the mean has come. In "fusing" some blocks are generic and some are nobody's like; in "apart" no score
exceeds 0.31; in "dense" all are generic, so that at low thresholds few products are left to hide the
passes over the layer (norms, exact duplicates, gathering) behind.
"""

DEFAULT_DATASETS = ("fusing", "apart")

_SHARED = 0.8
_REPLAY_TILE = 2048


def synthetic_layer(
    requests: int,
    blocks: int,
    *,
    cosines: Sequence[tuple[float, float, float]],
    seed: int,
    block_size: int = 16,
    kv_heads: int = 3,
    head_dim: int = 64,
    device: str | torch.device = "cpu",
) -> PagedLayer:
    """A float32 layer whose keys share a mean and a mean per position, in a shuffled pool.

    Args:
        requests: requests, all in one domain.
        blocks: full blocks per request.
        cosines: as in ``DATASETS``.
        seed: seed of the draw.
        block_size: tokens per block.
        kv_heads: KV heads.
        head_dim: scalars per head.
        device: where the layer lies.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dim = block_size * kv_heads * head_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    common, own = unit(normal(dim)), unit(normal(blocks, dim))
    means = _SHARED**0.5 * common + (1 - _SHARED) ** 0.5 * own
    count = requests * blocks
    slots = torch.randperm(count, generator=generator, device=device)
    k = torch.empty(count, dim, device=device)
    share, low, high = torch.tensor(cosines, device=device).T
    for request in range(requests):
        kind = torch.multinomial(share, blocks, replacement=True, generator=generator)[:, None]
        spread = torch.rand(blocks, 1, generator=generator, device=device)
        cosine = low[kind] + (high - low)[kind] * spread
        direction = cosine * means + (1 - cosine**2).sqrt() * unit(normal(blocks, dim))
        norm = (0.2 * normal(blocks, 1)).exp()
        k[slots[request * blocks : (request + 1) * blocks]] = norm * direction
    v = normal(count, dim)
    shape = (count, block_size, kv_heads, head_dim)
    return PagedLayer(
        k.view(shape),
        v.view(shape),
        BlockTable(
            slots.view(requests, blocks).int(),
            torch.full((requests,), blocks * block_size, dtype=torch.int64, device=device),
            torch.zeros(requests, dtype=torch.int64, device=device),
            block_size,
        ),
    )


class _Counting:
    """A matcher that notes the shape of every call and lets another one do the work."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self.shapes: list[tuple[int, int]] = []

    def block_norms(self, pool: Tensor) -> Tensor:
        return self._matcher.block_norms(pool)

    def gather_blocks(self, pool: Tensor, ids: Tensor) -> Tensor:
        return self._matcher.gather_blocks(pool, ids)

    def lowest_label(
        self, scoring: Scoring, ids: Tensor, units: Tensor, labels: Tensor, limit: float
    ) -> Tensor:
        return self._matcher.lowest_label(scoring, ids, units, labels, limit)

    def matched_blocks(
        self, pool: Tensor, ids: Tensor, turns: Turns | None, centring: Centring | None
    ) -> Tensor:
        return self._matcher.matched_blocks(pool, ids, turns, centring)

    def group_means(
        self, pool: Tensor, ids: Tensor, turns: Turns | None, group: Tensor, groups: int
    ) -> Tensor:
        return self._matcher.group_means(pool, ids, turns, group, groups)

    def best_match(self, scoring: Scoring, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append((len(rows), len(cols)))
        return self._matcher.best_match(scoring, rows, cols)


def needed_products(
    matcher: Matcher, layer: PagedLayer, threshold: float, variant: str, criterion: str = "keys"
) -> list[tuple[int, int]]:
    """(rows, columns) of every product of similarities in a real run of this fusion.

    In sum over the products, rows × columns is the number of scores that the definition asks for: of
    every distinct block against the blocks kept of earlier units (leader), or kept on the left of its
    nodes (tree). No score is computed twice and none is spared.
    """
    counting = _Counting(matcher)
    fuse_with(counting, layer, FuseOptions(threshold, variant, criterion))
    return counting.shapes


def replay(layer: PagedLayer, shapes: list[tuple[int, int]], criterion: str = "keys") -> None:
    """The floor: the products of these shapes alone, as matrix products of contiguous parts of the pool.

    Nothing is gathered, scaled or compared. Products larger than 2048 × 2048 are cut, for their result
    need not be held whole; smaller tiles, or one product per unit, would be slower and the floor softer.
    """
    pools = (layer.k,) if criterion == "keys" else (layer.k, layer.v)
    out = torch.empty(_REPLAY_TILE * _REPLAY_TILE, device=layer.k.device)
    for pool in pools:
        flat = pool.view(pool.shape[0], -1)
        for rows, cols in shapes:
            # The rows come after the columns in a real run, and in logical order would lie there.
            left, right = flat[len(flat) - rows :], flat[:cols]
            for a in left.split(_REPLAY_TILE):
                for b in right.split(_REPLAY_TILE):
                    torch.mm(a, b.T, out=out[: len(a) * len(b)].view(len(a), len(b)))


def bench_fusion(
    *,
    requests: int = 128,
    blocks: int = 64,
    thresholds: tuple[float, ...] = THRESHOLDS,
    variants: tuple[str, ...] = MEASURED,
    datasets: tuple[str, ...] = DEFAULT_DATASETS,
    backend: str = "auto",
    device: str = "cpu",
    repeats: int = 3,
    seed: int = 0,
    block_size: int = 16,
    kv_heads: int = 3,
    head_dim: int = 64,
) -> Iterator[dict[str, Any]]:
    """Measure fusion of one synthetic float32 layer, one row per data set, variant and threshold.

    Fusion and its floor (``replay`` of ``needed_products``) run in turn, ``repeats`` times each, and the
    least of each counts. Memory is counted in a run of its own (``peak_extra_bytes``).

    Args:
        requests: requests of the batch; at least 2.
        blocks: full blocks per request.
        thresholds: thresholds to measure at.
        variants: of ``MEASURED``.
        datasets: names in ``DATASETS``.
        backend: of ``ratedist.kernels.fusion.fuse.BACKENDS`` without "reference", which holds whole matrices.
        device: where the layer lies.
        repeats: runs to take the minimum of.
        seed: seed of the layer.
        block_size: tokens per block.
        kv_heads: KV heads.
        head_dim: scalars per head.

    Returns:
        Rows, each measured when it is asked for: ``name, dataset, variant, threshold, backend, device,
        seconds, floor_seconds, ratio, extra_bytes, extra_share`` (of the bytes of the layer's keys and
        values), ``compression, candidates, kept, products`` (matrix products), ``scores`` (their entries).

    Raises:
        InputError: an argument outside what is listed.
    """
    check_at_least(2, requests=requests)
    check_at_least(1, blocks=blocks, repeats=repeats)
    check_known("dataset", datasets, tuple(DATASETS))
    check_known("variant", variants, MEASURED)
    for variant in variants:
        for threshold in thresholds:
            check_options(threshold, variant)
    if backend == "reference":
        raise InputError("backend", backend, "is not measured: it holds whole similarity matrices by design")
    place = usable_device(device)
    chosen = choose_backend(backend, place)

    def measure() -> Iterator[dict[str, Any]]:
        for name in datasets:
            layer = synthetic_layer(
                requests,
                blocks,
                cosines=DATASETS[name],
                seed=seed,
                block_size=block_size,
                kv_heads=kv_heads,
                head_dim=head_dim,
                device=place,
            )
            for variant in variants:
                for threshold in thresholds:
                    row = _measure(layer, variant, threshold, chosen, repeats)
                    yield {"name": f"fusion/{name}/{variant}/{threshold:g}", "dataset": name, **row}

    # Checked above and at once; measured as the rows are asked for.
    return measure()


def _measure(layer: PagedLayer, variant: str, threshold: float, backend: str, repeats: int) -> dict[str, Any]:
    device = layer.k.device

    def run() -> Fusion:
        return fuse(layer, threshold=threshold, variant=variant, backend=backend)

    shapes = needed_products(matcher_of(backend), layer, threshold, variant)
    seconds = floor = math.inf
    for _ in range(repeats):
        seconds = min(seconds, seconds_of(run, device))
        floor = min(floor, seconds_of(lambda: replay(layer, shapes), device))
    extra = peak_extra_bytes(run, device)
    fusion = run()
    return {
        "variant": variant,
        "threshold": threshold,
        "backend": backend,
        "device": str(device),
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "extra_bytes": extra,
        "extra_share": extra / (2 * layer.k.numel() * layer.k.element_size()),
        "compression": fusion.compression,
        "candidates": fusion.candidates,
        "kept": fusion.kept,
        "products": len(shapes),
        "scores": sum(rows * cols for rows, cols in shapes),
    }
