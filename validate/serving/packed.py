"""Forward passes over the new tokens of many requests at once, packed without padding, on a paged cache."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.attention import paged_attention
from ratedist.kernels.resident.cache import ResidentCache

__all__ = ["PackedModel"]


@dataclass(frozen=True)
class _Step:
    cache: ResidentCache
    requests: tuple[int, ...]
    tokens: tuple[int, ...]
    lengths: Tensor


class PackedModel(AbstractContextManager["PackedModel"]):
    """A Hugging Face causal LM whose attention reads and writes a ``ResidentCache``.

    Within the context, the model's attention implementation is one of its own kind: every layer writes the
    new keys and values to the cache and attends over it with ``paged_attention``. The model is put back as
    it was at the end, also after an error.

    Example::

        with PackedModel(model) as packed:
            logits = packed.step(cache, [request], [token_ids])
    """

    def __init__(self, model: Any, *, backend: str = "auto") -> None:
        """Args:
            model: with attention through transformers' ``AttentionInterface``, in evaluation mode.
            backend: of ``ratedist.kernels.attention.BACKENDS``.

        Raises:
            InputError: a model whose attention cannot be replaced.
        """
        takes = inspect.signature(model.forward).parameters
        if not type(model)._can_set_attn_implementation() or "logits_to_keep" not in takes:
            raise InputError(
                "model",
                type(model).__name__,
                "must be a causal LM whose attention goes through transformers' AttentionInterface",
            )
        self.model = model
        self._backend = backend
        self._name = f"ratedist-packed-{uuid.uuid4().hex}"
        self._before: str = model.config._attn_implementation
        self._step: _Step | None = None

    def __enter__(self) -> PackedModel:
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(self._name, self._attend)
        # Causality is the paged attention's own affair, and no mask over packed tokens would say it right.
        AttentionMaskInterface.register(self._name, _no_mask)
        self.model.set_attn_implementation(self._name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        self.model.set_attn_implementation(self._before)
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(self._name, None)

    def step(self, cache: ResidentCache, requests: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Compute the next tokens of some requests; their keys and values are in the cache afterwards.

        Args:
            cache: one layer per layer of the model; with room for the tokens (``ResidentCache.require``).
            requests: different resident requests.
            tokens: per request at least one new token id.

        Returns:
            (requests, vocabulary) float32 logits after the last token of every request.

        Raises:
            InputError: outside of the context, or non-finite keys, values or logits.
            PoolExhaustedError: no room for the tokens; nothing was changed.
        """
        if self.model.config._attn_implementation != self._name:
            raise InputError("model", self.model.config._attn_implementation, "use `with PackedModel(model)`")
        counts = tuple(map(len, tokens))
        if not requests or len(counts) != len(requests) or min(counts) < 1:
            raise InputError("tokens", list(counts), "every request needs at least one new token")
        cache.require(requests, counts)
        device = self.model.device
        starts = [cache.layers[0].length(request) for request in requests]
        ids = torch.tensor([[token for part in tokens for token in part]], device=device)
        positions = torch.cat(
            [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        ).to(device)
        lengths = torch.tensor(counts, dtype=torch.int64, device=device)
        self._step = _Step(cache, tuple(requests), counts, lengths)
        try:
            with torch.inference_mode():
                # Logits of a request's last token only: over a large vocabulary the others cost the most.
                logits: Tensor = (
                    self.model(
                        input_ids=ids,
                        position_ids=positions[None],
                        use_cache=False,
                        logits_to_keep=lengths.cumsum(0) - 1,
                    )
                    .logits[0]
                    .float()
                )
        finally:
            self._step = None
        bad = torch.nonzero(~torch.isfinite(logits).all(1)).flatten()
        if len(bad):
            raise InputError(
                "logits",
                f"request {requests[int(bad[0])]}",
                "hold NaN or infinity; compute in float32 if the model overflows in its own type",
            )
        return logits

    def _attend(
        self,
        module: Any,
        query: Tensor,  # (1, query_heads, tokens, head_dim)
        key: Tensor,  # (1, kv_heads, tokens, head_dim)
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        step = self._step
        assert step is not None, "a forward pass outside of step()"
        layer = step.cache.layers[module.layer_idx]
        dtype = layer.pool.k.dtype
        layer.extend(step.requests, step.tokens, *(x[0].transpose(0, 1).to(dtype) for x in (key, value)))
        out, _lse = paged_attention(
            query[0].transpose(0, 1).to(dtype),
            layer.layer(step.requests),
            step.lengths,
            softmax_scale=scaling,
            window=sliding_window,
            softcap=softcap,
            sinks=s_aux,
            backend=self._backend,
        )
        return out[None].to(query.dtype), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None
