"""Attention of one new token per request over a paged cache, fused or not: the public operation.

Three implementations: a reference in plain torch that follows the definition, a vectorised torch path
that runs on any device, and a Triton kernel. None of the first two needs Triton.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.triton_support import choose_backend

__all__ = ["BACKENDS", "decode_reference", "paged_decode_attention"]

BACKENDS = ("auto", "reference", "cpu", "triton")

_WORKING_SCALARS = 1 << 22
"""Restored scalars of keys, and as many of values, that the vectorised path holds at once."""


def paged_decode_attention(
    q: Tensor,
    layer: PagedLayer | FusedLayer,
    *,
    softmax_scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend with one query token per request to all tokens that the cache holds of that request.

    With K = k_scale · k and V = v_scale · v read through the block table, s = softmax_scale · q Kᵀ and
    w = softmax(s): out = w V and lse = log Σ exp(s), for every query head. Query head j reads KV head
    j // (query_heads / kv_heads). Sums and the softmax are in float32 whatever the dtype; ``out`` is rounded
    to the dtype of q once, at the end. With ``lse``, results over disjoint parts of a sequence can be merged.

    A request that took part in no fusion gets the same bits from the fused and the unfused cache, on
    one backend and device.

    Args:
        q: (requests, query_heads, head_dim), with the dtype and device of the cache.
        layer: the cache; ``layer.table.lengths`` may hold zeros and differ between requests.
        softmax_scale: factor of the scores; 1/√head_dim by default.
        backend: "auto" (Triton on a GPU, else "cpu"), "reference", "cpu" (vectorised torch, on any device)
            or "triton". Compiled, the kernel takes head dimensions that are multiples of 8 up to 256.

    Returns:
        out: (requests, query_heads, head_dim) in the dtype of q; 0 for a request of length zero.
        lse: (requests, query_heads) float32, natural logarithm; -inf for a request of length zero.

    Raises:
        InputError: arguments that do not fit each other, an unknown backend, one that cannot run here, or
            a head dimension or layout that the kernel cannot read.
    """
    if not isinstance(layer, PagedLayer | FusedLayer):
        raise InputError("layer", type(layer).__name__, "must be a PagedLayer or a FusedLayer")
    if not isinstance(q, Tensor) or q.ndim != 3:
        shape = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
        raise InputError("q", shape, "must have shape (requests, query_heads, head_dim)")
    kv_heads, head_dim = layer.k.shape[2:]
    if q.shape[0] != layer.table.requests:
        raise InputError(
            "q", tuple(q.shape), f"must hold one row for each of {layer.table.requests} requests"
        )
    if head_dim == 0 or q.shape[2] != head_dim:
        raise InputError("q", tuple(q.shape), f"must have the cache's head_dim, {head_dim}, at least 1")
    if kv_heads == 0 or q.shape[1] == 0 or q.shape[1] % kv_heads:
        raise InputError(
            "q", tuple(q.shape), f"query_heads must be a positive multiple of {kv_heads} KV heads"
        )
    if q.dtype != layer.k.dtype:
        raise InputError("q", str(q.dtype), f"must have the dtype of the cache, {layer.k.dtype}")
    if q.device != layer.k.device:
        raise InputError("q", str(q.device), f"must be on {layer.k.device} like the cache")
    if softmax_scale is None:
        softmax_scale = 1 / math.sqrt(head_dim)
    elif (
        isinstance(softmax_scale, bool)
        or not isinstance(softmax_scale, int | float)
        or not math.isfinite(softmax_scale)
    ):
        raise InputError("softmax_scale", softmax_scale, "must be a finite number")

    chosen = choose_backend(backend, q.device, BACKENDS)
    if chosen == "reference":
        return decode_reference(q, layer, float(softmax_scale))
    if chosen == "triton":
        # Imported on demand: Triton exists on some platforms only.
        from ratedist.kernels._attention_triton import decode

        return decode(q, layer, float(softmax_scale))
    return _decode_vectorised(q, layer, float(softmax_scale))


def decode_reference(
    q: Tensor, layer: PagedLayer | FusedLayer, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """The definition in float32, request by request and head by head; see ``paged_decode_attention``."""
    block_size, kv_heads = layer.k.shape[1:3]
    group = q.shape[1] // kv_heads
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float32, device=q.device)
    for request, length in enumerate(layer.table.lengths.tolist()):
        if length == 0:
            continue
        keys, values = [], []
        for block in range(-(-length // block_size)):
            physical = layer.table.entries[request, block]
            key, value = layer.k[physical].float(), layer.v[physical].float()
            if isinstance(layer, FusedLayer):
                key = key * layer.k_scale[request, block]
                value = value * layer.v_scale[request, block]
            keys.append(key)
            values.append(value)
        # (tokens, kv_heads, head_dim)
        k, v = torch.cat(keys)[:length], torch.cat(values)[:length]
        for head in range(q.shape[1]):
            scores = softmax_scale * (k[:, head // group] @ q[request, head].float())
            lse[request, head] = torch.logsumexp(scores, 0)
            out[request, head] = (torch.softmax(scores, 0) @ v[:, head // group]).to(q.dtype)
    return out, lse


def _decode_vectorised(
    q: Tensor, layer: PagedLayer | FusedLayer, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """As ``decode_reference``, over as many requests at once as the working memory takes."""
    requests, query_heads, head_dim = q.shape
    block_size, kv_heads = layer.k.shape[1:3]
    out = torch.empty_like(q)
    lse = torch.empty((requests, query_heads), dtype=torch.float32, device=q.device)
    lengths = layer.table.lengths
    # Padded to the longest of a chunk, which depends on the lengths alone: the shapes of the products,
    # and with them the bits of the results, are those of the unfused cache.
    room = max(1, int(lengths.max())) if requests else 1
    chunk = max(1, _WORKING_SCALARS // (room * kv_heads * head_dim))
    for first in range(0, requests, chunk):
        part = slice(first, min(first + chunk, requests))
        blocks = int(layer.table.used_blocks[part].max())
        exists = torch.arange(blocks * block_size, device=q.device) < lengths[part, None]
        # (chunk, kv_heads, tokens, head_dim)
        k = _restore(layer, "k", part, blocks, exists)
        v = _restore(layer, "v", part, blocks, exists)
        # (chunk, kv_heads, group, head_dim)
        query = q[part].float().view(-1, kv_heads, query_heads // kv_heads, head_dim)
        scores = (query @ k.transpose(2, 3)).mul_(softmax_scale)
        scores.masked_fill_(~exists[:, None, None, :], -math.inf)
        log_sum = torch.logsumexp(scores, dim=3)
        # exp(-inf - -inf) of an empty request is NaN: subtract 0 there, and all its weights are 0.
        weights = scores.sub_(log_sum.masked_fill(log_sum == -math.inf, 0.0)[..., None]).exp_()
        out[part] = (weights @ v).view(-1, query_heads, head_dim).to(q.dtype)
        lse[part] = log_sum.view(-1, query_heads)
    return out, lse


def _restore(layer: PagedLayer | FusedLayer, which: str, part: slice, blocks: int, exists: Tensor) -> Tensor:
    """(requests, kv_heads, tokens, head_dim) float32 keys or values as they are read, 0 beyond the end."""
    pool: Tensor = getattr(layer, which)
    # Entries beyond the end name no block; what is read for them is overwritten below.
    entries = layer.table.entries[part, :blocks].clamp(min=0).long()
    restored = pool[entries].float()  # a copy of its own, to be changed in place
    if isinstance(layer, FusedLayer):
        scale: Tensor = getattr(layer, f"{which}_scale")
        restored.mul_(scale[part, :blocks, None, None, None])
    restored = restored.flatten(1, 2)
    # Blocks beyond a request's end may hold anything, and 0 times NaN is NaN.
    restored.masked_fill_(~exists[:, :, None, None], 0.0)
    return restored.transpose(1, 2)
