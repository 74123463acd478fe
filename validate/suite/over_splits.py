"""How far a suite's figures would move with other random splits: a bootstrap over splits, not over rows.

Rows of one split share its requests: what 16 unlucky requests miss, they miss in every layer and at every
threshold. So splits are drawn again, within each workload, with all of their rows: of a workload's k splits
k - 1 with replacement, each weighted k/(k - 1), since k of k would have only (k - 1)/k of the variance (the
rescaling bootstrap of Rao and Wu, 1988). Splits of one capture overlap, so the intervals are rather too
narrow than too wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ratedist.errors import InputError

__all__ = ["DRAWS", "LEVEL", "split_weights", "weighted_mean_interval", "weighted_quantile_interval"]

FloatArray = NDArray[np.float64]

DRAWS = 500
LEVEL = 0.90


def split_weights(
    workload: Sequence[object], seed: Sequence[object], *, draws: int = DRAWS, rng_seed: int = 0
) -> tuple[NDArray[np.intp], FloatArray] | None:
    """Weights of splits in resamples.

    Args:
        workload: (rows,) which workload a row is of.
        seed: (rows,) which split of it.
        draws: how many resamples.
        rng_seed: of the drawing.

    Returns:
        (rows,) the number of each row's split, and (draws, splits) the weight of every split in every
        resample; None where no workload has two splits, so that nothing is known of their spread.

    Raises InputError where lengths differ.

    Test: tests/validate/suite/test_over_splits.py::test_spread_is_that_of_the_splits.
    """
    if len(workload) != len(seed):
        raise InputError("seed", len(seed), f"must have an entry per row, {len(workload)}")
    splits = list(dict.fromkeys(zip(workload, seed, strict=True)))
    number = {split: place for place, split in enumerate(splits)}
    strata: dict[object, list[int]] = {}
    for place, (name, _) in enumerate(splits):
        strata.setdefault(name, []).append(place)
    if all(len(members) < 2 for members in strata.values()):
        return None
    rng = np.random.default_rng(rng_seed)
    weights = np.ones((draws, len(splits)))
    for members in strata.values():
        k = len(members)
        if k > 1:
            drawn = rng.multinomial(k - 1, np.full(k, 1 / k), size=draws)
            weights[:, members] = drawn * k / (k - 1)
    return np.array([number[split] for split in zip(workload, seed, strict=True)], np.intp), weights


def weighted_quantile_interval(
    values: FloatArray, split: NDArray[np.intp], weights: FloatArray, q: float
) -> list[float] | None:
    """Interval of ``LEVEL`` for the q-quantile of values; None where an end is not finite."""
    order = np.argsort(values, kind="stable")
    ordered, of = values[order], split[order]
    found = []
    for weight in weights:
        reached = np.cumsum(weight[of])
        place = int(np.searchsorted(reached, q * reached[-1]))
        found.append(ordered[min(place, len(ordered) - 1)])
    return _ends(np.array(found))


def weighted_mean_interval(
    values: FloatArray, split: NDArray[np.intp], weights: FloatArray
) -> list[float] | None:
    """Interval of ``LEVEL`` for the mean of values; None where an end is not finite."""
    sums = np.bincount(split, values, weights.shape[1])
    counts = np.bincount(split, minlength=weights.shape[1])
    return _ends((weights @ sums) / (weights @ counts))


def _ends(found: FloatArray) -> list[float] | None:
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return [float(low), float(high)] if np.isfinite([low, high]).all() else None
