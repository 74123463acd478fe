"""Quantisation there and back, against one scalar at a time and against what packing would take."""

from __future__ import annotations

import math
import random
import struct

import pytest
import torch

from ratedist.errors import InputError
from ratedist.validate.quality.quantise import (
    channel_group,
    quantise_keys,
    quantise_per_token,
    quantise_values,
    scalar_bytes,
    token_bytes,
)


def half(number: float) -> float:
    """What IEEE half precision makes of a number."""
    return struct.unpack("<e", struct.pack("<e", number))[0]


def by_hand(group: list[float], bits: int) -> list[float]:
    """Nearest of 2^bits levels from the smallest scalar up, each with scale and zero in half precision."""
    scale, zero = half((max(group) - min(group)) / (2**bits - 1)), half(min(group))
    levels = [zero + level * scale for level in range(2**bits)]
    return [min(levels, key=lambda level: abs(level - x)) for x in group]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_keys_are_grouped_along_the_tokens_of_a_channel(bits: int) -> None:
    x = draw(2, 8, 2, 3)
    read = quantise_keys(x, bits, 4)
    for n in range(2):
        for start in (0, 4):
            for head in range(2):
                for channel in range(3):
                    group = x[n, start : start + 4, head, channel]
                    expected = torch.tensor(by_hand(group.tolist(), bits))
                    torch.testing.assert_close(
                        read[n, start : start + 4, head, channel], expected, rtol=0, atol=1e-5
                    )


@pytest.mark.parametrize("bits", [2, 4])
def test_values_are_grouped_along_the_channels_of_a_token(bits: int) -> None:
    x = draw(2, 3, 2, 4)
    read = quantise_values(x, bits, 4)
    for n in range(2):
        for token in range(3):
            for head in range(2):
                expected = torch.tensor(by_hand(x[n, token, head].tolist(), bits))
                torch.testing.assert_close(read[n, token, head], expected, rtol=0, atol=1e-5)


def test_per_token_int8_by_hand() -> None:
    x = draw(2, 3, 2, 5)
    read = quantise_per_token(x)
    for index in [(n, token, head) for n in range(2) for token in range(3) for head in range(2)]:
        scale = half(float(x[index].abs().max()) / 127)
        expected = [scale * max(-127, min(127, round(float(value) / scale))) for value in x[index]]
        torch.testing.assert_close(read[index], torch.tensor(expected), rtol=0, atol=1e-5)


def test_constants_and_zeros_survive() -> None:
    x = torch.full((1, 32, 2, 16), 1.5)
    for read in (
        quantise_keys(x, 2),
        quantise_values(x, 2),
        quantise_keys(0 * x, 2),
        quantise_per_token(0 * x),
    ):
        assert bool(torch.isfinite(read).all())
    assert torch.equal(quantise_keys(x, 2), x)
    assert torch.equal(quantise_per_token(0 * x), 0 * x)


def test_error_falls_with_bits_and_is_at_most_half_a_step() -> None:
    x = draw(1, 64, 2, 16)
    grouped = x.view(1, 2, 32, 2, 16)
    width = grouped.amax(2) - grouped.amin(2)
    worst = []
    for bits in range(1, 9):
        error = (quantise_keys(x, bits) - x).view_as(grouped).abs().amax(2)
        # Rounding of the scale moves the upmost level by at most 2^-11 of the range, that of zero by as much.
        assert bool((error <= width / (2**bits - 1) / 2 + 1e-3 * (width + x.abs().max())).all())
        worst.append(float(error.max()))
    assert worst == sorted(worst, reverse=True)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 32), (2, 16), (8, 8)])
def test_bytes_of_a_scalar_are_those_of_a_packed_group(bits: int, group: int) -> None:
    codes = sum(random.Random(n).getrandbits(bits) << (n * bits) for n in range(group))
    packed = codes.to_bytes(math.ceil(group * bits / 8), "little") + struct.pack("<ee", 0.5, -1.0)
    assert scalar_bytes(bits, group) * group == len(packed)


def test_bytes_of_a_token() -> None:
    assert token_bytes(64) * 64 == len(bytes(64) + struct.pack("<e", 0.5))


@pytest.mark.parametrize(("channels", "group"), [(192, 32), (16, 16), (80, 20), (7, 7), (37, 1)])
def test_group_of_channels_divides_them(channels: int, group: int) -> None:
    assert channel_group(channels) == group


def test_what_cannot_be_quantised_is_named() -> None:
    with pytest.raises(InputError, match=r"bits.*9.*1 … 8"):
        quantise_keys(draw(1, 32, 1, 4), 9)
    with pytest.raises(InputError, match=r"group.*32.*divide the 31"):
        quantise_keys(draw(1, 31, 1, 4), 4)
    with pytest.raises(InputError, match="float16 scale"):
        quantise_keys(1e6 * draw(1, 32, 1, 4), 4)
