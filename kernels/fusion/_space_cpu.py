"""Blocks as they are matched, and the means that are taken from them, in plain torch a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ratedist.kernels.fusion.chunks import blocks_per_chunk
from ratedist.kernels.fusion.matching import Centring, Turns
from ratedist.kernels.rotary import rotate

__all__ = ["group_means", "matched_blocks"]


def matched_blocks(pool: Tensor, ids: Tensor, turns: Turns | None, centring: Centring | None) -> Tensor:
    """Float32 copies of blocks, turned and without means; see ``Matcher.matched_blocks``."""
    copy = torch.empty((len(ids), *pool.shape[1:]), dtype=torch.float32, device=pool.device)
    step = blocks_per_chunk(pool)
    for start in range(0, len(ids), step):
        chunk = slice(start, start + step)
        blocks = _turned(pool, ids, turns, chunk)
        if centring is not None:
            blocks = blocks - centring.means.index_select(0, centring.group[chunk]).float()
        copy[chunk] = blocks
    return copy


def group_means(pool: Tensor, ids: Tensor, turns: Turns | None, group: Tensor, groups: int) -> Tensor:
    """Means of groups of blocks that were turned; see ``Matcher.group_means``."""
    total = torch.zeros((groups, *pool.shape[1:]), dtype=torch.float64, device=pool.device)
    step = blocks_per_chunk(pool)
    for start in range(0, len(ids), step):
        chunk = slice(start, start + step)
        total.index_add_(0, group[chunk], _turned(pool, ids, turns, chunk).double())
    count = torch.bincount(group, minlength=groups)
    return total.div_(count[:, None, None, None]).to(pool.dtype)


def _turned(pool: Tensor, ids: Tensor, turns: Turns | None, chunk: slice) -> Tensor:
    blocks = pool.index_select(0, ids[chunk]).float()
    return blocks if turns is None else rotate(blocks, turns.tokens[chunk], turns.rotary)
