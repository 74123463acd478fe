"""ratedist.quantisation: the exact error under the source model, beside simulated quantisers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ratedist import quantisation
from ratedist.distortion import error2
from ratedist.errors import InputError
from ratedist.quantisation import (
    combined_error2,
    quantisation_bits_per_scalar,
    quantisation_error2,
    quantisation_points,
)

FloatArray = NDArray[np.float64]


def quantise(x: FloatArray, bits: int) -> FloatArray:
    """Round to 2^bits even levels between the smallest and the largest number of each row."""
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    return low + np.round((x - low) / step) * step


@pytest.mark.parametrize("group", [3, 8, 32, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_error_against_simulation(bits: int, group: int) -> None:
    """quantisation_error2 within 4 standard errors of quantised Gaussian groups."""
    x = np.random.default_rng(100 * group + bits).standard_normal((2_000_000 // (10 * group), group))
    errors = np.mean((quantise(x, bits) - x) ** 2, axis=1)
    z = (errors.mean() - quantisation_error2(bits, group)) / (errors.std() / np.sqrt(errors.size))
    assert abs(z) < 4


def test_error_is_relative() -> None:
    """Groups of any variance have the same e², so that only the shape of the source matters."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20_000, 32)) * rng.lognormal(0, 1, (20_000, 1))
    relative = np.sum((quantise(x, 4) - x) ** 2) / np.sum(x**2)
    assert relative == pytest.approx(quantisation_error2(4, 32), rel=0.03)


def test_quadrature_has_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = [quantisation._error2(bits, group) for bits in (1, 4) for group in (3, 32, 1024)]
    quantisation._error2.cache_clear()
    monkeypatch.setattr(quantisation, "_NODES", 180)
    finer = [quantisation._error2(bits, group) for bits in (1, 4) for group in (3, 32, 1024)]
    quantisation._error2.cache_clear()
    np.testing.assert_allclose(reference, finer, rtol=1e-8)


def test_each_bit_divides_the_error_by_four_in_the_end() -> None:
    errors = np.array([quantisation_error2(bits) for bits in range(1, 10)])
    assert (np.diff(errors) < 0).all()
    steps = (2.0 ** np.arange(1, 10) - 1) ** 2
    scaled = errors * steps
    np.testing.assert_allclose(scaled[6:], scaled[-1], rtol=1e-3)


def test_two_scalars_are_stored_exactly() -> None:
    assert quantisation_error2(1, 2) == 0.0


def test_rates() -> None:
    """4 bits in groups of 32 are 5 bits per scalar, 3.2 times less than 16."""
    assert 16 / quantisation_bits_per_scalar(4, 32) == pytest.approx(3.2)
    rates, errors = quantisation_points([2, 4], 64)
    np.testing.assert_allclose(rates, [2.5, 4.5])
    assert errors[1] == quantisation_error2(4, 64)


def test_errors_of_fusion_and_quantisation_add() -> None:
    """combined_error2: read blocks back from quantised representatives, in many dimensions."""
    rng = np.random.default_rng(5)
    dim, s = 4096, 0.8
    x, y = rng.standard_normal((2, 60, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y -= (x * y).sum(axis=1, keepdims=True) * x
    representative = s * x + np.sqrt(1 - s * s) * y / np.linalg.norm(y, axis=1, keepdims=True)
    stored = quantise(representative.reshape(-1, 32), 3).reshape(60, dim)
    measured = np.sum((stored - x) ** 2, axis=1).mean()
    expected = float(combined_error2(error2(s), quantisation_error2(3, 32)))
    assert measured == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantisation_error2(0), r"bits = 0: must be a whole number of at least 1"),
        (lambda: quantisation_error2(13), r"bits = 13: must be at most 12"),
        (lambda: quantisation_error2(4, 1), r"group = 1: must be a whole number of at least 2"),
        (lambda: quantisation_bits_per_scalar(0), r"bits = 0\.0: must be finite and at least 1"),
        (lambda: quantisation_bits_per_scalar(4, 0), r"group = 0: must be a whole number of at least 2"),
        (lambda: quantisation_points([]), r"bits = \[\]: needs at least one number of bits"),
        (lambda: quantisation_points([4, 2]), r"bits = \[4, 2\]: must be sorted from low to high"),
        (lambda: quantisation_points([4, 4]), r"bits = \[4, 4\]: must be sorted .* without repeats"),
        (lambda: combined_error2(-0.1, 0.0), r"fusion_error2 = -0\.1: must be finite and at least 0"),
        (lambda: combined_error2(0.1, np.nan), r"quantised_error2 = nan: must be finite"),
    ],
)
def test_refusals(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
