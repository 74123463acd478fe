"""Benchmark of matching: the best match of every row, beside the matrix products that this needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ratedist.kernels.bench.arguments import check_at_least, check_dtypes, check_known, usable_device
from ratedist.kernels.bench.floors import best_seconds
from ratedist.kernels.bench.fusion import DATASETS, synthetic_layer
from ratedist.kernels.fusion.fuse import matcher_of
from ratedist.kernels.fusion.scoring import CRITERIA, Part, Pools, make_scoring
from ratedist.kernels.triton_support import choose_backend

__all__ = ["bench_matching"]

_TILE = 2048


def bench_matching(
    *,
    blocks: tuple[int, ...] = (256, 1024),
    criteria: tuple[str, ...] = CRITERIA,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    backend: str = "auto",
    device: str = "cpu",
    repeats: int = 3,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Measure the matching primitive, one row per dtype, number of blocks and criterion.

    As many rows as columns meet, all of r = 3072. The floor is the matrix products alone, of contiguous
    blocks in float32 on a CPU (where lower types are converted first, so that their floor is the same) and in
    the pool's own type on a GPU, in turn with what is measured.

    Args:
        blocks: rows, and as many columns.
        criteria: of ``ratedist.kernels.fusion.scoring.CRITERIA``.
        dtypes: of the pool.
        backend: "auto", "cpu" or "triton".
        device: where.
        repeats: runs of which the least counts.
        seed: of the data.

    Returns:
        Rows, each measured when it is asked for: ``name, criterion, dtype, blocks, backend, device, seconds,
        floor_seconds, ratio, operations``.

    Raises:
        InputError: an argument outside what is listed.
    """
    for count in blocks:
        check_at_least(1, blocks=count)
    check_at_least(1, repeats=repeats)
    check_known("criterion", criteria, CRITERIA)
    check_dtypes(dtypes)
    place = usable_device(device)
    chosen = choose_backend(backend, place, ("auto", "cpu", "triton"))
    matcher = matcher_of(chosen)

    def measure() -> Iterator[dict[str, Any]]:
        for name in dtypes:
            for count in blocks:
                layer = synthetic_layer(2, count, cosines=DATASETS["dense"], seed=seed, device=place)
                pools = [pool.to(getattr(torch, name)) for pool in (layer.k, layer.v)]
                parts = [Part(pool, matcher.block_norms(pool)) for pool in pools]
                ids = layer.table.entries.long()
                multiplied = (pools[0] if place.type == "cuda" else layer.k).flatten(1)
                for criterion in criteria:
                    scoring = make_scoring(criterion, [Pools(*parts)])
                    products = sum(len(term) for term in scoring.terms)
                    seconds = floor = float("inf")
                    match = partial(matcher.best_match, scoring, ids[1], ids[0])
                    multiply = partial(_multiply, multiplied, count, products)
                    for _ in range(repeats):
                        seconds = min(seconds, best_seconds(match, place, 1))
                        floor = min(floor, best_seconds(multiply, place, 1))
                    yield {
                        "name": f"matching/{criterion}/{count}/{name}",
                        "criterion": criterion,
                        "dtype": name,
                        "blocks": count,
                        "backend": chosen,
                        "device": str(place),
                        "seconds": seconds,
                        "floor_seconds": floor,
                        "ratio": seconds / floor,
                        "operations": 2 * products * count * count * pools[0][0].numel(),
                    }

    return measure()


def _multiply(flat: Tensor, count: int, products: int) -> None:
    """So many products of the first with the last ``count`` rows, in tiles that need no large result."""
    for _ in range(products):
        for a in flat[-count:].split(_TILE):
            for b in flat[:count].split(_TILE):
                torch.mm(a, b.T)
