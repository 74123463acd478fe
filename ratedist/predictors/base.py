"""The interface of every predictor, and what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.predictors.sample import CRITERIA, SCALES, PairSample, check_choice

__all__ = ["VARIANTS", "Outcome", "Prediction", "Predictor"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

VARIANTS = ("leader", "tree")
"""Fusion variants that can be predicted."""


@dataclass(frozen=True)
class Prediction:
    """What fusing one layer is expected to give, per threshold; T is the number of thresholds.

    Errors are root mean squares over **all** candidate blocks, kept and byte-equal ones counting 0:
    sqrt(sum of e² / candidates) with e = ‖restored − original‖ / ‖original‖ of a block's keys or
    values. This is the distortion of the layer as attention reads it; validate.measure reports the same
    quantity from the restored cache.

    Attributes:
        thresholds: (T,).
        candidates: full blocks of all requests.
        kept: (T,) expected number of blocks kept.
        k_error: (T,) relative error of keys.
        v_error: (T,) relative error of values.
        kept_low, kept_high: (T,) each, the band of ``kept``; None where the predictor gives none.
    """

    thresholds: FloatArray
    candidates: int
    kept: FloatArray
    k_error: FloatArray
    v_error: FloatArray
    kept_low: FloatArray | None = None
    kept_high: FloatArray | None = None

    @property
    def compression(self) -> FloatArray:
        """(T,) candidate blocks over kept blocks, of this layer alone."""
        return self.candidates / self.kept


@dataclass(frozen=True)
class Outcome:
    """Expected outcome of one fusion problem, per threshold.

    Attributes:
        kept: (T,) kept blocks.
        errors: (2, T) mean squared relative error of the absorbed blocks, keys and values.
    """

    kept: FloatArray
    errors: FloatArray


class Predictor(ABC):
    """Predicts fusion of unseen requests of one layer from a calibration sample of that layer."""

    name: ClassVar[str]

    def __init__(self, sample: PairSample, *, criterion: str = "keys", scale: str = "own-norm") -> None:
        check_choice("criterion", criterion, CRITERIA)
        check_choice("scale", scale, SCALES)
        self.criterion = criterion
        self.scale = scale
        self._fit(sample)

    @abstractmethod
    def _fit(self, sample: PairSample) -> None:
        """Take from the sample what prediction needs; raise InputError where it does not suffice."""

    @abstractmethod
    def _fuse(self, full_blocks: IntArray, thresholds: FloatArray, variant: str) -> Outcome:
        """Predict one fusion problem: requests of one domain, in order, each with at least one block.

        The thresholds are ascending and distinct.
        """

    def predict(
        self,
        full_blocks: Sequence[int] | IntArray,
        thresholds: ArrayLike,
        *,
        variant: str = "leader",
        domains: Sequence[int] | IntArray | None = None,
    ) -> Prediction:
        """Predict fusing requests of ``full_blocks`` full blocks each, in this order.

        Args:
            full_blocks: (requests,) full blocks per request.
            thresholds: (T,) or scalar, each in [-1, 1].
            variant: one of ``VARIANTS``.
            domains: (requests,) domain of each request; all the same where None.

        Raises InputError for arguments outside this.
        """
        check_choice("variant", variant, VARIANTS)
        taus = check_thresholds(thresholds)
        blocks = np.asarray(full_blocks, np.int64).reshape(-1)
        if blocks.size == 0 or blocks.min() < 0 or blocks.sum() == 0:
            raise InputError(
                "full_blocks", blocks.tolist(), "needs counts that are not negative, one at least positive"
            )
        owner = np.zeros_like(blocks) if domains is None else np.asarray(domains, np.int64).reshape(-1)
        if owner.shape != blocks.shape:
            raise InputError("domains", owner.shape, f"must have shape {blocks.shape}, one per request")
        candidates = int(blocks.sum())
        distinct, place = np.unique(taus, return_inverse=True)
        kept, squared = np.zeros(distinct.size), np.zeros((2, distinct.size))
        for domain in np.unique(owner[blocks > 0]):
            chosen = blocks[(owner == domain) & (blocks > 0)]
            outcome = self._fuse(chosen, distinct, variant)
            kept += outcome.kept
            squared += (chosen.sum() - outcome.kept) * outcome.errors
        k_error, v_error = np.sqrt(np.maximum(squared, 0.0) / candidates)
        return Prediction(
            thresholds=taus,
            candidates=candidates,
            kept=kept[place],
            k_error=k_error[place],
            v_error=v_error[place],
        )


def check_thresholds(thresholds: ArrayLike) -> FloatArray:
    """(T,) float64; raises InputError where one is outside [-1, 1] or there is none."""
    taus = np.atleast_1d(np.asarray(thresholds, np.float64))
    if taus.ndim != 1 or taus.size == 0:
        raise InputError("threshold", thresholds, "give one number or a list of numbers")
    bad = taus[~((taus >= -1) & (taus <= 1))]
    if bad.size:
        raise InputError("threshold", float(bad[0]), "must lie in [-1, 1]")
    return taus
