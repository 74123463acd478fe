"""Every setting tried on every layer by itself: what it stores, and what harm it is taken to do.

The error of every setting is found by attention alone: a_l², the squared relative error of the layer's
attention output. Harm is one of two things. The mean over layers of a_l² needs no more. Next-token divergence
is taken to add up over layers and, within a layer, to be proportional to that error, KL ≈ Σ_l w_l·a_l²; one
pass of the model per layer gives w_l.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ratedist.allocation import Allocation, LayerSettings
from ratedist.errors import InputError
from ratedist.validate.planning.measurements import Measurements
from ratedist.validate.quality.methods import Method
from ratedist.validate.suite.tasks import CHUNK_BLOCKS

__all__ = ["LEAST_HARM", "Progress", "Trials", "default_settings", "try_settings", "weigh_layers"]

FloatArray = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Called with what is under way and the share of it that is done."""

LEAST_HARM = 1e-9
"""Nats below which a setting counts as harmless."""

_PROBE_ERROR2 = 0.02
"""Squared attention error at which a layer's weight is found: large enough to stand out, small enough to be
in the range that plans use."""


def default_settings(
    thresholds: Sequence[float] = tuple(np.arange(0.6, 0.96, 0.05).round(2).tolist()),
    criteria: Sequence[str] = ("keys", "both"),
    bits: Sequence[int] = (16, 4),
    *,
    variants: Sequence[str] = ("leader",),
    scales: Sequence[str] = ("own-norm",),
    modes: Sequence[str] = ("bff",),
    chunk_blocks: int = CHUNK_BLOCKS,
) -> list[Method]:
    """Settings that a layer may take: exact sharing alone, and fusion, each with 16 bits and with fewer.

    Args:
        thresholds, criteria, variants, scales: of fusion, in all combinations.
        bits: per scalar of what is kept; below 16 as ``"kivi"`` codes them.
        modes: of both kinds of sharing: across requests, ``"bff"``, or across the chunks of each, ``"cff"``.
        chunk_blocks: full blocks per chunk, for ``"cff"``.

    Raises:
        InputError: nothing of a kind, one named twice, or one that there is not.
    """
    kinds = {
        "threshold": thresholds,
        "criterion": criteria,
        "bits": bits,
        "variant": variants,
        "scale": scales,
        "mode": modes,
    }
    for argument, values in kinds.items():
        if not values:
            raise InputError(argument, list(values), "name at least one")
        if len(set(values)) < len(values):
            raise InputError(argument, list(values), "names one twice; name each once")
    for number in bits:
        if number != 16 and not 1 <= number <= 8:
            raise InputError("bits", number, "must be 16, or 1 to 8")
    settings = []
    for number, mode in product(bits, modes):
        coding, stored = ("", 0) if number == 16 else ("kivi", number)
        chunks = None if mode == "bff" else chunk_blocks
        settings.append(Method("exact", coding, stored, mode=mode, chunk_blocks=chunks))
        settings += [
            Method(
                "fusion",
                coding,
                stored,
                variant=variant,
                criterion=criterion,
                scale=scale,
                threshold=float(threshold),
                mode=mode,
                chunk_blocks=chunks,
            )
            for variant, scale, criterion, threshold in product(variants, scales, criteria, thresholds)
        ]
    return settings


@dataclass(frozen=True)
class Trials:
    """All settings of all layers on the calibration requests, L layers and S settings.

    Attributes:
        layers: (L,) that are planned.
        settings: (S,) what each may take.
        bytes: (L, S) of the layer over all requests.
        error2: (L, S) mean over requests of the squared relative error of the attention output.
        alone: bytes of the layers that are not planned.
        unfused: bytes of the whole original cache.
    """

    layers: tuple[int, ...]
    settings: tuple[Method, ...]
    bytes: FloatArray
    error2: FloatArray
    alone: float
    unfused: float

    def harm(self, weight: FloatArray) -> FloatArray:
        """(L, S) what each setting is taken to cost, where a layer's error2 costs its ``weight``."""
        return weight[:, None] * self.error2

    @property
    def equal_weight(self) -> FloatArray:
        """(L,) weights with which harm is the mean over layers of error2."""
        return np.full(len(self.layers), 1 / len(self.layers))

    def offers(self, weight: FloatArray) -> list[LayerSettings]:
        """What ``ratedist.allocation`` chooses from."""
        return [LayerSettings(size, cost) for size, cost in zip(self.bytes, self.harm(weight), strict=True)]

    def methods(self, allocation: Allocation) -> dict[int, Method]:
        """The setting that every layer takes."""
        return {
            layer: self.settings[setting]
            for layer, setting in zip(self.layers, allocation.settings.tolist(), strict=True)
        }

    def exact_saving(self) -> float | None:
        """Share of the cache that exact duplicates alone save; None where no setting shares them alone."""
        exact = Method("exact")
        if exact not in self.settings:
            return None
        size = self.alone + self.bytes[:, self.settings.index(exact)].sum()
        return float(1 - size / self.unfused)


def try_settings(
    measurements: Measurements, settings: Sequence[Method], progress: Progress | None = None
) -> Trials:
    """Try every setting on every layer of a session.

    Args:
        measurements: of the calibration requests.
        settings: at least one.
        progress: called after every layer.

    Raises:
        InputError: no settings.
    """
    if not settings:
        raise InputError("settings", [], "name at least one")
    session = measurements.session
    layers = session.layers
    size, error2 = (np.zeros((len(layers), len(settings))) for _ in range(2))
    for row, layer in enumerate(layers):
        for column, method in enumerate(settings):
            trial = session.try_layer(layer, method)
            size[row, column] = trial.bytes
            error2[row, column] = trial.attention_error2.mean()
        if progress is not None:
            progress("trying settings", (row + 1) / len(layers))
    # Without compression a layer takes the same bytes for each of them.
    planned = sum(session.try_layer(layer, Method()).bytes for layer in layers)
    unfused = planned * session.loaded.layers / len(layers)
    return Trials(layers, tuple(settings), size, error2, unfused - planned, unfused)


def weigh_layers(measurements: Measurements, trials: Trials, progress: Progress | None = None) -> FloatArray:
    """(L,) nats of divergence per error2 of each layer, 0 where no setting does any harm.

    Args:
        measurements: of the requests that were tried on.
        trials: of ``try_settings``.
        progress: called after every layer.
    """
    weight = np.zeros(len(trials.layers))
    for row, layer in enumerate(trials.layers):
        error2 = trials.error2[row]
        probe = int(np.abs(np.log(np.maximum(error2, LEAST_HARM) / _PROBE_ERROR2)).argmin())
        if error2[probe] > 0:
            weight[row] = measurements({layer: trials.settings[probe]}).mean_kl / error2[probe]
        if progress is not None:
            progress("weighing layers", (row + 1) / len(trials.layers))
    return weight
