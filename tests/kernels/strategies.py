"""Layers that really fuse, for the property tests of fusion; and running a property on every backend.

Hypothesis draws the structure (which shrinks well); numbers come of a drawn seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from caches import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer

EXAMPLES = {"reference": 25, "cpu": 50, "triton": 10}
"""Examples per property; interpreted Triton takes a second for what torch does in a millisecond."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

CLOSE = 1e-5
"""Scores nearer than this to the threshold or to a rival leave an implementation the choice."""


def on_every_backend(
    *strategies: st.SearchStrategy[Any], share: float = 1.0
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make ``property(backend, *drawn)`` a test, parametrised over the three implementations.

    Args:
        strategies: what is drawn.
        share: of ``EXAMPLES`` to try.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("backend", EXAMPLES)
        def test(backend: str) -> None:
            @settings(max_examples=round(share * EXAMPLES[backend]))
            @given(st.tuples(*strategies))
            def run(drawn: tuple[Any, ...]) -> None:
                check(backend, *drawn)

            run()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


@dataclass(frozen=True)
class Shape:
    """What Hypothesis draws of a layer."""

    lengths: tuple[int, ...]
    domains: tuple[int, ...]
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    clusters: int
    nearness: float
    ties: bool
    seed: int


@st.composite
def layers(draw: st.DrawFn, *, ties: bool = True, domains: bool = True) -> PagedLayer:
    """A paged layer: ragged and empty requests, partly filled blocks, aliased and shuffled table.

    Blocks scatter around a few directions, shared by keys and values; some are byte-equal copies, with
    the same physical block or another one, and some copies with their sign turned.

    Args:
        draw: given by Hypothesis.
        ties: add blocks that make several scores equal: copies within a request, scaled copies, copies
            of the keys alone, and blocks of zeros.
        domains: draw two domains.
    """
    requests = draw(st.sampled_from([1, 2, 3, 5, 6, 7, 8]))
    block_size = draw(st.sampled_from([1, 2, 3]))
    sizes = [blocks * block_size + over for blocks in (0, 1, 2, 3, 3, 4) for over in range(block_size)]
    shape = Shape(
        lengths=tuple(draw(st.lists(st.sampled_from(sizes), min_size=requests, max_size=requests))),
        domains=tuple(
            draw(
                st.lists(
                    st.sampled_from([0, 0, 0, 5] if domains else [0]), min_size=requests, max_size=requests
                )
            )
        ),
        block_size=block_size,
        kv_heads=draw(st.sampled_from([1, 2])),
        head_dim=draw(st.sampled_from([3, 8, 17])),
        dtype=draw(st.sampled_from(DTYPES)),
        clusters=draw(st.integers(1, 3)),
        nearness=draw(st.sampled_from([0.5, 0.8, 0.95])),
        ties=ties,
        seed=draw(st.integers(0, 2**31)),
    )
    return build(shape)


thresholds = st.one_of(st.floats(0.3, 0.95), st.sampled_from([-1.0, -0.5, 0.0, 0.999, 1.0]))
variants = st.sampled_from(["leader", "tree"])
criteria = st.sampled_from(["keys", "both", "mean", "distance"])
scales = st.sampled_from(["own-norm", "raw", "projection"])


def build(shape: Shape) -> PagedLayer:
    """The layer of a drawn shape; NaN stands wherever nothing may be read."""
    random = generator(shape.seed)
    size = (shape.block_size, shape.kv_heads, shape.head_dim)
    dim = size[0] * size[1] * size[2]

    def unit() -> Tensor:
        direction = torch.randn(dim, generator=random)
        return direction / direction.norm()

    def uniform() -> float:
        return float(torch.rand(1, generator=random))

    def near(centre: Tensor, least: float = shape.nearness) -> Tensor:
        a = least + (1 - least) * uniform() ** 2
        centre = centre / centre.norm().clamp(min=1e-6)
        return (0.3 + 2 * uniform()) * (a * centre + (1 - a * a) ** 0.5 * unit())

    centres = [(unit(), unit()) for _ in range(shape.clusters)]
    needed = [-(-length // shape.block_size) for length in shape.lengths]
    max_blocks = max(needed) + 1
    order = torch.randperm(sum(needed) + 3, generator=random).tolist()
    k = torch.full((len(order), dim), float("nan"))
    v = k.clone()
    stale = order.pop()

    entries = torch.full((len(needed), max_blocks), UNUSED, dtype=torch.int32)
    whole: list[tuple[int, int]] = []  # (request, physical id) of the full blocks so far
    for request, length in enumerate(shape.lengths):
        entries[request, needed[request] :] = stale
        for block in range(needed[request]):
            tokens = min(shape.block_size, length - block * shape.block_size)
            full = tokens == shape.block_size
            sources = [p for i, p in whole if shape.ties or i != request]
            chance = uniform()
            physical = order.pop()
            source = sources[int(uniform() * len(sources))] if sources else physical
            centre = centres[int(uniform() * len(centres))]
            k[physical], v[physical] = near(centre[0]), near(centre[1])
            if full and sources:
                if chance < 0.1:
                    order.append(physical)
                    physical = source
                elif chance < 0.2:
                    k[physical], v[physical] = k[source], v[source]
                elif chance < 0.25:
                    k[physical], v[physical] = -k[source], -v[source]
                elif chance < 0.45:
                    # A step away from another block: chains, whose ends are not near each other.
                    k[physical], v[physical] = near(k[source], 0.72), near(v[source], 0.72)
                elif shape.ties and chance < 0.5:
                    k[physical], v[physical] = 2 * k[source], 0.5 * v[source]
                elif shape.ties and chance < 0.54:
                    k[physical] = k[source]
                elif shape.ties and chance < 0.58:
                    k[physical] = 0.0
                elif shape.ties and chance < 0.62:
                    v[physical] = 0.0
            if full:
                whole.append((request, physical))
            else:
                for pool in (k, v):
                    pool[physical].view(size)[tokens:] = float("nan")
            entries[request, block] = physical
    for unused in order:
        k[unused], v[unused] = float("nan"), float("nan")
    return PagedLayer(
        k.view(-1, *size).to(shape.dtype),
        v.view(-1, *size).to(shape.dtype),
        BlockTable(
            entries,
            torch.tensor(shape.lengths, dtype=torch.int64),
            torch.tensor(shape.domains, dtype=torch.int64),
            shape.block_size,
        ),
    )


def full_blocks(layer: PagedLayer) -> list[int]:
    """Flat logical indices of the candidates."""
    max_blocks = layer.table.entries.shape[1]
    return [
        i * max_blocks + b for i, full in enumerate(layer.table.full_blocks.tolist()) for b in range(full)
    ]


def vectors(pool: Tensor, entries: Tensor, logical: list[int]) -> Tensor:
    """(n, block_dim) float64 of the blocks named by flat logical index."""
    return pool[entries.flatten()[logical].long()].flatten(1).double()


def similarities(pool: Tensor, entries: Tensor, logical: list[int]) -> Tensor:
    """(n, n) float64 cosines of the blocks, at most 1; 0 where a block is zero."""
    rows = vectors(pool, entries, logical)
    norm = rows.norm(dim=1, keepdim=True)
    rows = torch.where(norm > 0, rows / norm, 0.0)
    return (rows @ rows.T).clamp(max=1.0)


def score_oracle(k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, criterion: str) -> Tensor:
    """(rows, cols) float64 scores of blocks by physical id, a row as the member of a column; at most 1."""

    def cosine(pool: Tensor) -> Tensor:
        units = []
        for ids in (rows, cols):
            flat = pool[ids].flatten(1).double()
            norm = flat.norm(dim=1, keepdim=True)
            units.append(torch.where(norm > 0, flat / norm, 0.0))
        return units[0] @ units[1].T

    def nearness(pool: Tensor) -> Tensor:
        x, y = (pool[ids].flatten(1).double() for ids in (rows, cols))
        power = x.square().sum(1)[:, None]
        squared = (x[:, None] - y[None, :]).square().sum(2)
        return torch.where(power > 0, 1 - squared / power / 2, 0.0)

    part = nearness if criterion == "distance" else cosine
    score = part(k)
    if criterion == "both":
        score = torch.minimum(score, part(v))
    elif criterion in ("mean", "distance"):
        score = (score + part(v)) / 2
    return score.clamp(max=1.0)


def joint_oracle(layers: list[tuple[Tensor, Tensor]], rows: Tensor, cols: Tensor, criterion: str) -> Tensor:
    """As ``score_oracle``, with the means over several layers' keys and values in their places."""
    single = "distance" if criterion == "distance" else "keys"
    keys, values = (
        torch.stack([score_oracle(layer[part], layer[part], rows, cols, single) for layer in layers]).mean(0)
        for part in (0, 1)
    )
    if criterion == "keys":
        return keys
    return torch.minimum(keys, values) if criterion == "both" else (keys + values) / 2


def score_matrix(layer: PagedLayer, criterion: str) -> Tensor:
    """(n, n) float64 scores of the candidates, a row as the member of a column."""
    ids = layer.table.entries.flatten()[full_blocks(layer)].long()
    return score_oracle(layer.k, layer.v, ids, ids, criterion)


def byte_groups(layer: PagedLayer) -> list[list[int]]:
    """Flat logical indices of the candidates of one domain that must share, two or more to a group.

    They are byte-equal and span two requests, or read one physical block to begin with.
    """
    groups: dict[tuple[int, bytes], list[int]] = {}
    max_blocks = layer.table.entries.shape[1]
    for a in full_blocks(layer):
        physical = int(layer.table.entries.flatten()[a])
        content = b"".join(
            bytes(pool[physical].contiguous().view(torch.uint8).flatten().tolist())
            for pool in (layer.k, layer.v)
        )
        groups.setdefault((int(layer.table.domains[a // max_blocks]), content), []).append(a)
    found = []
    for group in groups.values():
        parts = [group]
        if len({a // max_blocks for a in group}) == 1:
            physical_ids = {int(layer.table.entries.flatten()[a]) for a in group}
            parts = [
                [a for a in group if int(layer.table.entries.flatten()[a]) == p] for p in sorted(physical_ids)
            ]
        found += [part for part in parts if len(part) > 1]
    return found


def decided(layer: PagedLayer, threshold: float, criterion: str, score: Tensor | None = None) -> bool:
    """Whether no score is close to the threshold, nor above it close to a rival in the same row.

    Args:
        layer: the layer.
        threshold: the threshold.
        criterion: the criterion.
        score: (n, n) scores of the candidates, where they are not ``score_matrix``.
    """
    if score is None:
        score = score_matrix(layer, criterion)
    logical = full_blocks(layer)
    max_blocks = layer.table.entries.shape[1]
    first = {a: group[0] for group in byte_groups(layer) for a in group}
    distinct = [n for n, a in enumerate(logical) if first.get(a, a) == a]
    for n in distinct:
        row = [float(score[n, m]) for m in distinct if logical[m] // max_blocks < logical[n] // max_blocks]
        if any(abs(s - threshold) < CLOSE for s in row):
            return False
        above = sorted(s for s in row if s > threshold)
        if any(b - a < CLOSE for a, b in pairwise(above)):
            return False
    return True


def rearranged(layer: PagedLayer, seed: int) -> PagedLayer:
    """The same requests in a shuffled, larger pool, a wider table, and with empty requests in between."""
    requests, max_blocks = layer.table.entries.shape
    blocks = layer.k.shape[0]
    slot = torch.randperm(blocks + 4, generator=generator(seed))[:blocks]
    pools = []
    for pool in (layer.k, layer.v):
        moved = torch.full((blocks + 4, *pool.shape[1:]), float("nan"), dtype=pool.dtype)
        moved[slot] = pool
        pools.append(moved)
    used = torch.arange(max_blocks) < layer.table.used_blocks[:, None]
    entries = torch.full((2 * requests, max_blocks + 3), UNUSED, dtype=torch.int32)
    new = torch.full((requests, max_blocks), UNUSED, dtype=torch.int32)
    new[used] = slot[layer.table.entries[used].long()].int()
    entries[1::2, :max_blocks] = new
    lengths = torch.zeros(2 * requests, dtype=torch.int64)
    lengths[1::2] = layer.table.lengths
    domains = layer.table.domains.repeat_interleave(2)
    return PagedLayer(pools[0], pools[1], BlockTable(entries, lengths, domains, layer.table.block_size))


def sisters(layer: PagedLayer, count: int, seed: int) -> list[PagedLayer]:
    """The layer and others under its table, more or less like it; in pools of other sizes and places."""
    random = generator(seed)
    made = [layer]
    for number in range(1, count):
        noise = [torch.randn(pool.shape, generator=random) * number / 4 for pool in (layer.k, layer.v)]
        room = torch.full((number, *layer.k.shape[1:]), float("nan"))
        pools = [
            torch.cat(((pool.float() + one).to(pool.dtype), room.to(pool.dtype)))
            for pool, one in zip((layer.k, layer.v), noise, strict=True)
        ]
        ids = layer.table.entries.flatten()[full_blocks(layer)].long()
        if number == 1 and len(ids):
            # Two blocks are equal in one layer alone, which makes them no duplicates.
            for pool in pools:
                pool[ids[1:2]] = pool[ids[0]].clone()
        made.append(PagedLayer(pools[0], pools[1], layer.table))
    return made
