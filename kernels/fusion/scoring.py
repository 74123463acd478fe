"""Scores of pairs of blocks: the criteria, as data that every matcher reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.scales import row_products

__all__ = ["CRITERIA", "Part", "Pools", "Scoring", "make_scoring"]

CRITERIA = ("keys", "both", "mean", "distance")
"""Scores of a member x and a representative y, at most 1, from the cosine similarities S of keys and values:

- ``"keys"``: S_K;
- ``"both"``: min(S_K, S_V);
- ``"mean"``: (S_K + S_V) / 2;
- ``"distance"``: the mean over keys and values of 1 - ½ ‖x - y‖² / ‖x‖², which with ρ = ‖y‖ / ‖x‖ is
  S ρ + (1 - ρ²) / 2. It has no lower bound, and it is not symmetric: it asks what x loses where y is read in
  its place, as scale rule "raw" does.

A block of norm zero has no direction: its similarity to anything is 0, and so is its part of a distance.
Test: tests/kernels/fusion/test_scoring.py::test_scores_are_those_of_the_definition.
"""


@dataclass(frozen=True)
class Part:
    """One pool that a score looks at.

    Attributes:
        pool: (blocks, block_size, kv_heads, head_dim).
        norm: (blocks,) float32 norms of its blocks.
    """

    pool: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Pools:
    """Keys and values of one layer with their norms, as ``Part`` has them."""

    k: Part
    v: Part


@dataclass(frozen=True)
class Scoring:
    """How a pair of blocks is scored: min(1, least over the terms of the mean over a term's parts).

    Attributes:
        terms: one or two, with equally many parts each. All pools hold blocks of one shape and dtype, and
            a block has the same physical id in all of them.
        distance: parts score 1 - ½ ‖x - y‖² / ‖x‖² instead of the cosine similarity.
        layers: layers that the parts come from.
    """

    terms: tuple[tuple[Part, ...], ...]
    distance: bool = False
    layers: int = 1

    @property
    def first(self) -> Tensor:
        """The first pool, for shape, dtype and device."""
        return self.terms[0][0].pool

    def pairs(self, rows: Tensor, cols: Tensor) -> Tensor:
        """(n,) float32 scores of the blocks ``rows[i]`` as members of ``cols[i]``.

        Args:
            rows: (n,) int64 physical ids.
            cols: (n,) int64 physical ids.
        """
        score = torch.ones(len(rows), dtype=torch.float32, device=rows.device)
        for term in self.terms:
            total = torch.zeros_like(score)
            for part in term:
                total += self._part(part, rows, cols)
            torch.minimum(score, total.div_(len(term)), out=score)
        return score

    def _part(self, part: Part, rows: Tensor, cols: Tensor) -> Tensor:
        own, other = part.norm[rows], part.norm[cols]
        products = row_products(part.pool, rows, cols) / own / other
        similarity = torch.where((own > 0) & (other > 0), products, 0.0)
        if not self.distance:
            return similarity
        ratio = torch.where(own > 0, other / own, 0.0)
        return torch.where(own > 0, ratio * (similarity - 0.5 * ratio) + 0.5, 0.0)


def make_scoring(criterion: str, layers: Sequence[Pools]) -> Scoring:
    """The scoring of a criterion; over several layers every term is their mean.

    Args:
        criterion: one of ``CRITERIA``.
        layers: at least one, with blocks of one shape and dtype and the same physical ids.

    Raises:
        InputError: an unknown criterion.
    """
    keys, values = tuple(layer.k for layer in layers), tuple(layer.v for layer in layers)
    if criterion == "keys":
        return Scoring((keys,), layers=len(layers))
    if criterion == "both":
        return Scoring((keys, values), layers=len(layers))
    if criterion in ("mean", "distance"):
        return Scoring((keys + values,), criterion == "distance", len(layers))
    raise InputError("criterion", criterion, f"must be one of {', '.join(CRITERIA)}")
