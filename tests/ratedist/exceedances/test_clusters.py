"""Clumps of exceedances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances, clusters


def planted() -> Exceedances:
    """A block that four requests share (6 pairs), a passage that two others share (3), and one pair alone."""
    scores = np.zeros((8, 5, 8, 5), dtype=bool)
    scores[:4, 0, :4, 0] = True
    scores[4, [0, 1, 2], 5, [0, 1, 2]] = True
    scores[6, 4, 7, 3] = True
    return Exceedances.from_scores(scores)


def test_planted_clusters_are_found() -> None:
    """``clusters``: sizes, extremal index and the dispersion of the compound law."""
    found = clusters(planted())
    np.testing.assert_array_equal(found.sizes, [6, 3, 1])
    assert found.extremal_index == pytest.approx(0.3)
    assert found.compound_dispersion == pytest.approx(46 / 10)
    np.testing.assert_array_equal(clusters(planted(), join="block").sizes, [6, 1, 1, 1, 1])
    np.testing.assert_array_equal(clusters(planted(), join="requests").sizes, [3] + [1] * 7)


def test_components_against_merging_of_sets(ragged: Exceedances) -> None:
    """The same components by merging exceedances that share a mark, one at a time."""
    for join in ("block", "requests", "either"):
        parts: list[tuple[int, set]] = []
        for x, y in zip(ragged.first.tolist(), ragged.second.tolist(), strict=True):
            marks = set() if join == "requests" else {x, y}
            if join != "block":
                marks.add(("requests", int(ragged.request_of[x]), int(ragged.request_of[y])))
            touching = [part for part in parts if part[1] & marks]
            parts = [part for part in parts if not part[1] & marks]
            merged = marks.union(*(part[1] for part in touching))
            parts.append((1 + sum(part[0] for part in touching), merged))
        sizes = sorted((part[0] for part in parts), reverse=True)
        np.testing.assert_array_equal(clusters(ragged, join).sizes, sizes)


def test_nothing_exceeds() -> None:
    found = clusters(Exceedances.from_scores(np.zeros((3, 2, 3, 2), dtype=bool)))
    assert found.sizes.size == 0
    assert math.isnan(found.extremal_index)
    assert math.isnan(found.compound_dispersion)


def test_unknown_join(ragged: Exceedances) -> None:
    with pytest.raises(InputError, match=r"join = 'layer': must be 'block', 'requests' or 'either'"):
        clusters(ragged, join="layer")
