"""Choosing a predictor by how well it predicts requests of the calibration sample that it was not shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist.errors import InputError
from ratedist.predictors.base import VARIANTS, check_thresholds
from ratedist.predictors.sample import CRITERIA, PairSample, check_choice
from ratedist.predictors.sample_fusion import Units, fuse_sample

__all__ = ["HeldOutError", "best_of", "choose_predictor", "held_out_errors"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LOWEST_COMPRESSION = 1.05
_HIGHEST_SHARE = 0.9


@dataclass(frozen=True)
class HeldOutError:
    """How far one predictor was off within the sample.

    Attributes:
        predictor: its name.
        errors: (cells,) |ln(predicted kept / kept)| of every split and threshold whose compression lies
            between 1.05 and 0.9 × requests; the cells are the same for all predictors.
        seconds: what fitting and predicting took in all.
    """

    predictor: str
    errors: FloatArray
    seconds: float

    @property
    def score(self) -> float:
        """Median of ``errors``, by which predictors are compared; infinite where no cell counts.

        The median, because splits within a sample fit to fewer requests than the sample has: what a predictor
        does to its few worst cells there says most about the few requests.
        """
        return float(np.median(self.errors)) if self.errors.size else float("inf")


def held_out_errors(
    sample: PairSample,
    thresholds: ArrayLike,
    *,
    variant: str = "leader",
    criterion: str = "keys",
    scale: str = "own-norm",
    ratio: float = 1.0,
    predictors: Sequence[str] | None = None,
    splits: int = 3,
    seed: int = 0,
) -> list[HeldOutError]:
    """Split the calibration requests, fit on one part, predict the other, for every predictor.

    Of n requests of a domain max(2, n/(1 + ``ratio``)) are fitted to and the others fused by
    ``fuse_sample``; nothing outside the sample is looked at. Every predictor sees the same splits.

    Args:
        sample: the whole calibration sample; some domain needs four requests.
        thresholds: (T,).
        variant, criterion, scale: as for a predictor.
        ratio: requests to predict per request of calibration, as the prediction will have it.
        predictors: names, all there are where None.
        splits: random splits.
        seed: of the splits.

    Returns:
        one entry per predictor, in the order given.

    Raises InputError for unknown names, for ``ratio`` or ``splits`` not above 0, and for a sample too small.
    Test: tests/ratedist/predictors/test_choose.py::test_the_right_model_is_chosen.
    """
    from time import perf_counter

    from ratedist.predictors import PREDICTORS, predictor_class

    check_choice("variant", variant, VARIANTS)
    check_choice("criterion", criterion, CRITERIA)
    names = tuple(PREDICTORS) if predictors is None else tuple(predictors)
    if not names:
        raise InputError("predictors", [], "name at least one")
    if not ratio > 0:
        raise InputError("ratio", ratio, "must be above 0")
    if splits < 1:
        raise InputError("splits", splits, "must be at least 1")
    taus = np.unique(check_thresholds(thresholds))
    classes = [predictor_class(name) for name in names]
    errors: list[list[float]] = [[] for _ in names]
    seconds = [0.0] * len(names)
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        known = _split(sample, ratio, rng)
        fitted = sample.of_requests(known)
        blocks, domains, kept = _fused(sample, known, taus, variant, criterion)
        compression = blocks.sum() / kept
        counts = (compression >= _LOWEST_COMPRESSION) & (compression <= _HIGHEST_SHARE * blocks.size)
        for index, predictor in enumerate(classes):
            begun = perf_counter()
            prediction = predictor(fitted, criterion=criterion, scale=scale).predict(
                blocks, taus, variant=variant, domains=domains
            )
            seconds[index] += perf_counter() - begun
            errors[index] += np.abs(np.log(prediction.kept / kept))[counts].tolist()
    return [
        HeldOutError(name, np.array(found), spent)
        for name, found, spent in zip(names, errors, seconds, strict=True)
    ]


def best_of(errors: Sequence[HeldOutError]) -> str:
    """Name of the predictor of the smallest score; of equal ones, and where no cell counted, the last.

    Predictors are listed from the simplest to the one that leans on its sample most, which where nothing
    tells them apart is the safest.
    """
    scores = [error.score for error in errors]
    return errors[max(index for index, score in enumerate(scores) if score == min(scores))].predictor


def choose_predictor(
    sample: PairSample, thresholds: ArrayLike, **options: object
) -> tuple[str, list[HeldOutError]]:
    """The predictor with the smallest held-out error within the sample, and the errors of all.

    Takes the arguments of ``held_out_errors``. To choose one for many layers or workloads, join the errors
    of all (``HeldOutError.errors``) before comparing: a single layer's choice follows its noise.
    """
    errors = held_out_errors(sample, thresholds, **options)  # type: ignore[arg-type]
    return best_of(errors), errors


def _split(sample: PairSample, ratio: float, rng: np.random.Generator) -> IntArray:
    """Requests to calibrate on, at least two of every domain that has four."""
    known: list[int] = []
    largest = 0
    for domain in np.unique(sample.domain):
        members = rng.permutation(np.unique(sample.request[sample.domain == domain]))
        largest = max(largest, members.size)
        if members.size >= 4:
            count = min(max(2, round(members.size / (1 + ratio))), members.size - 2)
            known += members[:count].tolist()
    if not known:
        raise InputError(
            "requests", largest, "choosing a predictor needs four calibration requests of one domain"
        )
    return np.array(sorted(known))


def _fused(
    sample: PairSample, known: IntArray, thresholds: FloatArray, variant: str, criterion: str
) -> tuple[IntArray, IntArray, FloatArray]:
    """Blocks and domain of each held-out request, and (T,) blocks that they keep."""
    score = sample.scores(criterion)
    kept = np.zeros(thresholds.size)
    blocks: list[int] = []
    domains: list[int] = []
    split = np.unique(sample.domain[np.isin(sample.request, known)])
    for domain in split:
        chosen = (sample.domain == domain) & ~np.isin(sample.request, known)
        units = Units.of(sample.request, sample.position, sample.duplicate, chosen)
        order = np.arange(units.requests)
        fused = fuse_sample(score[np.ix_(units.block, units.block)], units, order, thresholds, variant)
        kept += fused.kept.sum(axis=1)
        blocks += np.diff(units.start).tolist()
        domains += [int(domain)] * units.requests
    return np.array(blocks), np.array(domains), kept
