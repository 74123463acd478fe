"""Random models small enough to run in a test, saved as Hugging Face folders with a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WINDOW = 12
"""Sliding window of the tiny Gemma."""


def save_tiny_model(folder: Path, kind: str = "llama", *, seed: int = 0, dtype: str = "float32") -> Path:
    """Save a model of ``kind`` with random weights and a tokenizer of bytes; returns the folder."""
    import torch
    import transformers

    config = _config(transformers, kind)
    torch.manual_seed(seed)
    if kind == "t5":
        model = transformers.T5ForConditionalGeneration(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_llama(folder: Path, layers: int, *, context: int = 1024) -> Path:
    """Save a random Llama of so many layers, of which all but two at either end are fused by default."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer that gives ``<s>`` and then one token per byte of the text in UTF-8."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{symbol: number for number, symbol in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


_COMMON = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _config(transformers: Any, kind: str) -> Any:
    if kind == "llama":
        return transformers.LlamaConfig(**_COMMON)
    if kind == "qwen2":
        return transformers.Qwen2Config(**_COMMON)
    if kind == "gemma3":
        return transformers.Gemma3TextConfig(
            **_COMMON,
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    if kind == "gpt2":
        return transformers.GPT2Config(vocab_size=260, n_embd=32, n_layer=3, n_head=4, n_positions=150)
    if kind == "bloom":
        return transformers.BloomConfig(
            vocab_size=260, hidden_size=32, n_layer=3, n_head=4, eos_token_id=None
        )
    if kind == "deepseek_v3":
        return transformers.DeepseekV3Config(
            **_COMMON | {"num_key_value_heads": 4},
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=3,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
        )
    if kind == "mamba":
        return transformers.MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=4)
    if kind == "t5":
        return transformers.T5Config(vocab_size=260, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    raise AssertionError(kind)
