"""What the similarities of a layer's calibration blocks say of fusing other requests at a setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.kernels.layout import PagedLayer
from ratedist.predictors import CRITERIA, VARIANTS, PairSample, Prediction, Predictor, predictor_class
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.planning.layer_bytes import check_countable
from ratedist.validate.quality.methods import Method
from ratedist.validate.suite.chunks import as_chunks

__all__ = ["PREDICTOR", "LayerLaw", "check_predictable", "repeated"]

IntArray = NDArray[np.int64]

PREDICTOR = "heterogeneous"
"""What plans are predicted by unless told otherwise: the choice of the standard suite."""


class LayerLaw:
    """Predictors of one layer, each fitted once.

    Args:
        layer: the calibration requests.
        predictor: name of a predictor.
    """

    def __init__(self, layer: PagedLayer, predictor: str = PREDICTOR) -> None:
        self._layer = layer
        self._kind = predictor_class(predictor)
        self._samples: dict[int | None, PairSample] = {}
        self._fitted: dict[tuple[int | None, str, str], Predictor] = {}

    def predict(
        self,
        method: Method,
        full_blocks: Sequence[int] | IntArray,
        domains: Sequence[int] | IntArray,
        thresholds: ArrayLike | None = None,
    ) -> Prediction:
        """Fusing other requests.

        Args:
            method: gives variant, criterion, scale rule and mode; exact sharing is fusion at threshold 1.
            full_blocks: (requests,) full blocks of each.
            domains: (requests,) domain of each.
            thresholds: (T,) of fusion; the method's own where None.

        Raises InputError as ``check_predictable``, and where no two requests (or, across chunks, chunks of
        one request) with a full block share a domain.
        """
        check_predictable("method", method)
        if thresholds is None:
            thresholds = [method.threshold if method.sharing == "fusion" else 1.0]
        chunk = method.chunk_blocks if method.mode == "cff" else None
        if chunk not in self._samples:
            layer = self._layer if chunk is None else as_chunks(self._layer, chunk)
            self._samples[chunk] = pair_sample(layer)
        key = chunk, method.criterion, method.scale
        if key not in self._fitted:
            self._fitted[key] = self._kind(
                self._samples[chunk], criterion=method.criterion, scale=method.scale
            )
        units, owners = np.asarray(full_blocks, np.int64), np.asarray(domains, np.int64)
        if chunk is not None:
            units, owners = _chunks(units, chunk)
        return self._fitted[key].predict(units, thresholds, variant=method.variant, domains=owners)


def check_predictable(where: str, method: Method) -> None:
    """Raise InputError, naming ``where``, for a setting that predictors do not know."""
    check_countable(method)
    if not method.sharing:
        return
    for argument, value, known in (
        ("variant", method.variant, VARIANTS),
        ("criterion", method.criterion, CRITERIA),
    ):
        if value not in known:
            raise InputError(f"{where}: {argument}", value, f"is not predicted; {', '.join(known)} are")


def repeated(values: Sequence[int] | IntArray, count: int) -> IntArray:
    """So many values, those given over and over again: more requests of the same kind."""
    return np.resize(np.asarray(values, np.int64), count)


def _chunks(full_blocks: IntArray, chunk: int) -> tuple[IntArray, IntArray]:
    """Blocks and domain of every chunk; each request is a domain by itself."""
    sizes, owners = [], []
    for request, blocks in enumerate(full_blocks.tolist()):
        parts = [chunk] * (blocks // chunk) + ([blocks % chunk] if blocks % chunk else [])
        sizes += parts
        owners += [request] * len(parts)
    return np.array(sizes, np.int64), np.array(owners, np.int64)
