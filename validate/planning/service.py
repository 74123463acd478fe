"""What a plan saves when more requests are in the cache together than it was made on, by fitted laws.

The more requests there are, the more blocks find a match: the saving grows, and so does the error. Kept
blocks are predicted layer by layer by predictors that are fitted on the calibration requests; the divergence
is not, since no law tells what a model makes of its cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ratedist.errors import InputError
from ratedist.validate.planning.layer_bytes import LayerBytes
from ratedist.validate.planning.layer_law import PREDICTOR, LayerLaw, check_predictable, repeated
from ratedist.validate.planning.trials import Progress
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method

__all__ = ["check_service", "foresee_service"]


def check_service(requests: int, calibration: int) -> None:
    """Raise InputError unless more requests are to be served than were seen."""
    if requests <= calibration:
        raise InputError(
            "serve",
            requests,
            f"must be more than the {calibration} calibration requests; for as many, leave it out",
        )


def foresee_service(
    session: QualitySession,
    methods: Mapping[int, Method],
    requests: int,
    *,
    predictor: str = PREDICTOR,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict a plan's saving for more requests like those of a session.

    Args:
        session: the calibration requests; their lengths and domains are repeated.
        methods: the plan, settings per layer.
        requests: in the cache together, more than the session's.
        predictor: name of a predictor.
        progress: called after every layer.

    Returns:
        ``requests, calibration_requests, predictor``; ``compression, compression_low, compression_high`` of
        the whole cache and ``saving, saving_low, saving_high``, the ends of bands added up over layers, which
        see the same requests (None where a predictor gives none); ``kv_error``, root mean square over planned
        layers of the relative errors of keys and values, and ``kv_error_calibration``, the same for as many
        requests as the session has: how much more is changed than what divergence was measured on.

    Raises:
        InputError: no more requests than the session has, or settings that no predictor knows.

    Test: tests/validate/planning/test_plan_service.py::test_twice_the_requests_against_predictors_by_hand.
    """
    check_service(requests, session.requests)
    for layer, method in methods.items():
        check_predictable(f"plan, layer {layer}", method)
    lengths = tuple(repeated(session.lengths, requests).tolist())
    k = session.layer(0).paged.k
    count = LayerBytes(lengths, session.block_size, k.shape[2], k.shape[3], k.element_size())
    stored = np.full(3, (session.loaded.layers - len(methods)) * count.unfused)
    squared: list[list[float]] = [[], []]
    banded = True
    for done, (layer, method) in enumerate(sorted(methods.items()), start=1):
        if not method.sharing:
            stored += count.unfused
            continue
        paged = session.layer(layer).paged
        blocks, domains = paged.table.full_blocks.cpu().numpy(), paged.table.domains.cpu().numpy()
        law = LayerLaw(paged, predictor)
        for number, found in zip((requests, len(blocks)), squared, strict=True):
            prediction = law.predict(method, repeated(blocks, number), repeated(domains, number))
            found.append((float(prediction.k_error[0]) ** 2 + float(prediction.v_error[0]) ** 2) / 2)
            if number == requests:
                low, high = prediction.kept_low, prediction.kept_high
                banded = banded and low is not None and high is not None
                # In the order of compression, its low end and its high end.
                kept = [prediction.kept, *(prediction.kept if end is None else end for end in (high, low))]
                stored += [count.stored(method, float(blocks_kept[0])) for blocks_kept in kept]
        if progress is not None:
            progress(f"predicting for {requests} requests", done / len(methods))
    compression = session.loaded.layers * count.unfused / stored
    names = ("", "_low", "_high")
    known = (True, banded, banded)
    return {
        "requests": requests,
        "calibration_requests": session.requests,
        "predictor": predictor,
        **{
            f"{what}{name}": float(value) if is_known else None
            for what, values in (("compression", compression), ("saving", 1 - 1 / compression))
            for name, value, is_known in zip(names, values, known, strict=True)
        },
        "kv_error": _root_mean(squared[0]),
        "kv_error_calibration": _root_mean(squared[1]),
    }


def _root_mean(squares: list[float]) -> float:
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0
