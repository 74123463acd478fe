"""Keeping the queries of a model's attention while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.validate.attention_hook import AttentionHook

__all__ = ["QueryRecorder"]


class QueryRecorder(AbstractContextManager["QueryRecorder"]):
    """Records the query vectors that attention gets (rotary positions included) at chosen positions.

    While it is entered (``AttentionHook``), the model computes what it computes without. Other models that
    run meanwhile are not recorded.

    Attributes:
        wanted: by row the positions to keep; set by ``begin``.
        first: by row the position of the first token of the pass that comes next.
        found: by layer the queries (rows, positions, query_heads, head_dim).
        scale: by layer what q·k is multiplied by.
    """

    def __init__(self, model: Any, layers: Sequence[int], name: str = "model") -> None:
        self.layers = frozenset(layers)
        self.wanted: list[range] = []
        self.first: list[int] = []
        self.found: dict[int, Tensor] = {}
        self.scale: dict[int, float] = {}
        self._model = model
        self._name = name
        self._hook = AttentionHook(model, self._attend)

    def begin(self, wanted: Sequence[range]) -> None:
        """Forget what was found, and want these positions, as many of every row."""
        self.wanted, self.first, self.found = list(wanted), [], {}

    def check(self, query_heads: int, head_dim: int) -> None:
        """Run two tokens and raise InputError where their queries do not come through."""
        self.begin([range(2)])
        self.first = [0]
        ids = torch.zeros(1, 2, dtype=torch.long, device=self._model.device)
        with torch.inference_mode():
            self._model.base_model(input_ids=ids, use_cache=False)
        shapes = {tuple(query.shape) for query in self.found.values()}
        if set(self.found) != self.layers or shapes != {(1, 2, query_heads, head_dim)}:
            raise InputError(
                "model",
                self._name,
                "computes attention where its queries cannot be taken (not through the attention interface "
                "of transformers); capture without --queries, or take a model like Llama, Qwen, Mistral, "
                "Gemma or Phi",
            )
        self.begin([])

    def __enter__(self) -> QueryRecorder:
        self._hook.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.__exit__(kind, error, trace)

    def _attend(self, own: Callable[..., Any], module: Any, query: Tensor, *rest: Any, **options: Any) -> Any:
        layer = getattr(module, "layer_idx", None)
        if layer in self.layers:
            self._keep(layer, query)
            scaling = options.get("scaling")
            self.scale[layer] = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        return own(module, query, *rest, **options)

    def _keep(self, layer: int, query: Tensor) -> None:
        """Keep what is wanted of the queries (rows, query_heads, tokens, head_dim) of a pass."""
        if not self.wanted:
            return
        if layer not in self.found:
            shape = (len(self.wanted), len(self.wanted[0]), query.shape[1], query.shape[3])
            self.found[layer] = query.new_zeros(shape)
        for row, (wanted, first) in enumerate(zip(self.wanted, self.first, strict=True)):
            start = max(wanted.start, first)
            stop = min(wanted.stop, first + query.shape[2])
            if start < stop:
                taken = query[row, :, start - first : stop - first].transpose(0, 1)
                self.found[layer][row, start - wanted.start : stop - wanted.start] = taken
