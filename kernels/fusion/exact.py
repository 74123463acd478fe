"""Exact duplicates: byte-equal blocks of different requests, found by hashing and confirmed byte for byte."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ratedist.kernels.fusion.candidates import Candidates
from ratedist.kernels.fusion.chunks import blocks_per_chunk

__all__ = ["byte_classes", "first_equal"]

_SAMPLED = 4
_INTEGERS = {4: torch.int32, 2: torch.int16}


def first_equal(
    pools: Sequence[tuple[Tensor, Tensor]], candidates: Candidates, *, fused: bool = False
) -> Tensor:
    """(n,) int64: position of the candidate whose physical block each candidate takes; its own where unique.

    A group of candidates of one domain that are byte-equal in keys and values and span at least two
    units takes the block of its lowest logical index. Duplicates within a single unit stay apart,
    unless they are one physical block already: blocks of a domain that share go on sharing.

    In a layer that is fused already, only the first block that reads a physical block tells of which
    unit it is. Otherwise a unit's own duplicates would be joined as soon as one of them had
    absorbed a block of another unit, and fusing again would change what the first time left alone.

    Args:
        pools: (blocks, block_size, kv_heads, head_dim) keys and values of one layer, or of several under
            one block table, in all of which duplicates must be byte-equal.
        candidates: the blocks to look at, in logical order.
        fused: whether the layer is fused already.
    """
    position = torch.arange(len(candidates), device=candidates.physical.device)
    if len(candidates) == 0:
        return position
    # Contents are compared once per physical block: a block table may alias.
    ids, content = torch.unique(candidates.physical, return_inverse=True)
    _, domain = torch.unique(candidates.domain, return_inverse=True)
    holder, _ = _ends(domain * len(ids) + content, position)

    counted = torch.nonzero(holder == position).flatten() if fused else position
    classes = torch.stack([byte_classes(k, v, ids) for k, v in pools], dim=1)
    _, classes = torch.unique(classes, dim=0, return_inverse=True)
    first, last = _ends((domain * len(ids) + classes[content])[counted], counted)
    # Within a domain positions are in order of unit, so the ends of a group show whether it spans two.
    spans = candidates.unit[first] != candidates.unit[last]
    result = position.clone()
    result[counted] = torch.where(spans, first, counted)
    return result[holder]


def _ends(key: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """For every entry, the lowest and the highest ``position`` of the entries with its key."""
    groups, group = torch.unique(key, return_inverse=True)
    ends = position.new_empty(len(groups))
    lowest = ends.scatter_reduce(0, group, position, "amin", include_self=False)
    highest = ends.scatter_reduce(0, group, position, "amax", include_self=False)
    return lowest[group], highest[group]


def byte_classes(k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    """(m,) int64: index into ``ids`` of the first block that is byte-equal to each, in keys and values.

    Blocks are grouped by ever more of their bytes: a few scalars of the keys, then a 64-bit hash of
    all bytes where that left company. Groups only nominate: membership is a comparison byte for byte.

    Args:
        k: (blocks, block_size, kv_heads, head_dim).
        v: as ``k``.
        ids: (m,) int64 physical ids, without repetition.
    """
    index = torch.arange(len(ids), device=ids.device)
    result = index.clone()
    left, label = _crowded(index, _sample(k, ids))
    if len(left):
        left, label = _crowded(left, _hash(k, ids[left]) ^ (_hash(v, ids[left]) << 1))
    while len(left):
        # All but hash collisions find their class in the first round; the rest compete among themselves.
        first, _ = _ends(label, left)
        equal = _rows_equal(k, ids[left], ids[first]) & _rows_equal(v, ids[left], ids[first])
        result[left[equal]] = first[equal]
        left, label = left[~equal], label[~equal]
    return result


def _crowded(index: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of ``index`` whose key is not unique, each with a label that stands for the key."""
    _, label, sizes = torch.unique(key, return_inverse=True, return_counts=True)
    crowded = sizes[label] > 1
    return index[crowded], label[crowded]


def _sample(pool: Tensor, ids: Tensor) -> Tensor:
    """(m,) int64 made of a few scalars of every block, spread over the block."""
    _, tokens, heads, dim = pool.shape
    spread = torch.arange(_SAMPLED, device=pool.device)
    # Strides that visit different tokens, heads and channels.
    token = spread * max(1, tokens // _SAMPLED) % max(1, tokens)
    channel = spread * max(1, dim // _SAMPLED) % max(1, dim)
    if pool[:1].numel() == 0:
        return torch.zeros_like(ids)
    scalars = pool[ids[:, None], token, spread % heads, channel]
    bits = scalars.view(_INTEGERS[pool.element_size()]).long()
    return (bits * _weights(_SAMPLED, pool.device)).sum(1)


def _hash(pool: Tensor, ids: Tensor) -> Tensor:
    """(m,) int64: sum of words times random odd weights modulo 2^64, over all bytes of every block."""
    result = torch.empty_like(ids)
    weights: Tensor | None = None
    step = blocks_per_chunk(pool)
    for start in range(0, len(ids), step):
        words = _words(pool, ids[start : start + step]).long()
        if weights is None:
            weights = _weights(words.shape[1], pool.device)
        # Times an odd number the highest bit, a sign, stays alone the highest bit: fold it into others.
        words ^= (words >> 32) & 0xFFFFFFFF
        result[start : start + step] = words.mul_(weights).sum(1)
    return result


def _rows_equal(pool: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(m,) bool: whether the blocks ``left[i]`` and ``right[i]`` are equal in every byte."""
    result = torch.empty(len(left), dtype=torch.bool, device=pool.device)
    step = blocks_per_chunk(pool)
    for start in range(0, len(left), step):
        a = _words(pool, left[start : start + step])
        b = _words(pool, right[start : start + step])
        result[start : start + step] = (a == b).all(1)
    return result


def _words(pool: Tensor, ids: Tensor) -> Tensor:
    """(m, words): bits of the blocks as the widest integers that divide a block."""
    rows = pool.index_select(0, ids).flatten(1)
    wide = rows.shape[1] * rows.element_size() % 8 == 0
    return rows.view(torch.int64 if wide else _INTEGERS[rows.element_size()])


def _weights(count: int, device: torch.device) -> Tensor:
    """(count,) int64 odd numbers, the same at every call."""
    generator = torch.Generator().manual_seed(0x5EED)
    return (torch.randint(-(2**62), 2**62, (count,), generator=generator) * 2 + 1).to(device)
