"""Turning blocks by their position."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.sim.rotary import Rotary


def blocks(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4, 2, 8), dtype=np.float32)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_turning_is_an_isometry_and_adds_up(fraction: float) -> None:
    rotary, x = Rotary(100.0, fraction), blocks(3)
    tokens = np.array([0, 5, 37])
    turned = rotary.turn(x, tokens)
    assert np.array_equal(turned[0], x[0])
    assert not np.allclose(turned[1], x[1])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(rotary.turn(turned, 3 - tokens), rotary.turn(x, [3, 3, 3]), atol=2e-6)
    if fraction < 1:
        assert np.array_equal(turned[..., 4:], x[..., 4:])


def test_agrees_with_complex_multiplication() -> None:
    """Pair (j, j + d/2) of a token is one complex number, multiplied by exp(i·position·frequency)."""
    rotary, x = Rotary(10_000.0), blocks(2, seed=1).astype(np.float64)
    number = x[..., :4] + 1j * x[..., 4:]
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    expected = number * np.exp(1j * np.array([7, 200])[:, None, None, None] * frequency)
    turned = rotary.turn(x.astype(np.float32), [7, 200])
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], -1), atol=1e-5)


def test_agrees_with_the_rotation_of_transformers() -> None:
    """The convention is that of the Llama family, so captured keys turn back as they were turned."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}
    )
    x = blocks(1, seed=2)
    keys = torch.from_numpy(x[0]).transpose(0, 1)[None]
    cos, sin = LlamaRotaryEmbedding(config)(keys, torch.full((1, 4), 48))
    _, expected = apply_rotary_pos_emb(keys, keys, cos, sin)
    turned = Rotary(5000.0).turn(x, [48])[0]
    np.testing.assert_allclose(turned, expected[0].transpose(0, 1).numpy(), atol=1e-5)


def test_mean_cosine_is_the_mean_over_directions() -> None:
    rotary, offsets = Rotary(50.0, 0.5), np.array([0, 3, 20])
    x = blocks(4000, seed=3)
    x /= np.sqrt(np.square(x).sum(axis=(1, 2, 3), keepdims=True))
    for offset, expected in zip(offsets, rotary.mean_cosine(8, offsets), strict=True):
        cosine = (x * rotary.turn(x, np.full(len(x), offset))).sum(axis=(1, 2, 3))
        error = cosine.std() / np.sqrt(len(x)) + 1e-6
        assert abs(cosine.mean() - expected) < 4 * error


def test_reads_a_models_configuration() -> None:
    assert Rotary.from_config({"rope_theta": 1e5, "rope_type": "default"}) == Rotary(1e5)
    assert Rotary.from_config({"rope_theta": 1e5, "partial_rotary_factor": 0.25}) == Rotary(1e5, 0.25)
    assert Rotary.from_config({}) is None
    assert Rotary.from_config({"rope_theta": 1e5, "rope_type": "yarn"}) is None


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"theta = 1: must be a finite number above 1"):
        Rotary(1)
    with pytest.raises(InputError, match=r"fraction = 0: must lie in \(0, 1\]"):
        Rotary(10.0, 0)
    with pytest.raises(InputError, match=r"head_dim = 7: needs an even number"):
        Rotary().frequencies(7)
