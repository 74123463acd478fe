"""Whether two implementations fuse a layer alike and read the same attention from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.fuse import Fusion, fuse
from ratedist.kernels.layout import PagedLayer
from ratedist.validate.measure import Runtime, on_device, runtime_for

__all__ = ["ATTENTION_TOLERANCE", "TIE", "Agreement", "check_agreement"]

TIE = 1e-5
"""Scores this near to the threshold or to their rival may be decided either way."""

ATTENTION_TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest difference of attention outputs, relative to the largest output, by dtype of the cache."""


@dataclass(frozen=True)
class Agreement:
    """One layer fused and read by two implementations.

    Attributes:
        variant, threshold: of the fusion.
        blocks: candidates.
        kept: kept blocks of the first and of the second implementation.
        different: blocks that the two represent differently, near ties aside.
        near_ties: blocks represented differently whose scores lie within ``TIE``.
        scale_difference: largest difference of the scales of blocks represented alike.
        output_difference: largest difference of the attention outputs, relative to the largest output.
        lse_difference: largest difference of the logarithms of the softmax sums.
        tolerance: what the last three may be at most.
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
    tolerance: float

    @property
    def same_mapping(self) -> bool:
        """Whether both represent every block alike, near ties aside."""
        return self.different == 0

    @property
    def holds(self) -> bool:
        """Whether mapping, scales and attention all agree."""
        worst = max(self.scale_difference, self.output_difference, self.lse_difference)
        return self.same_mapping and worst <= self.tolerance


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
    options = {"threshold": threshold, "variant": variant, "criterion": criterion}
    checked, expected = (
        fuse(on_device(layer, side.device), backend=side.backend, **options) for side in (runtime, other)
    )
    differs = checked.representative.cpu() != expected.representative.cpu()
    tied = differs & _near_tie(checked, expected, threshold)
    alike = ~differs
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
        different=int((differs & ~tied).sum()),
        near_ties=int(tied.sum()),
        scale_difference=scale,
        output_difference=_largest_difference(out, out_expected) / largest,
        lse_difference=_largest_difference(lse, lse_expected),
        tolerance=ATTENTION_TOLERANCE[layer.k.dtype],
    )


def _near_tie(one: Fusion, two: Fusion, threshold: float) -> Tensor:
    """(requests, max_blocks) bool: where either choice is valid, by the scores of both."""
    a, b = one.score.cpu(), two.score.cpu()
    itself = torch.arange(a.numel()).view(a.shape)
    kept_a, kept_b = one.representative.cpu() == itself, two.representative.cpu() == itself
    rivals = ~kept_a & ~kept_b & ((a - b).abs() <= TIE)
    edge_a, edge_b = ((score - threshold).abs() <= TIE for score in (a, b))
    return rivals | (kept_a & ~kept_b & edge_b) | (kept_b & ~kept_a & edge_a)


def _largest_difference(one: Tensor, two: Tensor) -> float:
    """Largest absolute difference; equal infinities (the lse of a request without tokens) count 0."""
    a, b = one.float().cpu(), two.float().cpu()
    difference = torch.where(a == b, 0.0, (a - b).abs())
    return float(difference.max()) if not bool(difference.isnan().any()) else float("inf")
