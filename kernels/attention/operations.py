"""Attention over a paged cache, fused or not: the public operations, for decoding and for prefill in chunks.

Three implementations: a reference in plain torch that follows the definition, a vectorised torch path
that runs on any device, and a Triton kernel. None of the first two needs Triton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.attention._attention_torch import attention_vectorised
from ratedist.kernels.attention.reference import attention_reference
from ratedist.kernels.quantised import Layer
from ratedist.kernels.triton_support import choose_backend

__all__ = ["BACKENDS", "merge_attention", "paged_attention", "paged_decode_attention"]

BACKENDS = ("auto", "reference", "cpu", "triton")


def paged_attention(
    q: Tensor,
    layer: Layer,
    query_lengths: Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend causally with the last tokens of every request to the tokens that the cache holds of it.

    The queries of a request are its last tokens, whose keys and values are in the cache already. With K
    and V read as ``FusedLayer`` says, s = softmax_scale · q Kᵀ, or softcap · tanh(s / softcap) of it, and
    Z = Σ exp(s), + exp(sinks[head]) where there are sinks: out = Σ exp(s) V / Z and lse = ln Z, for every
    query and query head. Query head j reads KV head j // (query_heads / kv_heads). Sums and the softmax are
    in float32 whatever the dtype; ``out`` is rounded to the dtype of q once, at the end. With ``lse``,
    results over disjoint parts of a sequence can be merged.

    A request that took part in no fusion gets the same bits from the fused and the unfused cache, on
    one backend and device.

    Args:
        q: (queries, query_heads, head_dim), with the dtype and device of the cache: the queries of
            request 0 in the order of their positions, then those of request 1, …
        layer: the cache; ``layer.table.lengths`` counts the queries' own tokens, may hold zeros and differ
            between requests.
        query_lengths: (requests,) int64 on the same device; queries per request, each at most the request's
            length. None for one per request (decoding), where a request may be empty.
        softmax_scale: factor of the scores; 1/√head_dim by default.
        window: tokens that a query attends to, its own included; None for all before it.
        softcap: bound of the scores' absolute value; None for none.
        sinks: (query_heads,) floating point logits of one more token per head, whose value is 0; None for
            none.
        backend: "auto" (Triton on a GPU, else "cpu"), "reference", "cpu" (vectorised torch, on any device)
            or "triton". Compiled, the kernel takes head dimensions that are multiples of 8 up to 256; where
            it turns or centres blocks in float32, up to 128; of a ``QuantisedLayer`` float16 and bfloat16,
            with 4 bits up to 128.

    Returns:
        out: (queries, query_heads, head_dim) in the dtype of q; 0 for a request of length zero.
        lse: (queries, query_heads) float32, natural logarithm; for a request of length zero the sink, or
            -inf where there is none.

    Raises:
        InputError: arguments that do not fit each other, an unknown backend, one that cannot run here, or
            a head dimension or layout that the kernel cannot read.
    """
    _check_query(q, layer)
    counts = _check_query_lengths(q, layer, query_lengths)
    if softmax_scale is None:
        softmax_scale = 1 / math.sqrt(layer.k.shape[3])
    elif not _is_finite_number(softmax_scale):
        raise InputError("softmax_scale", softmax_scale, "must be a finite number")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise InputError("window", window, "must be a whole number of tokens, at least 1, or None for all")
    if softcap is not None and not (_is_finite_number(softcap) and softcap > 0):
        raise InputError("softcap", softcap, "must be a finite number above 0, or None for no bound")
    if sinks is not None:
        _check_sinks(sinks, q)

    chosen = choose_backend(backend, q.device, BACKENDS)
    options: dict[str, Any] = {"window": window, "softcap": softcap, "sinks": sinks}
    if chosen == "reference":
        return attention_reference(q, layer, counts, float(softmax_scale), **options)
    if chosen == "triton":
        # Imported on demand: Triton exists on some platforms only.
        from ratedist.kernels.attention._attention_triton import attend

        return attend(q, layer, counts, float(softmax_scale), **options)
    return attention_vectorised(q, layer, counts, float(softmax_scale), **options)


def paged_decode_attention(
    q: Tensor,
    layer: Layer,
    *,
    softmax_scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``paged_attention`` with one query per request, its last token.

    Args: as there, q (requests, query_heads, head_dim).
    """
    return paged_attention(
        q,
        layer,
        softmax_scale=softmax_scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        backend=backend,
    )


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint parts of a sequence, from attention over each of them.

    With weights w_i = exp(lse_i): out = Σ w_i out_i / Σ w_i and lse = ln Σ w_i, in float32. A sink must be
    in one part alone.

    Args:
        outs: (..., head_dim) each, of one shape and dtype.
        lses: (...) float32 each; -inf for a part that holds nothing.

    Returns:
        out: in the dtype of ``outs``; 0 where no part holds anything.
        lse: float32.

    Raises:
        InputError: no parts, or parts of different shapes or dtypes.

    Test: tests/kernels/attention/test_attention.py::test_parts_merge_by_log_sum_exp.
    """
    if len(outs) == 0 or len(outs) != len(lses):
        raise InputError(
            "outs", f"{len(outs)} with {len(lses)} lses", "must be as many as lses, at least one"
        )
    for out, lse in zip(outs, lses, strict=True):
        if (out.shape, out.dtype) != (outs[0].shape, outs[0].dtype):
            raise InputError(
                "outs",
                f"{out.dtype} of shape {tuple(out.shape)}",
                f"must all be {outs[0].dtype} of shape {tuple(outs[0].shape)}",
            )
        if lse.dtype != torch.float32 or lse.shape != out.shape[:-1]:
            raise InputError(
                "lses",
                f"{lse.dtype} of shape {tuple(lse.shape)}",
                f"must be float32 of shape {tuple(out.shape[:-1])}",
            )
    stacked = torch.stack(list(lses))
    total = torch.logsumexp(stacked, 0)
    # exp(-inf - -inf) is NaN: where no part holds anything subtract 0, and every weight is 0.
    weight = (stacked - total.masked_fill(total == -math.inf, 0.0)).exp()
    merged = sum(w[..., None] * out.float() for w, out in zip(weight, outs, strict=True))
    return torch.as_tensor(merged).to(outs[0].dtype), total


def _is_finite_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _check_query(q: Tensor, layer: Layer) -> None:
    if not isinstance(layer, Layer):
        raise InputError("layer", type(layer).__name__, "must be a PagedLayer, FusedLayer or QuantisedLayer")
    if not isinstance(q, Tensor) or q.ndim != 3:
        shape = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
        raise InputError("q", shape, "must have shape (queries, query_heads, head_dim)")
    kv_heads, head_dim = layer.k.shape[2:]
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


def _check_query_lengths(q: Tensor, layer: Layer, query_lengths: Tensor | None) -> Tensor:
    """(requests,) queries of each request."""
    lengths = layer.table.lengths
    if query_lengths is None:
        if q.shape[0] != len(lengths):
            raise InputError(
                "q",
                tuple(q.shape),
                f"must hold one row for each of {len(lengths)} requests where query_lengths is not given",
            )
        return torch.ones_like(lengths)
    if (
        not isinstance(query_lengths, Tensor)
        or query_lengths.dtype != torch.int64
        or query_lengths.shape != lengths.shape
    ):
        shown = (
            f"{query_lengths.dtype} of shape {tuple(query_lengths.shape)}"
            if isinstance(query_lengths, Tensor)
            else type(query_lengths).__name__
        )
        raise InputError("query_lengths", shown, f"must be int64 of shape ({len(lengths)},), or None")
    if query_lengths.device != lengths.device:
        raise InputError(
            "query_lengths", str(query_lengths.device), f"must be on {lengths.device} like the block table"
        )
    outside = (query_lengths < 0) | (query_lengths > lengths)
    if bool(outside.any()):
        request = int(outside.int().argmax())
        raise InputError(
            "query_lengths",
            int(query_lengths[request]),
            f"must be between 0 and the length of request {request}, {int(lengths[request])}, which counts "
            "the queries' own tokens",
        )
    if int(query_lengths.sum()) != q.shape[0]:
        raise InputError(
            "query_lengths", int(query_lengths.sum()), f"must add up to the {q.shape[0]} rows of q"
        )
    return query_lengths


def _check_sinks(sinks: Tensor, q: Tensor) -> None:
    if not isinstance(sinks, Tensor) or sinks.shape != q.shape[1:2] or not sinks.is_floating_point():
        shown = (
            f"{sinks.dtype} of shape {tuple(sinks.shape)}"
            if isinstance(sinks, Tensor)
            else type(sinks).__name__
        )
        raise InputError("sinks", shown, f"must be floating point of shape ({q.shape[1]},)")
    if sinks.device != q.device:
        raise InputError("sinks", str(sinks.device), f"must be on {q.device} like q")
