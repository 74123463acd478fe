"""Whether two implementations fuse a layer alike and read the same attention from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.layout import PagedLayer
from ratedist.validate.measure import Runtime, on_device, runtime_for

__all__ = ["ATTENTION_TOLERANCE", "FLOAT32_TOLERANCE", "TIE", "Agreement", "check_agreement"]

TIE = 1e-5
"""Scores this near to the threshold or to their rival may be decided either way."""

ATTENTION_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest difference of attention outputs, relative to the largest output, by dtype of the cache."""

FLOAT32_TOLERANCE = 1e-4
"""Largest difference of scales and of the logarithms of softmax sums, which are float32 for every dtype."""


@dataclass(frozen=True)
class Agreement:
    """One layer fused and read by two implementations.

    Attributes:
        variant, threshold: of the fusion.
        blocks: candidates.
        kept: kept blocks of the first and of the second implementation.
        different: blocks that the two treat differently, near ties and what follows them aside.
        near_ties: blocks absorbed differently whose own similarities lie within ``TIE``.
        scale_difference: largest difference of the scales of blocks represented alike.
        output_difference: largest difference of the attention outputs, relative to the largest output.
        lse_difference: largest difference of the logarithms of the softmax sums.
        output_tolerance: what ``output_difference`` may be at most.
    """

    variant: str
    threshold: float
    blocks: int
    kept: tuple[int, int]
    different: int
    near_ties: int
    scale_difference: float
    output_difference: float
    lse_difference: float
    output_tolerance: float

    @property
    def same_mapping(self) -> bool:
        """Whether both represent every block alike, near ties aside."""
        return self.different == 0

    @property
    def holds(self) -> bool:
        """Whether mapping, scales and attention all agree."""
        return (
            self.same_mapping
            and max(self.scale_difference, self.lse_difference) <= FLOAT32_TOLERANCE
            and self.output_difference <= self.output_tolerance
        )


def check_agreement(
    layer: PagedLayer,
    runtime: Runtime,
    *,
    group_size: int,
    threshold: float,
    variant: str = "leader",
    criterion: str = "keys",
    seed: int = 0,
    against: Runtime | None = None,
) -> Agreement:
    """Fuse ``layer`` and attend over the result with two implementations.

    Queries are random with the dtype of the cache, ``group_size`` of them per KV head. Each implementation
    attends over its own fused layer; where near ties made these differ, both attend over that of ``against``.

    Args:
        layer: paged keys and values.
        runtime: the implementation to check.
        group_size: query heads per KV head.
        threshold, variant, criterion: of the fusion.
        seed: of the queries.
        against: the implementation to compare with; the CPU path where None.
    """
    other = runtime_for("cpu") if against is None else against
    options: dict[str, Any] = {"threshold": threshold, "variant": variant, "criterion": criterion}
    checked, expected = (
        fuse(on_device(layer, side.device), backend=side.backend, **options) for side in (runtime, other)
    )
    moved = checked.absorber.cpu() != expected.absorber.cpu()
    tied = moved & _near_tie(layer, checked, expected, threshold, criterion)
    # In the tree members follow an absorber that is absorbed elsewhere; without a tie nothing may.
    followed = (checked.representative.cpu() != expected.representative.cpu()) & ~moved
    different = int((moved & ~tied).sum()) + (0 if bool(tied.any()) else int(followed.sum()))
    alike = ~(moved | followed)
    scale = max(
        float((getattr(checked.layer, name).cpu() - getattr(expected.layer, name).cpu())[alike].abs().max())
        for name in ("k_scale", "v_scale")
    )
    generator = torch.Generator().manual_seed(seed)
    heads, head_dim = layer.k.shape[2] * group_size, layer.k.shape[3]
    q = torch.randn(layer.table.requests, heads, head_dim, generator=generator).to(layer.k.dtype)
    fused = expected.layer if bool(tied.any()) else checked.layer
    out, lse = paged_decode_attention(
        q.to(runtime.device), on_device(fused, runtime.device), backend=runtime.backend
    )
    out_expected, lse_expected = paged_decode_attention(
        q.to(other.device), on_device(expected.layer, other.device), backend=other.backend
    )
    largest = max(float(out_expected.float().abs().max()), 1e-30)
    return Agreement(
        variant=variant,
        threshold=threshold,
        blocks=expected.candidates,
        kept=(checked.kept, expected.kept),
        different=different,
        near_ties=int(tied.sum()),
        scale_difference=scale,
        output_difference=_largest_difference(out, out_expected) / largest,
        lse_difference=_largest_difference(lse, lse_expected),
        output_tolerance=ATTENTION_TOLERANCE[layer.k.dtype],
    )


def _near_tie(layer: PagedLayer, one: Fusion, two: Fusion, threshold: float, criterion: str) -> Tensor:
    """(requests, max_blocks) bool: where the blocks' own similarities leave either choice valid.

    Computed from the blocks, not taken from the fusions: a wrong position with a right score is an error.
    """
    entries = layer.table.entries.flatten().long()
    itself = torch.arange(entries.numel())
    absorbers = [fusion.absorber.cpu().flatten() for fusion in (one, two)]
    result = torch.zeros(entries.numel(), dtype=torch.bool)
    for index in torch.nonzero(absorbers[0] != absorbers[1]).flatten().tolist():
        scores = []
        for absorber in (int(side[index]) for side in absorbers):
            if absorber == int(itself[index]):
                scores.append(threshold)  # kept: its rival is the threshold itself
                continue
            here, there = int(entries[index]), int(entries[absorber])
            pools = (layer.k,) if criterion == "keys" else (layer.k, layer.v)
            scores.append(
                min(
                    float(cosine_similarity(p[here].double().ravel(), p[there].double().ravel(), dim=0))
                    for p in pools
                )
            )
        result[index] = abs(scores[0] - scores[1]) <= TIE
    return result.view(one.absorber.shape)


def _largest_difference(one: Tensor, two: Tensor) -> float:
    """Largest absolute difference; equal infinities (the lse of a request without tokens) count 0."""
    a, b = one.float().cpu(), two.float().cpu()
    difference = torch.where(a == b, 0.0, (a - b).abs())
    return float(difference.max()) if not bool(difference.isnan().any()) else float("inf")
