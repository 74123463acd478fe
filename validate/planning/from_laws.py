"""A plan from the fitted laws of a capture alone: no model runs, so nothing is known of what it would say.

Every layer's predictor foretells, for each setting, the blocks that are kept and the relative errors of keys
and values. Settings are chosen at equal slope of bytes against the mean over layers of the squared error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.allocation import Allocation, LayerSettings, allocate, best_uniform
from ratedist.errors import InputError
from ratedist.records import provenance
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import default_layers
from ratedist.validate.planning.layer_bytes import LayerBytes
from ratedist.validate.planning.layer_law import PREDICTOR, LayerLaw, check_predictable, repeated
from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.planning.trials import Progress
from ratedist.validate.quality.methods import Method

__all__ = ["GOALS_OF_LAWS", "MOST_REQUESTS", "Foretold", "foretell", "plan_from_laws"]

FloatArray = NDArray[np.float64]

GOALS_OF_LAWS = ("max_kv_error", "min_saving")
"""At most this relative error of keys and values, root mean square over planned layers; or at least this
share of the cache saved."""

MOST_REQUESTS = 64
"""Requests that laws are fitted to unless told otherwise: similarities are kept for all pairs of blocks."""


@dataclass(frozen=True)
class Foretold:
    """All settings of all layers as laws foretell them, L layers and S settings.

    Attributes:
        layers: (L,) that are planned.
        settings: (S,) what each may take.
        bytes: (L, S) of the layer, all requests.
        bytes_low, bytes_high: (L, S) ends of their bands, NaN where a predictor gives none.
        k_error, v_error: (L, S) root mean square relative errors over the blocks of the layer.
    """

    layers: tuple[int, ...]
    settings: tuple[Method, ...]
    bytes: FloatArray
    bytes_low: FloatArray
    bytes_high: FloatArray
    k_error: FloatArray
    v_error: FloatArray

    @property
    def offers(self) -> list[LayerSettings]:
        """What ``ratedist.allocation`` chooses from: harm adds up to the mean squared error over layers."""
        harm = (self.k_error**2 + self.v_error**2) / (2 * len(self.layers))
        return [LayerSettings(size, cost) for size, cost in zip(self.bytes, harm, strict=True)]


def plan_from_laws(
    capture: Capture,
    goal: str,
    value: float,
    *,
    settings: Sequence[Method],
    requests: int | None = None,
    serve: int | None = None,
    predictor: str = PREDICTOR,
    command: list[str] | None = None,
    progress: Progress | None = None,
) -> CachePlan:
    """A plan for the model of a capture.

    Args:
        capture: its first requests are what laws are fitted to.
        goal: one of ``GOALS_OF_LAWS``.
        value: of the goal.
        settings: what a layer may take; without fewer bits, whose rounding no law of similarity knows.
        requests: to fit to; all the capture holds up to ``MOST_REQUESTS`` where None.
        serve: requests in the cache together, like those that were fitted to; as many where None.
        predictor: name of a predictor.
        command: for the plan's provenance.
        progress: called after every layer.

    Returns:
        A plan whose ``predicted`` has no divergence (``kl`` is None) and ``kv_error``, root mean square over
        planned layers of the relative errors of keys and values; ends of the bands of ``compression`` are
        added up over layers, which see the same requests. The band is of the settings as they are chosen:
        that they were chosen by the same sample is not in it.

    Raises:
        InputError: an unknown goal or one out of reach (the message says what the best is), settings with
            bits or that no predictor knows, or too few requests.

    Test: tests/validate/planning/test_plan_from_laws.py::test_a_plan_is_what_its_predictors_say.
    """
    if goal not in GOALS_OF_LAWS:
        raise InputError(
            "goal",
            goal,
            f"must be one of {', '.join(GOALS_OF_LAWS)}: a law of similarity does not tell what the model "
            "makes of its cache; plan with the model for that",
        )
    if not (math.isfinite(value) and value > 0) or (goal == "min_saving" and value >= 1):
        raise InputError(goal, value, "must be positive, and a share below 1 for min_saving")
    for method in settings:
        if method.coding:
            raise InputError(
                "bits", method.bits, "are rounding, which laws of similarity do not know; leave bits out"
            )
        check_predictable("settings", method)
    manifest = capture.manifest
    held = manifest.requests
    count = min(held, MOST_REQUESTS) if requests is None else requests
    if not 2 <= count <= held:
        raise InputError("requests", count, f"must lie in 2 … {held}, which the capture holds")
    served = count if serve is None else serve
    if served < count:
        raise InputError("serve", served, f"must be at least the {count} requests that laws are fitted to")
    foretold, size = foretell(
        capture, settings, requests=count, serve=served, predictor=predictor, progress=progress
    )
    unfused = manifest.model_layers * size.unfused
    alone = unfused - len(foretold.layers) * size.unfused
    chosen = _choose(foretold, goal, value, alone=alone, unfused=unfused)
    low, high = (
        _compression(unfused, alone, foretold, chosen, ends)
        for ends in (foretold.bytes_high, foretold.bytes_low)
    )
    compression = unfused / (alone + chosen.bytes)
    at = np.arange(len(foretold.layers)), chosen.settings
    return CachePlan(
        model=manifest.model,
        weights_hash=manifest.weights_hash,
        layers=manifest.model_layers,
        block_size=manifest.block_size,
        settings={
            layer: foretold.settings[number]
            for layer, number in zip(foretold.layers, chosen.settings.tolist(), strict=True)
        },
        goal={goal: float(value)},
        predicted={
            "from": "laws",
            "predictor": predictor,
            "requests": served,
            "calibration_requests": count,
            "compression": compression,
            "compression_low": low,
            "compression_high": high,
            "saving": 1 - 1 / compression,
            "kl": None,
            "kl_low": None,
            "kl_high": None,
            "kv_error": math.sqrt(chosen.harm),
            "k_error": float(np.sqrt((foretold.k_error[at] ** 2).mean())),
            "v_error": float(np.sqrt((foretold.v_error[at] ** 2).mean())),
            "tolerance": None,
            "uniform": _uniform(foretold, goal, value, alone=alone, unfused=unfused),
            "sensitivity": {},
        },
        provenance=provenance(command, workload=manifest.workload, seed=manifest.seed),
    )


def foretell(
    capture: Capture,
    settings: Sequence[Method],
    *,
    requests: int,
    serve: int,
    predictor: str = PREDICTOR,
    progress: Progress | None = None,
) -> tuple[Foretold, LayerBytes]:
    """All settings of all layers but the model's first and last two, and what one layer holds unfused.

    Args:
        capture: its first ``requests`` requests are fitted to.
        settings: of one predicted kind each.
        requests: to fit to.
        serve: requests to foretell, the lengths and domains of those repeated.
        predictor: name of a predictor.
        progress: called after every layer.
    """
    manifest = capture.manifest
    layers = default_layers(manifest)
    source = repeated(np.arange(requests), serve).tolist()
    size = LayerBytes.of_capture(manifest, source, manifest.block_size)
    blocks = [manifest.lengths[request] // manifest.block_size for request in source]
    domains = [manifest.domains[request] for request in source]
    # Settings that differ in their threshold alone are predicted together.
    families: dict[Method, list[int]] = {}
    for column, method in enumerate(settings):
        families.setdefault(replace(method, threshold=1.0), []).append(column)
    shape = len(layers), len(settings)
    stored, low, high, k_error, v_error = (np.zeros(shape) for _ in range(5))
    for row, layer in enumerate(layers):
        law = LayerLaw(capture.layer(layer, list(range(requests))), predictor)
        for method, columns in families.items():
            if not method.sharing:
                for found in (stored, low, high):
                    found[row, columns] = size.unfused
                continue
            exact = method.sharing == "exact"
            thresholds = [1.0 if exact else settings[column].threshold for column in columns]
            prediction = law.predict(method, blocks, domains, thresholds)
            ends = (prediction.kept, prediction.kept_low, prediction.kept_high)
            for found, kept in zip((stored, low, high), ends, strict=True):
                found[row, columns] = np.nan if kept is None else size.stored(method, kept)
            k_error[row, columns], v_error[row, columns] = prediction.k_error, prediction.v_error
        if progress is not None:
            progress("fitting laws", (row + 1) / len(layers))
    return Foretold(layers, tuple(settings), stored, low, high, k_error, v_error), size


def _choose(foretold: Foretold, goal: str, value: float, *, alone: float, unfused: float) -> Allocation:
    offers = foretold.offers
    if goal == "min_saving":
        most = 1 - (alone + foretold.bytes.min(axis=1).sum()) / unfused
        if value > most:
            raise InputError(goal, value, f"is out of reach: the most that these settings save is {most:.4f}")
        return allocate(offers, max_bytes=(1 - value) * unfused - alone)
    least = math.sqrt(sum(float(offer.harm.min()) for offer in offers))
    if value < least:
        raise InputError(goal, value, f"is out of reach: the least that these settings do is {least:.3g}")
    return allocate(offers, max_harm=value**2)


def _uniform(
    foretold: Foretold, goal: str, value: float, *, alone: float, unfused: float
) -> dict[str, Any] | None:
    """The best single setting for all layers; None where none reaches the goal."""
    limits: dict[str, float] = (
        {"max_bytes": (1 - value) * unfused - alone} if goal == "min_saving" else {"max_harm": value**2}
    )
    try:
        found = best_uniform(foretold.offers, **limits)
    except InputError:
        return None
    return {
        "setting": foretold.settings[int(found.settings[0])].to_json(),
        "compression": unfused / (alone + found.bytes),
        "kl": None,
        "kv_error": math.sqrt(found.harm),
    }


def _compression(
    unfused: float, alone: float, foretold: Foretold, chosen: Allocation, ends: FloatArray
) -> float | None:
    """Compression where every layer's bytes lie at these ends of their bands, None where one has none."""
    size = float(ends[np.arange(len(foretold.layers)), chosen.settings].sum())
    return unfused / (alone + size) if math.isfinite(size) else None
