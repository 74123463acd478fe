"""Architectures that ``ratedist train`` knows: small, and unlike the embedded model in what is cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ratedist.errors import InputError

__all__ = ["ARCHITECTURES", "Architecture", "architecture_named"]

_LAYERS = 8
_WINDOW = 64
"""Tokens that a sliding layer attends to: a sixth of a request of 384."""


@dataclass(frozen=True)
class Architecture:
    """A model's form.

    Attributes:
        name: what the command line calls it, and transformers its type.
        differs: from the embedded model (Llama, 9 query and 3 KV heads of 64), in words.
        config: called with the size of the vocabulary and the longest sequence; gives a configuration of
            transformers.
    """

    name: str
    differs: str
    config: Callable[[int, int], Any]


def architecture_named(name: str) -> Architecture:
    """The architecture of this name; raises InputError, listing those there are, for another one."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError("architecture", name, f"unknown; choose one of {known}")
    return ARCHITECTURES[name]


def _qwen2(vocabulary: int, context: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        num_attention_heads=4, num_key_value_heads=2, **_common(vocabulary, context, head_dim=80)
    )


def _gemma3(vocabulary: int, context: int) -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        num_attention_heads=4,
        num_key_value_heads=1,
        query_pre_attn_scalar=96,
        sliding_window=_WINDOW,
        layer_types=["sliding_attention", "full_attention"] * (_LAYERS // 2),
        **_common(vocabulary, context, head_dim=96),
    )


def _common(vocabulary: int, context: int, head_dim: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 192,
        "head_dim": head_dim,
        "intermediate_size": 512,
        "num_hidden_layers": _LAYERS,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,  # near 1/√width: with transformers' 0.02 the first 100 steps go by
        "bos_token_id": None,
        "eos_token_id": 0,  # as ``ratedist.validate.training.corpus.train_tokenizer`` numbers it
        "pad_token_id": None,
    }


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "qwen2",
            "biases in the projections of queries, keys and values; 4 query and 2 KV heads of 80",
            _qwen2,
        ),
        Architecture(
            "gemma3",
            f"sliding windows of {_WINDOW} tokens in every other layer, normalised queries and keys; 4 query "
            "heads and 1 KV head of 96",
            _gemma3,
        ),
    )
}
"""The architectures by name."""
