"""Transformations of a layer before it is matched, and what they mean in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from caches import generator
from strategies import byte_groups, full_blocks, score_oracle
from torch import Tensor

from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.rotary import Rotary

KINDS = ("rotary", "partial", "position", "layer", "rotary and layer")


@dataclass(frozen=True)
class Wish:
    """Options of a transformation for a layer, and what they mean, in float64."""

    layer: PagedLayer
    options: dict[str, Any]

    def position(self, logical: int) -> int:
        request, block = divmod(logical, self.layer.table.entries.shape[1])
        start = int(self.options["starts"][request]) if "starts" in self.options else 0
        return start + block * self.layer.table.block_size

    def turn(self, block: Tensor, tokens: int) -> Tensor:
        """Turned by 2 × 2 matrices, one per pair of channels, in float64."""
        rotary = self.options.get("rotary")
        block = block.double().clone()
        if rotary is None:
            return block
        half = rotary.rotary_dim // 2
        for i in range(half):
            pair = [i, i + half] if rotary.style == "half" else [2 * i, 2 * i + 1]
            angle = rotary.inverse_frequencies[i].double() * tokens
            matrix = torch.stack(
                [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
            )
            block[..., pair] = block[..., pair] @ matrix.T
        return block

    def matched(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of every candidate as they are matched, and the means taken away from them."""
        logical = full_blocks(self.layer)
        max_blocks = self.layer.table.entries.shape[1]
        domains = self.layer.table.domains.tolist()
        blocks, means = [], []
        for pool in (self.layer.k, self.layer.v):
            stored = [pool[int(self.layer.table.entries.flatten()[a])].double() for a in logical]
            if pool is self.layer.k:
                stored = [self.turn(x, -self.position(a)) for x, a in zip(stored, logical, strict=True)]
            groups: dict[Any, list[Tensor]] = {}
            centre = self.options.get("centre")
            keys = [
                (domains[a // max_blocks], a % max_blocks if centre == "position" else None) for a in logical
            ]
            for key, x in zip(keys, stored, strict=True):
                groups.setdefault(key, []).append(x)
            mean = {
                key: (torch.stack(group).mean(0) if centre else torch.zeros_like(group[0]))
                .to(pool.dtype)
                .double()
                for key, group in groups.items()
            }
            means.append(
                torch.stack([mean[key] for key in keys]) if keys else torch.zeros(0, *pool.shape[1:])
            )
            blocks.append(
                torch.stack([x - mean[key] for x, key in zip(stored, keys, strict=True)])
                if keys
                else torch.zeros(0, *pool.shape[1:])
            )
        return blocks, means

    def scores(self, criterion: str) -> Tensor:
        """(n, n) float64 scores of the candidates as they are matched."""
        (k, v), _ = self.matched()
        ids = torch.arange(len(k))
        # A block alone at its position leaves rounding, if anything, once its mean is gone.
        return score_oracle(k, v, ids, ids, criterion)


def wish(layer: PagedLayer, kind: str, seed: int) -> Wish:
    head_dim = layer.k.shape[3]
    options: dict[str, Any] = {}
    if kind in ("position", "layer"):
        options["centre"] = kind
    else:
        whole = head_dim // 2 * 2
        options["rotary"] = (
            Rotary.from_base(50.0, 2, "interleaved") if kind == "partial" else Rotary.from_base(100.0, whole)
        )
        options["starts"] = torch.randint(-40, 400, (layer.table.requests,), generator=generator(seed))
        if kind == "rotary and layer":
            options["centre"] = "layer"
    return Wish(layer, options)


def firsts(layer: PagedLayer) -> dict[int, int]:
    first = {a: group[0] for group in byte_groups(layer) for a in group}
    return {a: first.get(a, a) for a in full_blocks(layer)}
