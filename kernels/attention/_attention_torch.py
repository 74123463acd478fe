"""Attention over a paged cache in vectorised torch, on any device: tile by tile within a working memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.kernels.quantised import Layer, read_layer_blocks

__all__ = ["attention_vectorised"]

_WORKING_SCALARS = 1 << 22
"""Restored keys, values and scores, in float32 scalars, that are held at once."""

_PIECE = 128
"""Query tokens taken at once: fewer would read the cache more often, more would score more pairs that
causality forbids."""


@dataclass(frozen=True)
class _Piece:
    """Consecutive queries of one request, and the blocks that they attend to.

    Attributes:
        row: first of its rows of q.
        request: whose they are.
        count: query tokens.
        position: of the first of them in its request.
        length: tokens of the request.
        first, blocks: logical blocks that causality and the window leave.
    """

    row: int
    request: int
    count: int
    position: int
    length: int
    first: int
    blocks: int


def attention_vectorised(
    q: Tensor,
    layer: Layer,
    query_lengths: Tensor,
    softmax_scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``attention_reference``, which see, over many requests and blocks at once."""
    query_heads = q.shape[1]
    start = q.new_full((query_heads,), -math.inf, dtype=torch.float32) if sinks is None else sinks.float()
    # What rows without a token to attend to keep: nothing but the sink.
    out = torch.zeros_like(q)
    lse = start.repeat(len(q), 1)
    kv_heads, head_dim = layer.k.shape[2:]
    rows = query_heads // kv_heads
    for pieces in _batches(_pieces(layer, query_lengths, window), layer, rows):
        count, blocks = max(p.count for p in pieces), max(p.blocks for p in pieces)
        columns = torch.tensor(
            [(p.row, p.count, p.position, p.length, p.first, p.first + p.blocks, p.request) for p in pieces],
            device=q.device,
        ).T[:, :, None]
        row, own, position, length, first, end, request = columns
        # Padded to the most queries of a batch by repeating the last one, whose results are not stored twice.
        step = torch.minimum(torch.arange(count, device=q.device), own - 1)
        positions = (position + step)[:, :, None]  # (n, count, 1)
        # (n, kv_heads, count * group, head_dim)
        query = q[row + step].float().view(-1, count, kv_heads, rows, head_dim).transpose(1, 2).flatten(2, 3)
        greatest = start.view(kv_heads, 1, rows).expand(len(pieces), -1, count, -1).flatten(2)
        total = (greatest > -math.inf).float()
        weighted = torch.zeros_like(query)
        tile = max(1, _WORKING_SCALARS // (len(pieces) * _scalars_per_block(layer, rows * count)))
        for offset in range(0, blocks, tile):
            # Blocks beyond a piece's end repeat its last one; their tokens are masked.
            block = first + torch.arange(offset, min(offset + tile, blocks), device=q.device)
            logical = (request * layer.table.entries.shape[1] + torch.minimum(block, end - 1)).flatten()
            token = block[:, :, None] * layer.k.shape[1] + torch.arange(layer.k.shape[1], device=q.device)
            token = token.flatten(1)  # (n, tokens)
            shape = (len(pieces), -1, kv_heads, head_dim)
            key = read_layer_blocks(layer, "k", logical).view(shape).permute(0, 2, 3, 1)
            value = read_layer_blocks(layer, "v", logical).view(shape)
            # What lies beyond a request's length may be anything, and 0 times NaN is NaN.
            value.masked_fill_((token >= length)[:, :, None, None], 0.0)
            scores = (query @ key).mul_(softmax_scale)
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            hidden = token[:, None, :] > positions
            if window is not None:
                hidden |= token[:, None, :] <= positions - window
            scores.unflatten(2, (count, rows)).masked_fill_(hidden[:, None, :, None, :], -math.inf)
            higher = torch.maximum(greatest, scores.amax(3))
            # exp(-inf - -inf) is NaN: where all is hidden so far subtract 0, and every weight is 0.
            level = higher.masked_fill(higher == -math.inf, 0.0)
            weight = scores.sub_(level[..., None]).exp_()
            faded = (greatest - level).exp_()
            total = total.mul_(faded).add_(weight.sum(3))
            weighted.mul_(faded[..., None]).add_(weight @ value.transpose(1, 2))
            greatest = higher
        # Every query of a piece attends to itself at least, so that no total is 0.
        weighted.div_(total[..., None])
        inside = (torch.arange(count, device=q.device) < own).flatten()
        at = (row + step).flatten()[inside]
        for target, result in ((out, weighted), (lse, (greatest + total.log())[..., None])):
            by_row = result.unflatten(2, (count, rows)).transpose(1, 2).flatten(0, 1)[inside]
            target[at] = by_row.reshape(len(at), *target.shape[1:]).to(target.dtype)
    return out, lse


def _pieces(layer: Layer, query_lengths: Tensor, window: int | None) -> Iterator[_Piece]:
    """All queries that attend to something."""
    block_size = layer.table.block_size
    row = 0
    for request, (length, queries) in enumerate(
        zip(layer.table.lengths.tolist(), query_lengths.tolist(), strict=True)
    ):
        for start in range(0, queries if length else 0, _PIECE):
            count = min(_PIECE, queries - start)
            position = length - queries + start
            first = 0 if window is None else max(0, position - window + 1) // block_size
            last = (position + count - 1) // block_size
            yield _Piece(row + start, request, count, position, length, first, last + 1 - first)
        row += queries


def _batches(pieces: Iterator[_Piece], layer: Layer, rows: int) -> Iterator[list[_Piece]]:
    """Pieces of like shapes, as many together as the working memory takes.

    What goes together depends on lengths alone: the shapes of the products, and with them the bits of the
    results, are those of the unfused cache.
    """
    batch: list[_Piece] = []
    needed = 0
    for piece in sorted(pieces, key=lambda p: (p.count, p.blocks)):
        own = piece.blocks * _scalars_per_block(layer, rows * piece.count)
        # Sorted so, the last piece has the most queries; padding may at most double the work.
        blocks = max((p.blocks for p in batch), default=0)
        padded = (len(batch) + 1) * max(blocks, piece.blocks) * _scalars_per_block(layer, rows * piece.count)
        if batch and (padded > _WORKING_SCALARS or padded > 2 * (needed + own)):
            yield batch
            batch, needed = [], 0
        batch.append(piece)
        needed += own
    if batch:
        yield batch


def _scalars_per_block(layer: Layer, rows: int) -> int:
    """Of keys, values, scores and weights, for ``rows`` rows of every KV head."""
    _, block_size, kv_heads, head_dim = layer.k.shape
    return block_size * kv_heads * (2 * head_dim + 2 * rows)
