"""Standing between a Hugging Face model and the function that computes its attention."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor

__all__ = ["ONE_TASK", "AttentionHook"]

ONE_TASK = threading.Lock()
"""For tasks that hook models: held through each, as a cluster's worker may run several in one process."""


class AttentionHook(AbstractContextManager["AttentionHook"]):
    """While it is entered, the attention of one model is computed by a function that is given here.

    The implementation keeps its name, under which the function is looked up, so that the model builds the
    masks that it builds without. Other models that run meanwhile compute theirs as before, and hooks may be
    entered within each other, in one thread.

    Attributes:
        implementation: what transformers calls the model's attention: ``"sdpa"``, ``"eager"`` …
    """

    def __init__(self, model: Any, attend: Callable[..., Any]) -> None:
        """Args:
        model: any; nothing passes through where it does not use the attention interface of transformers.
        attend: called with the function that the model would have called, and then with what that is called
            with: module, query, key, value, mask, and options by name. What it returns is the model's.
        """
        self._model = model
        self._modules = {id(module) for module in model.modules()}
        self._attend = attend
        self._before: Any = None

    @property
    def implementation(self) -> str:
        return self._model.config.get_text_config(decoder=True)._attn_implementation or "eager"

    @property
    def possible(self) -> bool:
        """Whether the model looks its attention up, instead of computing it in its own code."""
        return bool(type(self._model)._can_set_attn_implementation())

    def __enter__(self) -> AttentionHook:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._before = ALL_ATTENTION_FUNCTIONS.get(self.implementation)
        ALL_ATTENTION_FUNCTIONS[self.implementation] = self._called
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        # What was set hid the function for all models; without it, that one is found again, unless another
        # hook had been entered before.
        del ALL_ATTENTION_FUNCTIONS[self.implementation]
        if ALL_ATTENTION_FUNCTIONS.get(self.implementation) is not self._before:
            ALL_ATTENTION_FUNCTIONS[self.implementation] = self._before

    def _called(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *rest: Any, **options: Any
    ) -> Any:
        # "eager" is a function of each model's own module, which the interface falls back to.
        own = self._before or sys.modules[type(module).__module__].eager_attention_forward
        if id(module) not in self._modules:
            return own(module, query, key, value, mask, *rest, **options)
        return self._attend(own, module, query, key, value, mask, *rest, **options)
