"""Attention of a Hugging Face model over a fused cache: what transformers calls by the name ``ATTENTION``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ratedist.errors import InputError
from ratedist.kernels.huggingface._layer import ForwardPass

if TYPE_CHECKING:
    from ratedist.kernels.huggingface.cache import FusedCache

__all__ = ["ATTENTION", "HANDLE", "dense_attention", "register"]

ATTENTION = "ratedist_fused"
"""Name of the attention implementation, for keys and values and for masks."""

HANDLE = "_ratedist_handle"
"""Attribute of the keys that a cache hands to the attention function: (cache, layer)."""

_UNKNOWN = ("position_bias", "cu_seq_lens_q", "cu_seq_lens_k", "block_table")
"""Arguments with which models ask for attention that is not causal over one sequence per row."""


def register() -> None:
    """Make the implementation known to transformers; again is harmless."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attention)
    # Without a mask function of the same name transformers passes no mask, and padding would be attended.
    AttentionMaskInterface.register(ATTENTION, _padding_mask)


def _padding_mask(
    *args: Any, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs: Any
) -> Tensor | None:
    """The 2-D mask as it came, (requests, tokens so far) bool: causality and window are the kernel's."""
    if not allow_is_causal_skip:
        raise InputError(
            "attention_mask",
            "more than causality, a window and padding",
            "a fused cache serves causal attention with left padding only; generate without it here",
        )
    return attention_mask


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers defines an attention function: query, key and value (requests, heads, tokens, dim)."""
    handle: tuple[FusedCache, int] | None = getattr(key, HANDLE, None)
    if handle is None:
        raise InputError(
            "past_key_values",
            "no FusedCache",
            f"the attention implementation {ATTENTION!r} reads a FusedCache: pass one as past_key_values "
            "with use_cache=True, or set another by model.set_attn_implementation('sdpa')",
        )
    cache, layer = handle
    if dropout:
        raise InputError("dropout", dropout, "a fused cache is for inference; call model.eval() first")
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise InputError("is_causal", False, "a fused cache serves causal attention only")
    for name in _UNKNOWN:
        if kwargs.get(name) is not None:
            raise InputError(name, type(kwargs[name]).__name__, "is not supported with a fused cache")
    out = cache.attend(
        layer,
        query,
        key,
        value,
        attention_mask,
        softmax_scale=scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return out, None


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    step: ForwardPass,
    *,
    softmax_scale: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Causal attention within the first pass, where the new keys and values are all there is.

    As ``ratedist.kernels.attention.operations.paged_attention`` defines it, by PyTorch's own attention where
    that can: prompts are long, and nothing has been fused yet.

    Args:
        query: (requests, query_heads, columns, head_dim).
        key, value: (requests, kv_heads, columns, head_dim).
        step: which columns are tokens.

    Returns:
        (requests, columns, query_heads, head_dim); what stands at padding has no meaning.
    """
    columns, group = query.shape[2], query.shape[1] // key.shape[1]
    if softmax_scale is None:
        softmax_scale = 1 / math.sqrt(query.shape[3])
    key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (key, value))
    if window is not None and window >= columns:
        window = None
    mask = None
    if any(limit is not None for limit in (step.valid, window, softcap, sinks)):
        index = torch.arange(columns, device=query.device)
        mask = index <= index[:, None]
        if window is not None:
            mask &= index > index[:, None] - window
        mask = mask[None, None]
        if step.valid is not None:
            # Padding attends to itself: a row without any token would become NaN and spread.
            mask = mask & step.valid[:, None, None, :] | torch.eye(
                columns, dtype=torch.bool, device=query.device
            )
    if softcap is None and sinks is None:
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=softmax_scale
        )
        return out.transpose(1, 2).contiguous()
    assert mask is not None
    scores = (query @ key.transpose(2, 3)).float() * softmax_scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -math.inf)
    if sinks is not None:
        own = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, own), dim=3)
    weights = torch.softmax(scores, dim=3)[..., :columns].to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()
