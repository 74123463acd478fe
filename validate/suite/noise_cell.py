"""Noise of measuring one layer's compression: pairs of drawings, fused with the thresholds of a suite."""

from __future__ import annotations

import math
from typing import Any

from ratedist.validate.captures.manifest import Manifest
from ratedist.validate.suite.noise import draw_exchange
from ratedist.validate.suite.scored_layer import Draw, ScoredLayer
from ratedist.validate.suite.splits import generator, with_full_blocks
from ratedist.validate.suite.tasks import Suite

__all__ = ["REORDERED", "noise_cell"]

REORDERED = 1
"""Further orders in which every drawing of a noise cell is fused, to tell order from requests."""


def noise_cell(
    manifest: Manifest, scored: ScoredLayer, index: int, m: int, suite: Suite, mode: str = "bff"
) -> dict[str, Any]:
    """Deviations of the logarithm of the compression of m requests, see ``ratedist.validate.suite.noise``.

    All requests of the capture are drawn from. Without more than m of them there are no deviations. With each
    goes one of the same requests in another order (``order_deviations``).
    """
    requests = with_full_blocks(manifest)
    pairs = []
    if len(requests) > m:
        rng = generator(manifest, m, 1)  # not a seed of a split
        pairs = [draw_exchange(requests, m, rng) for _ in range(suite.noise_pairs(m))]
    orders = generator(manifest, m, 2)
    drawn = [
        (
            pair,
            scored.draw(pair.one),
            scored.draw(pair.other),
            scored.draw(tuple(orders.permutation(pair.one).tolist())),
        )
        for pair in pairs
    ]

    def log_compression(draw: Draw, threshold: float, variant: str, criterion: str) -> float:
        return math.log(draw.candidates / draw.kept(threshold, variant, criterion))

    return {
        "kind": "noise",
        "mode": mode,
        "workload": manifest.workload,
        "layer": index,
        "m": m,
        "share": pairs[0].share if pairs else None,
        "results": [
            {
                "variant": variant,
                "criterion": criterion,
                "threshold": threshold,
                "deviations": [
                    pair.deviation(
                        log_compression(one, threshold, variant, criterion),
                        log_compression(other, threshold, variant, criterion),
                    )
                    for pair, one, other, _ in drawn
                ],
                "order_deviations": [
                    abs(
                        log_compression(one, threshold, variant, criterion)
                        - log_compression(again, threshold, variant, criterion)
                    )
                    / math.sqrt(2)
                    for _, one, _, again in drawn
                ],
            }
            for variant in suite.variants
            for criterion in suite.criteria
            for threshold in suite.thresholds
        ],
    }
