"""One captured layer at one threshold: counts of matches against laws, similarities, the worst merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances, counts_by_law
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.fusion.report import report
from ratedist.kernels.layout import PagedLayer
from ratedist.poisson_check import PoissonCheck, poisson_check
from ratedist.predictors import PairSample
from ratedist.records import Record, provenance
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.captures.store import Capture
from ratedist.validate.inspection.differences import similarity_by_difference
from ratedist.validate.inspection.effect import check_effect, merge_effect
from ratedist.validate.inspection.merges import worst_merges
from ratedist.validate.models import LoadedModel

__all__ = ["CRITERIA", "REQUESTS", "SCHEMA", "inspect_capture"]

SCHEMA = "ratedist/inspect/1"
"""Schema of the record."""

REQUESTS = 40
"""Requests that are looked at unless asked otherwise: all pairs of their blocks are compared."""

CRITERIA = ("keys", "both")

Progress = Callable[[str], None]
"""Called with what is done next."""


def inspect_capture(
    folder: Path,
    *,
    layer: int | None = None,
    threshold: float = 0.8,
    criterion: str = "keys",
    variant: str = "leader",
    requests: int | None = None,
    worst: int = 8,
    loaded: LoadedModel | None = None,
    effect: bool = False,
    seed: int = 0,
    progress: Progress = lambda step: None,
) -> Record:
    """Look at one layer of a capture: why its curve is what it is.

    Args:
        folder: the capture.
        layer: of the model; default the middle one of those captured.
        threshold: τ; a pair exceeds, and blocks fuse, where the score is greater.
        criterion: "keys" or "both", the lower of the similarities of keys and values.
        variant: of the fusion, "leader" or "tree".
        requests: the first so many of the capture; default 40, or all where there are fewer.
        worst: merges to list.
        loaded: the capture's model, whose tokenizer decodes texts; ids stand alone where None.
        effect: also run the model, for the effect of each listed merge on its request's last block.
        seed: of the scatterings of the test for a Poisson process.
        progress: told what is done next.

    Returns:
        Record of schema ``SCHEMA``. Rows by ``kind``: "counts" (see ``ratedist.exceedances.counts_by_law``,
        a column per law), "difference" (see ``similarity_by_difference``) and "merge" (see ``worst_merges``,
        with ``text``, ``with_text`` and the effect). Summary by ``kind``: "exceedances", "law" and "fusion".

    Raises:
        InputError: unknown layer, criterion or variant; a threshold outside (-1, 1); too few requests; blocks
            of several domains; a model that is not the capture's.
        CaptureError: no capture, or a damaged one.
    """
    _check(threshold, criterion, variant, requests, worst)
    if effect and loaded is None:
        raise InputError("effect", True, "needs the model; name it with --model")
    capture = Capture.open(folder, verify=False)
    manifest = capture.manifest
    if layer is None:
        layer = manifest.layers[len(manifest.layers) // 2]
    if loaded is not None and effect:
        check_effect(capture, loaded)
    chosen = _requests(capture, requests)
    progress("comparing all pairs of blocks")
    paged = capture.layer(layer, chosen)
    sample = pair_sample(paged)
    tokens = [capture.tokens(request) for request in chosen] if manifest.token_hashes else None
    scores = sample.scores(criterion)
    exceedances = _exceedances(sample, scores, threshold)
    progress(f"testing {exceedances.count:,} exceedances")
    checks = {null: poisson_check(exceedances, null=null, rng=seed) for null in ("homogeneous", "positions")}
    progress("fusing")
    fusion = fuse(paged, threshold=threshold, variant=variant, criterion=criterion, layer_name=layer)
    merges = worst_merges(paged, fusion, tokens, worst)
    for number, merge in enumerate(merges, start=1):
        if effect and loaded is not None:
            progress(f"running the model over merge {number} of {len(merges)}")
            request = chosen[merge["request"]]
            merge["effect"] = merge_effect(capture, loaded, layer, fusion.layer, merge, request)
        _name(merge, chosen, loaded)
    law_rows, laws = _laws(exceedances, scores[sample.comparable], threshold)
    return Record(
        SCHEMA,
        provenance(
            model=manifest.model,
            weights_hash=manifest.weights_hash,
            dtype=manifest.dtype,
            workload=manifest.workload,
            workload_seed=manifest.seed,
            layer=layer,
            requests=len(chosen),
            block_size=manifest.block_size,
            threshold=threshold,
            criterion=criterion,
            variant=variant,
            seed=seed,
        ),
        [*law_rows, *similarity_by_difference(sample, _texts(sample, paged, tokens)), *merges],
        [
            _exceeding(exceedances, checks, sample, threshold, scores),
            *laws,
            {"kind": "fusion", **report(paged, fusion).to_dict()},
        ],
    )


def _check(threshold: float, criterion: str, variant: str, requests: int | None, worst: int) -> None:
    if not -1 < threshold < 1:
        raise InputError("threshold", threshold, "must lie in (-1, 1)")
    if criterion not in CRITERIA:
        raise InputError("criterion", criterion, f"unknown; choose one of {', '.join(CRITERIA)}")
    if variant not in ("leader", "tree"):
        raise InputError("variant", variant, "must be leader or tree")
    if requests is not None and requests < 2:
        raise InputError("requests", requests, "must be at least 2: pairs are between requests")
    if worst < 0:
        raise InputError("worst", worst, "must not be negative")


def _requests(capture: Capture, requests: int | None) -> list[int]:
    """The first requests of a capture that have a full block."""
    manifest = capture.manifest
    full = [r for r, length in enumerate(manifest.lengths) if length >= manifest.block_size]
    wanted = min(REQUESTS, len(full)) if requests is None else requests
    if wanted > len(full) or wanted < 2:
        raise InputError(
            "requests", wanted, f"the capture has {len(full)} with a full block; at least 2 are needed"
        )
    chosen = full[:wanted]
    domains = sorted({manifest.domains[request] for request in chosen})
    if len(domains) > 1:
        raise InputError(
            "capture",
            f"domains {domains}",
            "holds blocks that never meet, of which no law of all pairs speaks; capture one domain by itself",
        )
    return chosen


def _exceedances(sample: PairSample, scores: NDArray[np.float64], threshold: float) -> Exceedances:
    first, second = np.nonzero(np.triu((scores > threshold) & sample.comparable))
    request, position = sample.request, sample.position
    return Exceedances.from_pairs(
        request[first],
        position[first],
        request[second],
        position[second],
        blocks=np.bincount(request),
    )


def _laws(
    exceedances: Exceedances, scores: NDArray[np.float64], threshold: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    spread = float(scores.std())
    gaussian = float(scipy.special.ndtr(-(threshold - scores.mean()) / spread)) if spread > 0 else 0.0
    found = counts_by_law(exceedances, gaussian)
    rows = [
        {"kind": "counts", "low": int(low), "high": int(high), "blocks": int(blocks)}
        | {law.name: float(law.expected[number]) for law in found.laws}
        for number, (low, high, blocks) in enumerate(zip(found.low, found.high, found.observed, strict=True))
    ]
    laws = [
        {
            "kind": "law",
            "law": law.name,
            "mean": law.mean,
            "distance": law.distance,
            "spread": law.spread,
        }
        for law in found.laws
    ]
    return rows, laws


def _exceeding(
    exceedances: Exceedances,
    checks: dict[str, PoissonCheck],
    sample: PairSample,
    threshold: float,
    scores: NDArray[np.float64],
) -> dict[str, Any]:
    equal = np.triu(sample.exact & sample.comparable)
    pairs = scores[sample.comparable]
    return {
        "kind": "exceedances",
        "threshold": threshold,
        "pairs": exceedances.candidate_pairs,
        "exceedances": exceedances.count,
        "byte_equal": int(equal.sum()),
        "per_block": exceedances.intensity,
        "blocks_without": exceedances.void_share,
        "score_mean": float(pairs.mean()),
        "score_sd": float(pairs.std()),
        "checks": [
            {"null": null, "verdict": check.verdict, "reasons": list(check.reasons)}
            for null, check in checks.items()
        ],
    }


def _texts(sample: PairSample, layer: PagedLayer, tokens: list[Tensor] | None) -> NDArray[np.int64] | None:
    """(blocks,) number of each block's text."""
    if tokens is None:
        return None
    size = layer.table.block_size
    blocks = torch.stack(
        [
            tokens[request][position * size : (position + 1) * size]
            for request, position in zip(sample.request.tolist(), sample.position.tolist(), strict=True)
        ]
    )
    return torch.unique(blocks, dim=0, return_inverse=True)[1].numpy()


def _name(merge: dict[str, Any], chosen: list[int], loaded: LoadedModel | None) -> None:
    """Requests as the capture numbers them, and texts in the place of ids where there is a tokenizer."""
    merge["request"], merge["with_request"] = chosen[merge["request"]], chosen[merge["with_request"]]
    if loaded is not None and merge["tokens"] is not None:
        merge["text"] = loaded.tokenizer.decode(merge["tokens"])
        merge["with_text"] = loaded.tokenizer.decode(merge["with_tokens"])
