"""Attention over a paged cache as its definition reads: loops in plain torch, float32, slow on purpose.

The fast paths are tested against this one and against a float64 oracle; it needs no Triton.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ratedist.kernels.quantised import Layer, read_layer_blocks

__all__ = ["attention_reference"]


def attention_reference(
    q: Tensor,
    layer: Layer,
    query_lengths: Tensor,
    softmax_scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the last ``query_lengths[i]`` tokens of every request i, with checked arguments.

    A query at position p of its request attends to the tokens j <= p, and with a ``window`` only to those
    with j > p − window. With s = softmax_scale · q Kᵀ, or softcap · tanh(s / softcap) of it, Z the sum of
    exp(s), and of exp(sinks[head]) where there are sinks: out = Σ exp(s) V / Z, lse = ln Z.

    Args:
        q: (queries, query_heads, head_dim): the queries of request 0, then those of request 1, …
        layer: the cache; its lengths count the queries' own tokens.
        query_lengths: (requests,) int64, each at most the request's length.
        softmax_scale: factor of the scores.
        window: tokens that a query attends to, its own included; None for all.
        softcap: bound of the scores; None for none.
        sinks: (query_heads,) float; None for none.

    Returns:
        out: as q.
        lse: (queries, query_heads) float32.
    """
    block_size, kv_heads = layer.k.shape[1:3]
    group = q.shape[1] // kv_heads
    max_blocks = layer.table.entries.shape[1]
    out = torch.zeros_like(q)
    lse = torch.zeros(q.shape[:2], dtype=torch.float32, device=q.device)
    row = 0
    for request, (length, queries) in enumerate(
        zip(layer.table.lengths.tolist(), query_lengths.tolist(), strict=True)
    ):
        blocks = torch.arange(-(-length // block_size), device=q.device) + request * max_blocks
        # (tokens, kv_heads, head_dim)
        k, v = (read_layer_blocks(layer, part, blocks).flatten(0, 1)[:length] for part in ("k", "v"))
        for position in range(length - queries, length):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(q.shape[1]):
                scores = softmax_scale * (k[first : position + 1, head // group] @ q[row, head].float())
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                sink = q.new_full((1,), -math.inf) if sinks is None else sinks[head : head + 1]
                lse[row, head] = torch.logsumexp(torch.cat((scores, sink.float())), 0)
                weights = (scores - lse[row, head]).exp()
                out[row, head] = (weights @ v[first : position + 1, head // group]).to(q.dtype)
            row += 1
    return out, lse
