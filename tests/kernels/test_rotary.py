"""Turning keys by rotary positions."""

from __future__ import annotations

import math

import pytest
import torch
from caches import generator

from ratedist.errors import InputError
from ratedist.kernels.rotary import STYLES, Rotary, rotate


@pytest.mark.parametrize("style", STYLES)
def test_turns_are_isometries_and_add_up(style: str) -> None:
    x = torch.randn(5, 3, 2, 12, generator=generator(0))
    rotary = Rotary.from_base(10_000.0, 8, style)
    a, b = torch.tensor([0, 1, -7, 400, 3]), torch.tensor([5, -1, 7, 12, 100_000])
    once, twice = rotate(x, a + b, rotary), rotate(rotate(x, a, rotary), b, rotary)
    torch.testing.assert_close(once, twice, atol=2e-5, rtol=0)
    torch.testing.assert_close(once.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, torch.zeros(5, dtype=torch.int32), rotary), x)
    assert torch.equal(once[..., 8:], x[..., 8:])


@pytest.mark.parametrize("style", STYLES)
def test_turns_by_the_angle_of_its_pair(style: str) -> None:
    """Against complex numbers: a pair (a, b) is a + ib, times exp(i · tokens · frequency)."""
    rotary = Rotary.from_base(100.0, 4, style)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]).view(1, 1, 1, 5)
    pairs = [(0, 2), (1, 3)] if style == "half" else [(0, 1), (2, 3)]
    turned = rotate(x, torch.tensor([3]), rotary).flatten()
    for frequency, (a, b) in zip((1.0, 0.1), pairs, strict=True):
        expected = complex(x[0, 0, 0, a], x[0, 0, 0, b]) * complex(
            math.cos(3 * frequency), math.sin(3 * frequency)
        )
        assert complex(turned[a], turned[b]) == pytest.approx(expected, rel=1e-6)


def test_is_what_transformers_applies() -> None:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=4096)
    embedding = LlamaRotaryEmbedding(config)
    x = torch.randn(1, 2, 6, 16, generator=generator(1))
    cos, sin = embedding(x, torch.arange(100, 106)[None])
    _, at_100 = apply_rotary_pos_emb(x, x, cos, sin)
    cos, sin = embedding(x, torch.arange(6)[None])
    _, at_0 = apply_rotary_pos_emb(x, x, cos, sin)
    rotary = Rotary(embedding.inv_freq.float())
    # (1, heads, tokens, head_dim) to one block of 6 tokens
    turned = rotate(at_0.transpose(1, 2), torch.tensor([100]), rotary)
    torch.testing.assert_close(turned, at_100.transpose(1, 2), atol=1e-4, rtol=0)


def test_refuses() -> None:
    with pytest.raises(InputError, match=r"base=1.0 must be above 1|base.*above 1"):
        Rotary.from_base(1.0, 8)
    with pytest.raises(InputError, match="must be even"):
        Rotary.from_base(10.0, 7)
    with pytest.raises(InputError, match="must be float32 of shape"):
        Rotary(torch.ones(2, 2))
    with pytest.raises(InputError, match="must be finite"):
        Rotary(torch.tensor([math.nan]))
    with pytest.raises(InputError, match="must be one of half, interleaved"):
        Rotary(torch.ones(2), "pairs")
