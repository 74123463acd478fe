"""Dispersion of the number of exceedances from a single capture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.exceedances import Exceedances, dispersion


def draw(rng: np.random.Generator, *, popular: float = 0.0, passages: float = 0.0) -> Exceedances:
    """Requests whose pairs exceed at a rate of their own popularity, or share passages of five blocks."""
    n, p = 12, 6
    popularity = rng.gamma(1 / popular, popular, n) if popular else np.ones(n)
    mask = {}
    for a in range(n):
        for b in range(a + 1, n):
            own = rng.random((p, p)) < 0.02 * popularity[a] * popularity[b]
            if rng.random() < passages:
                own[np.arange(5), np.arange(5)] = True
            mask[a, b] = own
    return Exceedances.from_scores(mask)


@pytest.mark.parametrize(("popular", "passages"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.1)])
def test_total_against_repeated_draws(popular: float, passages: float) -> None:
    """``dispersion().total``, over 300 draws, against the variance over mean of W itself."""
    rng = np.random.default_rng(1)
    draws = [draw(rng, popular=popular, passages=passages) for _ in range(300)]
    counts = np.array([made.count for made in draws])
    found = [dispersion(made) for made in draws]
    # The estimate divides a numerator that is unbiased by W: compare the numerators.
    numerator = np.array([each.total * made.count for each, made in zip(found, draws, strict=True)])
    error = numerator.std() / math.sqrt(300)
    spread = np.mean((counts - counts.mean()) ** 4) - counts.var() ** 2
    assert abs(numerator.mean() - counts.var(ddof=1)) < 4 * math.hypot(error, math.sqrt(spread / 300))
    if popular == passages == 0:
        mean_total = np.mean([each.total for each in found])
        spread_total = np.std([each.total for each in found])
        assert abs(mean_total - 1) < 0.05 + 4 * spread_total / math.sqrt(300)
        # Between independent pairs of requests the statistic is degenerate, and the jackknife cautious.
        claimed = np.median([each.total_error for each in found])
        assert 0.9 < claimed / spread_total < 2.2


def test_jackknife_against_leaving_requests_out() -> None:
    made = draw(np.random.default_rng(2), popular=0.5)
    n = made.requests
    totals = []
    for left_out in range(n):
        keep = (made.request_of[made.first] != left_out) & (made.request_of[made.second] != left_out)
        ends = [
            part
            for side in (made.first[keep], made.second[keep])
            for part in (made.request_of[side], made.position_of[side])
        ]
        for requests in (ends[0], ends[2]):
            requests[requests > left_out] -= 1
        rest = Exceedances.from_pairs(*ends, blocks=np.delete(made.blocks, left_out))
        totals.append(dispersion(rest).total)
    # (n − 1)/n times the sum of squared deviations.
    expected = math.sqrt((n - 1) * np.var(totals))
    assert dispersion(made).total_error == pytest.approx(expected, rel=1e-9)


def test_parts_see_their_own_clumps() -> None:
    """Blocks that meet everyone raise ``per_block`` alone; passages of two requests ``between_requests``."""
    n, p = 20, 10
    everywhere = np.zeros((n, p, n, p), dtype=bool)
    everywhere[:, 0, :, 0] = True
    found = dispersion(Exceedances.from_scores(everywhere))
    assert found.per_block > 10
    assert found.between_requests == 0
    assert found.total == pytest.approx(0, abs=1e-9)
    passage = np.zeros((n, p, n, p), dtype=bool)
    for a in range(0, n, 2):
        passage[a, np.arange(8), a + 1, np.arange(8)] = True
    found = dispersion(Exceedances.from_scores(passage))
    assert found.between_requests > 7
    assert found.per_block < 1


def test_too_few_requests() -> None:
    with pytest.raises(InputError, match=r"exceedances = '4 requests': at least 5 are needed"):
        dispersion(Exceedances.from_scores(np.ones((4, 2, 4, 2), dtype=bool)))


def test_nothing_exceeds() -> None:
    found = dispersion(Exceedances.from_scores(np.zeros((6, 2, 6, 2), dtype=bool)))
    assert math.isnan(found.total)
    assert math.isnan(found.per_block)
