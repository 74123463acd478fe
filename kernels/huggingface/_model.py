"""What a Hugging Face model must be for a fused cache, and switching its attention implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ratedist.errors import InputError
from ratedist.kernels.huggingface._attention import ATTENTION

__all__ = ["Shape", "attention_switched", "follow_forward_passes", "shape_of", "text_config"]

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}

_NOT_PER_HEAD = (
    "does not keep one K and one V per KV head and layer of its own, which is what is fused; models that do "
    "are those like Llama, Qwen 2 and 3, Mistral, Gemma 2 and 3, Phi 3 or GPT-OSS"
)


@dataclass(frozen=True)
class Shape:
    """What the configuration promises about the cache.

    Attributes:
        layers: decoder layers.
        kv_heads: KV heads per layer.
        head_dim: scalars per head.
        sliding: per layer, whether it attends within a window.
    """

    layers: int
    kv_heads: int
    head_dim: int
    sliding: tuple[bool, ...]


def text_config(model_or_config: Any) -> Any:
    """The configuration of the decoder; raises InputError for what is neither model nor configuration."""
    config = getattr(model_or_config, "config", model_or_config)
    if not hasattr(config, "get_text_config"):
        raise InputError(
            "model_or_config",
            type(model_or_config).__name__,
            "must be a Hugging Face causal language model or its configuration",
        )
    return config.get_text_config(decoder=True)


def shape_of(model_or_config: Any) -> Shape:
    """Check that the model keeps K and V per head; raises InputError where it does not."""
    config = text_config(model_or_config)
    name = getattr(config, "model_type", type(config).__name__)
    outer = getattr(model_or_config, "config", model_or_config)
    if getattr(outer, "is_encoder_decoder", False):
        raise InputError("model_or_config", name, "is an encoder-decoder; a decoder-only model is needed")
    heads, layers = (getattr(config, key, None) for key in ("num_attention_heads", "num_hidden_layers"))
    if not isinstance(heads, int) or not isinstance(layers, int):
        raise InputError("model_or_config", name, _NOT_PER_HEAD)
    if getattr(config, "kv_lora_rank", None):
        raise InputError("model_or_config", name, f"{_NOT_PER_HEAD} (it compresses K and V into one latent)")
    shared = getattr(config, "num_kv_shared_layers", 0) or "reuse" in (
        getattr(config, "kv_sharing_modes", None) or ()
    )
    if shared:
        raise InputError("model_or_config", name, f"{_NOT_PER_HEAD} (layers read the K and V of others)")
    types = getattr(config, "layer_types", None)
    if types is None:
        windowed = getattr(config, "sliding_window", None) is not None
        types = ["sliding_attention" if windowed else "full_attention"] * layers
    unknown = sorted(set(types) - _KNOWN_LAYERS)
    if unknown:
        raise InputError(
            "model_or_config", name, f"{_NOT_PER_HEAD} (it has layers of type {', '.join(unknown)})"
        )
    if isinstance(model_or_config, torch.nn.Module):
        switchable = getattr(model_or_config, "_can_set_attn_implementation", None)
        if switchable is None or not switchable():
            raise InputError(
                "model_or_config",
                type(model_or_config).__name__,
                "does not look up its attention in transformers' AttentionInterface, so a fused cache cannot "
                "serve it",
            )
    return Shape(
        layers=layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        sliding=tuple(kind == "sliding_attention" for kind in types),
    )


@contextmanager
def attention_switched(config: Any) -> Iterator[None]:
    """Have the decoder look up the fused cache's attention, and what it had before at the end."""
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


_BEFORE: WeakKeyDictionary[torch.nn.Module, str | None] = WeakKeyDictionary()
"""Models within a forward pass with a fused cache → the attention implementation that they had before."""

_FOLLOWED: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def follow_forward_passes(model: torch.nn.Module) -> None:
    """Have each forward pass with a fused cache, and no other, use the fused cache's attention.

    Once per model is enough; two small hooks stay on it, which do nothing for other caches.
    """
    if model in _FOLLOWED:
        return
    _FOLLOWED[model] = True
    model.register_forward_pre_hook(_before_forward, with_kwargs=True)
    model.register_forward_hook(_after_forward, with_kwargs=True, always_call=True)


def _before_forward(model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    from ratedist.kernels.huggingface.cache import FusedCache

    _restore(model)  # after a pass that was interrupted from the keyboard
    config = text_config(model)
    if isinstance(kwargs.get("past_key_values"), FusedCache) and config._attn_implementation != ATTENTION:
        _BEFORE[model] = config._attn_implementation
        config._attn_implementation = ATTENTION


def _after_forward(model: torch.nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> None:
    _restore(model)


def _restore(model: torch.nn.Module) -> None:
    if model in _BEFORE:
        text_config(model)._attn_implementation = _BEFORE.pop(model)
