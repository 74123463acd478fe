"""ratedist.bounds: caps of the sphere, their limit, and fusion above them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from ratedist.bounds import similarity_of_error2, spherical_code_bound, spherical_code_limit
from ratedist.distortion import error2
from ratedist.errors import InputError


def test_bound_at_the_worked_example() -> None:
    """spherical_code_bound at dimension 64, similarity 0.4, beside the incomplete beta function."""
    share = 0.5 * scipy.special.betainc(63 / 2, 0.5, 1 - 0.4**2)
    assert spherical_code_bound(0.4, 64) == pytest.approx(-np.log2(share) / 64, rel=1e-12)
    assert round(float(spherical_code_bound(0.4, 64)), 3) == 0.172
    assert round(float(spherical_code_limit(0.4)), 3) == 0.126


def test_bound_on_the_circle_counts_arcs() -> None:
    """On a circle a cap of angle ±φ is φ/π of it, so that code words cost log2(π/φ)/2 bits per dimension."""
    angle = np.array([0.1, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(spherical_code_bound(np.cos(angle), 2), np.log2(np.pi / angle) / 2, rtol=1e-9)


@pytest.mark.parametrize("s", [0.1, 0.4, 0.75, 0.99])
def test_limit_is_reached_from_above(s: float) -> None:
    """spherical_code_limit: the gap falls as log2(dim)/dim, also where F̄ itself underflows."""
    dims = np.array([1e2, 1e4, 1e6, 1e7])
    gaps = np.array([float(spherical_code_bound(s, dim) - spherical_code_limit(s)) for dim in dims])
    assert (gaps > 0).all()
    assert (np.diff(gaps) < 0).all()
    assert gaps[-1] < 1.5 * np.log2(dims[-1]) / dims[-1]


@given(s=st.floats(-1, 0.999), t=st.floats(-1, 0.999), dim=st.floats(2, 1e4))
def test_bound_rises_with_similarity(s: float, t: float, dim: float) -> None:
    low, high = spherical_code_bound(np.sort([s, t]), dim)
    assert 0 <= low <= high + 1e-12
    # A cap on the upper half is at most ½(1 − s²)^((dim−1)/2) of the sphere.
    if max(s, t) >= 0:
        assert high >= ((dim - 1) * spherical_code_limit(max(s, t)) + 1) / dim - 1e-9


def test_ends() -> None:
    assert spherical_code_bound(-1.0, 8) == 0
    assert spherical_code_limit(-0.5) == 0
    assert np.isinf(spherical_code_bound(1.0, 8))
    assert np.isinf(spherical_code_limit(1.0))


@given(s=st.floats(0, 1))
def test_similarity_of_error_inverts_the_rules(s: float) -> None:
    """similarity_of_error2 after error2 gives the similarity back."""
    assert similarity_of_error2(error2(s)) == pytest.approx(s, abs=1e-12)
    assert similarity_of_error2(error2(s, "projection"), "projection") == pytest.approx(s, abs=1e-7)


def test_limit_is_the_gaussian_rate_of_the_projection_error() -> None:
    error = np.array([0.05, 0.3, 0.9])
    rate = spherical_code_limit(similarity_of_error2(error, "projection"))
    np.testing.assert_allclose(rate, 0.5 * np.log2(1 / error), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spherical_code_bound(1.1, 8), r"similarity = 1\.1: .* lie in \[-1, 1\]"),
        (lambda: spherical_code_bound(0.5, 1), r"dim = 1: must be above 1"),
        (lambda: spherical_code_limit(np.nan), r"similarity = nan: must be finite"),
        (lambda: similarity_of_error2(2.5), r"error_squared = 2\.5: .* lie in \[0, 2\]"),
        (lambda: similarity_of_error2(1.5, "projection"), r"error_squared = 1\.5: .* lie in \[0, 1\]"),
        (lambda: similarity_of_error2(0.5, "raw"), r"rule = 'raw': depends on the norms of both blocks"),
        (lambda: similarity_of_error2(0.5, "none"), r"rule = 'none': must be one of"),
    ],
)
def test_refusals(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
