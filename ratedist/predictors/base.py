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

__all__ = ["BAND_LEVEL", "VARIANTS", "Outcome", "Prediction", "Predictor", "Spread"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

VARIANTS = ("leader", "tree")
"""Fusion variants that can be predicted."""

BAND_LEVEL = 0.9
"""Chance at which bands are meant to hold."""


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
        kept_low, kept_high: (T,) each, the band that holds the number kept by one new batch of requests
            with a chance near ``BAND_LEVEL``; None where the predictor gives none.
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

    @property
    def compression_low(self) -> FloatArray | None:
        """(T,) lower end of the band of the compression."""
        return None if self.kept_high is None else self.candidates / self.kept_high

    @property
    def compression_high(self) -> FloatArray | None:
        """(T,) upper end of the band of the compression."""
        return None if self.kept_low is None else self.candidates / self.kept_low


@dataclass(frozen=True)
class Spread:
    """How far the kept blocks of one fusion problem may lie from what was predicted, per threshold.

    Attributes:
        calibration: (T,) standard deviation of ln(kept) by which calibration requests were drawn and by
            how their curve may be continued: the same error in every domain.
        batch: (T,) standard deviation of ln(kept) by which requests come: another one in every domain.
        freedom: degrees of freedom of both.
    """

    calibration: FloatArray
    batch: FloatArray
    freedom: int


@dataclass(frozen=True)
class Outcome:
    """Expected outcome of one fusion problem, per threshold.

    Attributes:
        kept: (T,) kept blocks.
        errors: (2, T) mean squared relative error of the absorbed blocks, keys and values.
        spread: of the kept blocks, or None where it is not known.
    """

    kept: FloatArray
    errors: FloatArray
    spread: Spread | None = None


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
        outcomes, least = [], 0
        # Domains alike are many where each is one request cut into chunks.
        alike: dict[tuple[int, ...], Outcome] = {}
        for domain in np.unique(owner[blocks > 0]):
            chosen = blocks[(owner == domain) & (blocks > 0)]
            sizes = tuple(chosen.tolist())
            if sizes not in alike:
                alike[sizes] = self._fuse(chosen, distinct, variant)
            outcome = alike[sizes]
            kept += outcome.kept
            squared += (chosen.sum() - outcome.kept) * outcome.errors
            outcomes.append(outcome)
            least += int(chosen[0])
        k_error, v_error = np.sqrt(np.maximum(squared, 0.0) / candidates)
        low, high = _band(outcomes, least, candidates)
        return Prediction(
            thresholds=taus,
            candidates=candidates,
            kept=kept[place],
            k_error=k_error[place],
            v_error=v_error[place],
            kept_low=None if low is None else low[place],
            kept_high=None if high is None else high[place],
        )


def _band(
    outcomes: Sequence[Outcome], least: int, most: int
) -> tuple[FloatArray, FloatArray] | tuple[None, None]:
    """Ends of the band of all kept blocks, those of every domain together.

    ln(kept) is taken as Student's t about its prediction. The calibration sample errs alike in every
    domain, so its part adds up; which requests come is drawn anew in each, so its squares do. Half a block
    on either side, because kept blocks are counted in whole ones; all of a domain's first request stay.

    Test: tests/ratedist/predictors/test_bands.py::test_domains_add_up_and_chance_averages_out.
    """
    import scipy

    kept = np.sum([outcome.kept for outcome in outcomes], axis=0)
    calibration, chance, freedom = np.zeros_like(kept), np.zeros_like(kept), np.inf
    for outcome in outcomes:
        if outcome.spread is None:
            return None, None
        calibration += outcome.kept * outcome.spread.calibration
        chance += (outcome.kept * outcome.spread.batch) ** 2
        freedom = min(freedom, outcome.spread.freedom)
    width = scipy.special.stdtrit(freedom, (1 + BAND_LEVEL) / 2) * np.sqrt(calibration**2 + chance) / kept
    low = np.maximum(kept * np.exp(-width) - 0.5, least)
    return np.minimum(low, kept), np.maximum(np.minimum(kept * np.exp(width) + 0.5, most), kept)


def check_thresholds(thresholds: ArrayLike) -> FloatArray:
    """(T,) float64; raises InputError where one is outside [-1, 1] or there is none."""
    taus = np.atleast_1d(np.asarray(thresholds, np.float64))
    if taus.ndim != 1 or taus.size == 0:
        raise InputError("threshold", thresholds, "give one number or a list of numbers")
    bad = taus[~((taus >= -1) & (taus <= 1))]
    if bad.size:
        raise InputError("threshold", float(bad[0]), "must lie in [-1, 1]")
    return taus
