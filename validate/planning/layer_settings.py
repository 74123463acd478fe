"""A plan as plain settings per layer, which is what a fused cache takes."""

from __future__ import annotations

from typing import Any

from ratedist.errors import InputError
from ratedist.kernels.quantised import BITS
from ratedist.validate.planning.plan_file import CachePlan

__all__ = ["layer_settings"]


def layer_settings(plan: CachePlan) -> dict[int, dict[str, Any]]:
    """What ``ratedist.kernels.huggingface.FusedCache`` takes as ``plan``; with ``plan.block_size`` beside it.

    Exact sharing is fusion at threshold 1. Layers that the plan leaves as they are have no entry. With bits,
    keys are coded alike, per channel of a block; values have a scale per token and head there, and in the
    plan's own measurements one per at most 32 channels, so that the cache is slightly less exact and smaller.

    Raises:
        InputError: a layer whose cache would be coded as the fused cache cannot, with what it can.

    Test: tests/validate/planning/test_layer_settings.py::test_a_cache_by_a_plan_is_what_was_measured.
    """
    settings: dict[int, dict[str, Any]] = {}
    for layer, method in sorted(plan.settings.items()):
        if method.name == "nothing":
            continue
        coded = method.coding == "kivi" and method.bits in BITS
        if not method.sharing or (method.coding and not coded):
            codes = ", ".join(f"exact+kivi{bits} or fusion+kivi{bits}" for bits in BITS)
            raise InputError(
                f"plan, layer {layer}",
                method.name,
                f"is not what a fused cache does; it takes exact, fusion, {codes}: plan with --bits 16 and "
                f"{' or '.join(map(str, BITS))}",
            )
        settings[layer] = {
            "threshold": method.threshold if method.sharing == "fusion" else 1.0,
            "variant": method.variant,
            "criterion": method.criterion,
            "scale": method.scale,
            "bits": method.bits if coded else None,
        }
        if method.mode != "bff":
            settings[layer] |= {"mode": method.mode, "chunk_blocks": method.chunk_blocks}
    return settings
