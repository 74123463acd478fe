"""Layers of which every similarity can be told by eye: tokens as directions in a plane."""

from __future__ import annotations

import math

import torch

from ratedist.kernels.layout import BlockTable, PagedLayer

COS40 = math.cos(math.radians(40))

ASIDE = [0.0, 0.0, 1.0, 0.0]


def direction(degrees: float, length: float = 1.0) -> list[float]:
    """In the plane of the first two of four coordinates."""
    angle = math.radians(degrees)
    return [length * math.cos(angle), length * math.sin(angle), 0.0, 0.0]


def one_token_layer(
    keys: list[list[list[float]]],
    values: list[list[list[float]]] | None = None,
    domains: list[int] | None = None,
) -> PagedLayer:
    """A block is one token of one head; ``keys[request][block]`` is a vector of four."""
    lengths = [len(blocks) for blocks in keys]
    k = torch.tensor([block for blocks in keys for block in blocks]).view(-1, 1, 1, 4)
    if values is None:
        # All different, so that no two blocks are byte-equal.
        v = torch.arange(1.0, k.numel() + 1).view_as(k)
    else:
        v = torch.tensor([block for blocks in values for block in blocks]).view(-1, 1, 1, 4)
    entries = torch.full((len(keys), max(lengths)), -1, dtype=torch.int32)
    entries[torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]] = torch.arange(
        len(k), dtype=torch.int32
    )
    return PagedLayer(
        k, v, BlockTable(entries, torch.tensor(lengths), torch.tensor(domains or [0] * len(keys)), 1)
    )
