"""Watching a Hugging Face model's attention: queries, outputs, attention received; and hiding tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.attention_hook import AttentionHook

__all__ = ["AttentionCall", "AttentionProbe"]


@dataclass(frozen=True)
class AttentionCall:
    """What one layer's attention was called with, and what it gave.

    Attributes:
        query: (requests, query_heads, new tokens, head_dim), rotary positions included.
        new_k, new_v: (requests, kv_heads, new tokens, head_dim): what the pass itself added to the cache.
        output: (requests, new tokens, query_heads, head_dim).
        module: the attention module that called.
        mask: as the model gave it.
        options: further keyword arguments (scaling, sliding window, soft cap …).
    """

    query: Tensor
    new_k: Tensor
    new_v: Tensor
    output: Tensor
    module: Any = field(repr=False)
    mask: Tensor | None
    options: dict[str, Any]


class AttentionProbe:
    """Context within which a model's attention passes through here; on leaving, the model is as it was.

    What the model computes stays the same, but for what ``hidden`` changes.

    Attributes:
        calls: where a dictionary is assigned, every pass leaves its ``AttentionCall`` there by layer.
        received: where a dictionary is assigned, attention received by every cached token is summed there by
            layer, (requests, kv_heads, tokens) float32: over the query heads of the group, and over the
            queries that lie within ``lengths``.
        lengths: (requests,) tokens of each request, for ``received``.
        hidden: by layer, (requests, kv_heads, tokens) bool: cached tokens that are not attended to, from the
            first on; tokens beyond are seen.

    Raises InputError on entering for a model whose attention cannot be replaced.
    """

    def __init__(self, model: Any, name: str = "model") -> None:
        self.model = model
        self.name = name
        self.calls: dict[int, AttentionCall] | None = None
        self.received: dict[int, Tensor] | None = None
        self.lengths: Tensor | None = None
        self.hidden: dict[int, Tensor] = {}
        self._hook = AttentionHook(model, self._attend)

    def __enter__(self) -> Self:
        implementation = self._hook.implementation
        if implementation not in ("sdpa", "eager"):
            raise InputError(
                "model",
                self.name,
                f"computes attention by {implementation!r}, which cannot be watched; choose sdpa or eager",
            )
        if not self._hook.possible:
            raise InputError(
                "model",
                self.name,
                "computes attention in its own code, which cannot be watched; models that use the attention "
                "interface of transformers can (Llama, Qwen, Mistral, Gemma, Phi …)",
            )
        self._hook.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.__exit__(kind, error, trace)

    def replay(self, call: AttentionCall, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Output of a call over another cache: the same queries and new tokens behind other K and V.

        Args:
            call: from ``calls``.
            k, v: (requests, kv_heads, tokens, head_dim): as many tokens as were cached before the call.
            hidden: (requests, kv_heads, tokens) bool as in the attribute, or None.

        Returns:
            (requests, new tokens, query_heads, head_dim).
        """
        key = torch.cat([k, call.new_k], dim=2)
        value = torch.cat([v, call.new_v], dim=2)
        return self._hand_on(call.module, call.query, key, value, call.mask, hidden, call.options)

    def _attend(
        self,
        own: Callable[..., Any],
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        output = self._hand_on(module, query, key, value, mask, self.hidden.get(layer), options)
        new = query.shape[2]
        if self.calls is not None:
            self.calls[layer] = AttentionCall(
                query, key[:, :, -new:].clone(), value[:, :, -new:].clone(), output, module, mask, options
            )
        if self.received is not None:
            self._add_received(layer, query, key, mask, options)
        return output, None

    def _hand_on(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        hidden: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        if hidden is not None:
            mask = _hide(_visible(mask, query, key), hidden, query.shape[1])
        if self._hook.implementation == "sdpa" and options.get("softcap") is None:
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            result: Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
            return result
        if options.get("s_aux") is not None:
            raise InputError("model", self.name, "has attention sinks, which only its own kernels compute")
        weights = _weights(query, key, mask, options).to(value.dtype)
        groups = query.shape[1] // value.shape[1]
        return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous()

    def _add_received(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> None:
        assert self.received is not None
        new, tokens = query.shape[2], key.shape[2]
        weights = _weights(query, key, mask, options)
        if self.lengths is not None:
            position = torch.arange(tokens - new, tokens, device=query.device)
            within = position < self.lengths.to(query.device)[:, None]
            # Selected, not multiplied: what padding attends with may be NaN.
            weights = torch.where(within[:, None, :, None], weights, 0.0)
        mass = weights.sum(2).unflatten(1, (key.shape[1], -1)).sum(2)
        if layer in self.received:
            mass[:, :, : tokens - new] += self.received[layer]
        self.received[layer] = mass


def _visible(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask that says the same as ``mask`` does to the model: without one, every earlier token is seen."""
    if mask is not None:
        return mask
    new, tokens = query.shape[2], key.shape[2]
    return torch.ones(new, tokens, dtype=torch.bool, device=query.device).tril(tokens - new)[None, None]


def _hide(mask: Tensor, hidden: Tensor, query_heads: int) -> Tensor:
    """The mask with hidden tokens taken out, (requests, query_heads, new tokens, tokens)."""
    behind = mask.shape[-1] - hidden.shape[-1]
    gone = torch.nn.functional.pad(hidden, (0, behind)).repeat_interleave(
        query_heads // hidden.shape[1], dim=1
    )[:, :, None]
    if mask.dtype == torch.bool:
        return mask & ~gone
    return mask.masked_fill(gone, torch.finfo(mask.dtype).min)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Attention weights in float32, (requests, query_heads, new tokens, tokens)."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    grouped = query.float().unflatten(1, (key.shape[1], groups)).flatten(2, 3)
    scores = (grouped @ key.float().transpose(2, 3)).unflatten(2, (groups, -1)).flatten(1, 2) * scaling
    cap = options.get("softcap")
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    mask = _visible(mask, query, key)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    return torch.softmax(scores, dim=-1)
