"""Pools to match in, and what holds of a matcher whichever it is."""

from __future__ import annotations

from typing import Any

import torch
from caches import generator
from strategies import score_oracle
from torch import Tensor

from ratedist.kernels.fusion.matching import NO_LABEL
from ratedist.kernels.fusion.scoring import Part, Pools, make_scoring

SHAPE = (3, 2, 5)


def pools(blocks: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = generator(seed)
    common = torch.randn(SHAPE, generator=random)
    k = (common + torch.randn(blocks, *SHAPE, generator=random)).to(dtype)
    return k, torch.randn(blocks, *SHAPE, generator=random).to(dtype)


def lowest_labels_are_right(matcher: Any, blocks: int, criterion: str, seed: int) -> bool:
    """``Matcher.lowest_label`` against a loop over the pairs in float64."""
    k, v = pools(blocks + 4, seed=seed)
    k[1] = 0.0
    random = generator(seed)
    ids = torch.randperm(blocks + 4, generator=random)[:blocks]
    units = torch.randint(0, 4, (blocks,), generator=random).int()
    labels = torch.randperm(blocks, generator=random).int()
    score = score_oracle(k, v, ids, ids, criterion)
    limit = float(score.flatten().median()) + 1e-4 if blocks else 0.5
    layer = Pools(Part(k, matcher.block_norms(k)), Part(v, matcher.block_norms(v)))
    found = matcher.lowest_label(make_scoring(criterion, [layer]), ids, units, labels, limit)
    expected = [
        min(
            (int(labels[m]) for m in range(blocks) if units[m] != units[n] and float(score[n, m]) > limit),
            default=NO_LABEL,
        )
        for n in range(blocks)
    ]
    assert found.dtype == torch.int32
    assert found.tolist() == expected
    return True
