"""Similarity of two blocks by how far apart they stand in their requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.predictors import PairSample

__all__ = ["QUANTILES", "similarity_by_difference"]

QUANTILES = (0.05, 0.5, 0.95)
"""Quantiles of the similarity of keys that a row gives."""


def similarity_by_difference(sample: PairSample, text: NDArray[np.int64] | None) -> list[dict[str, Any]]:
    """Similarities of keys and values over pairs that may share, by position difference and by text.

    Args:
        sample: similarities of one layer's blocks.
        text: (blocks,) blocks with the same number hold the same tokens; None where tokens are not known.

    Returns:
        A row per difference |i − j| of the positions and per kind of pair, where there are any:
        ``difference``; ``same_text``, None where tokens are not known; ``pairs``; ``k_mean``, ``v_mean``;
        and ``k_q05``, ``k_q50``, ``k_q95``, quantiles of the similarity of keys.

    Test: tests/validate/inspection/test_inspection.py::test_similarity_by_difference_is_that_of_a_loop.
    """
    first, second = np.nonzero(np.triu(sample.comparable))
    apart = np.abs(sample.position[first] - sample.position[second])
    k, v = sample.s_k[first, second], sample.s_v[first, second]
    same = None if text is None else text[first] == text[second]
    rows = []
    for difference in np.unique(apart).tolist():
        for kind in (None,) if same is None else (False, True):
            here = apart == difference
            if same is not None:
                here &= same == kind
            if not here.any():
                continue
            low, middle, high = np.quantile(k[here], QUANTILES).tolist()
            rows.append(
                {
                    "kind": "difference",
                    "difference": difference,
                    "same_text": kind,
                    "pairs": int(here.sum()),
                    "k_mean": float(k[here].mean()),
                    "k_q05": low,
                    "k_q50": middle,
                    "k_q95": high,
                    "v_mean": float(v[here].mean()),
                }
            )
    return rows
