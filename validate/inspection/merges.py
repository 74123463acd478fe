"""The merges of a fusion that change most: which blocks, what stands in them, and what it does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.restore import block_errors

__all__ = ["worst_merges"]


def worst_merges(
    original: PagedLayer, fusion: Fusion, tokens: Sequence[Tensor] | None, count: int
) -> list[dict[str, Any]]:
    """The absorbed blocks of largest error, the sum of squares over keys and values, each replacement once.

    Where several blocks of one text are read from representatives of one text, the worst of them stands for
    all: a shared prompt would else fill the list with one merge.

    Args:
        original: the layer that was fused.
        fusion: what became of it.
        tokens: per request its token ids; None where they are not known, every merge then stands for itself.
        count: merges to list, at most.

    Returns:
        By falling error ``{request, block, with_request, with_block, score, k_error, v_error, tokens,
        with_tokens, differing_tokens, times}``: the block, the one that it is read from, their score, the
        relative errors, their token ids and how many of these differ (None where unknown), and how many
        merges of the layer replace this text by this text. Exact duplicates, whose errors are 0, never stand
        there.

    Test: tests/validate/inspection/test_inspection.py::test_worst_merges_are_those_of_a_loop_over_the_blocks.
    """
    k_squared, v_squared = (error.flatten().double() for error in block_errors(original, fusion.layer))
    table = fusion.layer.table
    width, size = table.entries.shape[1], table.block_size
    representative = fusion.representative.flatten()
    own = torch.arange(len(representative), device=representative.device)
    changed = torch.nonzero(
        (representative >= 0) & (representative != own) & (k_squared + v_squared > 0)
    ).flatten()
    order = changed[torch.argsort((k_squared + v_squared)[changed], descending=True, stable=True)]

    def text(logical: int) -> tuple[int, ...]:
        if tokens is None:
            return (logical,)
        start = logical % width * size
        return tuple(tokens[logical // width][start : start + size].tolist())

    found: dict[tuple[tuple[int, ...], tuple[int, ...]], dict[str, Any]] = {}
    for logical in order.tolist():
        other = int(representative[logical])
        mine, theirs = text(logical), text(other)
        if (mine, theirs) in found:
            found[mine, theirs]["times"] += 1
            continue
        found[mine, theirs] = {
            "kind": "merge",
            "request": logical // width,
            "block": logical % width,
            "with_request": other // width,
            "with_block": other % width,
            "score": float(fusion.score.flatten()[logical]),
            "k_error": float(k_squared[logical].sqrt()),
            "v_error": float(v_squared[logical].sqrt()),
            "tokens": None if tokens is None else list(mine),
            "with_tokens": None if tokens is None else list(theirs),
            "differing_tokens": (
                None if tokens is None else sum(a != b for a, b in zip(mine, theirs, strict=True))
            ),
            "times": 1,
        }
    return list(found.values())[:count]
