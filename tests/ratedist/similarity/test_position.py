"""Position-marked laws: shapes, pooling, and what a fit recovers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.similarity import (
    Gaussian,
    Mixture,
    PositionMarked,
    Spherical,
    TruncatedGaussian,
    law_from_dict,
)

MARKED = PositionMarked.from_differences(
    [Mixture([0.6], [TruncatedGaussian(0.8, 0.05)], 0.4), TruncatedGaussian(0.6, 0.07), Spherical(64)]
)


@pytest.mark.parametrize("method", ["pdf", "cdf", "sf", "logsf", "ppf", "isf"])
def test_every_cell_is_its_own_law(method: str) -> None:
    s = np.array([[0.1, 0.55], [0.72, 0.9]])
    result = getattr(MARKED, method)(s)
    assert result.shape == (2, 2, 3, 3)
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(result[..., i, j], getattr(MARKED.cell(i, j), method)(s))
    assert getattr(MARKED, method)(0.5).shape == (3, 3)


def test_moments_and_expectations_by_cell() -> None:
    for i, j in ((0, 0), (0, 1), (2, 0)):
        cell = MARKED.cell(i, j)
        assert MARKED.mean()[i, j] == cell.mean()
        assert MARKED.var()[i, j] == cell.var()
        assert MARKED.atom[i, j] == cell.atom
        assert MARKED.expect(lambda s: 2 - 2 * s, above=0.5)[i, j] == cell.expect(
            lambda s: 2 - 2 * s, above=0.5
        )
    assert MARKED.positions == 3
    assert MARKED.support == (-1.0, 1.0)


def test_matrix_shares_equal_laws() -> None:
    a, b = Gaussian(0.7, 0.1), Gaussian(0.4, 0.1)
    marked = PositionMarked.from_matrix([[a, b], [b, a]])
    assert len(marked.laws) == 2
    np.testing.assert_array_equal(marked.index, [[0, 1], [1, 0]])
    np.testing.assert_allclose(marked.sf(0.5), [[a.sf(0.5), b.sf(0.5)], [b.sf(0.5), a.sf(0.5)]])


def test_marginal_is_the_average_over_cells() -> None:
    s = np.linspace(-0.5, 0.99, 20)
    np.testing.assert_allclose(MARKED.marginal().sf(s), MARKED.sf(s).mean(axis=(1, 2)), atol=1e-14)


def test_samples_by_cell() -> None:
    sample = MARKED.rvs(4000, np.random.default_rng(0))
    assert sample.shape == (4000, 3, 3)
    error = np.sqrt(MARKED.var() / 4000)
    assert np.all(np.abs(sample.mean(axis=0) - MARKED.mean()) < 4 * error)
    # Cells of one law are drawn apart.
    assert abs(np.corrcoef(sample[:, 0, 2], sample[:, 2, 0])[0, 1]) < 4 / math.sqrt(4000)


@pytest.mark.parametrize(("by", "count"), [("pair", 6), ("difference", 3)])
def test_fit_recovers_the_laws(by: str, count: int) -> None:
    """``PositionMarked.fit``: exceedances of every cell within 4 binomial errors of the truth's."""
    pairs = 1500
    fitted = PositionMarked.fit(MARKED.rvs(pairs, np.random.default_rng(1)), by=by)
    assert len(fitted.law.laws) == count
    assert fitted.sample_size == pairs
    for s in (0.05, 0.55, 0.75, 0.9):
        truth = MARKED.sf(s)
        error = np.sqrt(truth * (1 - truth) / pairs)
        assert np.all(np.abs(fitted.law.sf(s) - truth) < 4 * error + 1 / 200)
    duplicates = fitted.law.cell(0, 0).atom
    assert abs(duplicates - 0.4) < 4 * fitted.standard_errors["laws.0.duplicates"]
    again = law_from_dict(fitted.law.to_dict())
    assert again == fitted.law
    assert hash(again) == hash(fitted.law)
    assert repr(again) == f"PositionMarked(positions=3, laws={count})"


def test_order_of_the_requests_does_not_matter() -> None:
    sample = MARKED.rvs(60, np.random.default_rng(2))
    turned = sample.transpose(0, 2, 1)
    assert PositionMarked.fit(sample).law == PositionMarked.fit(turned).law


def test_cells_without_enough_scores_borrow() -> None:
    """A shared prefix: position 0 always equal, position 1 nearly always; they keep their own duplicates."""
    rng = np.random.default_rng(3)
    sample = rng.normal(0.5, 0.05, (30, 3, 3))
    sample[:, 0, 0] = 1
    sample[:27, 1, 1] = 1
    law = PositionMarked.fit(sample).law
    assert law.atom[0, 0] == 1
    assert law.atom[1, 1] == pytest.approx(0.9)
    assert law.atom[2, 2] == 0
    # The rest of (1, 1) follows the scores of difference 0.
    borrowed = law.cell(1, 1)
    assert isinstance(borrowed, Mixture)
    assert borrowed.laws[0].mean() == pytest.approx(np.mean(sample[sample < 1]), abs=0.05)


def test_bad_input() -> None:
    law = Gaussian(0.5, 0.1)
    with pytest.raises(InputError, match=r"index = 'shape \(2, 3\)': must be a square matrix"):
        PositionMarked([law], np.zeros((2, 3), dtype=int))
    with pytest.raises(InputError, match=r"index = 'values 0 to 1': must be whole numbers below 1"):
        PositionMarked([law], np.eye(2, dtype=int))
    with pytest.raises(InputError, match=r"laws = 3: must be laws of similarity"):
        PositionMarked([3], np.zeros((2, 2), dtype=int))  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"laws = \[2, 1\]: must be a square matrix of laws"):
        PositionMarked.from_matrix([[law, law], [law]])
    with pytest.raises(InputError, match=r"laws = \[\]: must hold a law for every difference"):
        PositionMarked.from_differences([])
    with pytest.raises(InputError, match=r"sample = 'shape \(4, 3\)': must be \(pairs of requests"):
        PositionMarked.fit(np.zeros((4, 3)))
    sample = MARKED.rvs(20, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"by = 'lag': must be 'pair' or 'difference'"):
        PositionMarked.fit(sample, by="lag")
    sample[3, 1, 2] = np.nan
    with pytest.raises(
        InputError, match=r"sample = nan: must be finite; the first that is not stands at \(3, 1, 2\)"
    ):
        PositionMarked.fit(sample)
    with pytest.raises(InputError, match=r"sample = '8 scores': too few"):
        PositionMarked.fit(MARKED.rvs(1, np.random.default_rng(0)))
