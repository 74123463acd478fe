"""Random models of many families, small enough to generate in a test, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 260
LAYERS = 6
WINDOW = 12
"""Sliding window of those that have one: shorter than most prompts."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_TYPES = ["sliding_attention", "full_attention"] * (LAYERS // 2)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _TYPES}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 5.0,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": WINDOW, "layer_types": _TYPES, "tie_word_embeddings": False},
    ),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "phi3": ("Phi3Config", {"partial_rotary_factor": 0.5}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
"""Configuration class and what it has beyond the common: Llama, windows, soft caps, partial rotary, sinks."""


def config_of(name: str, **changes: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**_COMMON | changes)


def tiny_model(family: str, seed: int = 0) -> Any:
    """A random model in evaluation mode whose tokens vary: the usual weights give nearly constant logits."""
    import transformers

    name, changes = FAMILIES[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_of(name, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 or parameter.numel() == _COMMON["num_attention_heads"]:
                parameter.normal_(0, 0.3)
    return model


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Prompts padded on the left, with their mask."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def related_prompts(lengths: Sequence[int], seed: int = 0, changed: float = 0.15) -> list[list[int]]:
    """Prompts that begin alike and differ in some tokens, so that some blocks are similar."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randint(1, VOCABULARY, (max(lengths),), generator=generator)
    prompts = []
    for length in lengths:
        own = torch.randint(1, VOCABULARY, (length,), generator=generator)
        keep = torch.rand(length, generator=generator) >= changed
        prompts.append(torch.where(keep, common[:length], own).tolist())
    return prompts
