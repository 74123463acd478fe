"""What any code for directions needs: the spherical-cap bound, and its limit in high dimension."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.distortion import error2
from ratedist.errors import InputError
from ratedist.similarity.spherical import Spherical

__all__ = ["similarity_of_error2", "spherical_code_bound", "spherical_code_limit"]

FloatArray = NDArray[np.float64]


def spherical_code_bound(similarity: ArrayLike, dim: float) -> FloatArray:
    """Bits per dimension that bring every direction of R^dim within ``similarity`` of a codeword.

    A cap of similarity s covers a share F̄(s) of the sphere, so a code that covers all of it has at least
    1/F̄(s) words: −log2 F̄(s)/dim bits per dimension. No fusion of independent uniform directions, whatever
    its order or its representatives, does with fewer for each new direction
    (tests/ratedist/test_bounds.py::test_bound_at_the_worked_example).

    Args:
        similarity: s, any shape, within [-1, 1].
        dim: r, dimension of the directions, above 1.

    Returns:
        Bits per dimension, of the shape of ``similarity``; infinite at s = 1.
    """
    s = as_numbers("similarity", similarity, low=-1.0, high=1.0)
    log_share = np.asarray(Spherical(dim).logsf(s))
    return np.maximum(-log_share, 0.0) / (dim * math.log(2))


def spherical_code_limit(similarity: ArrayLike) -> FloatArray:
    """Limit of ``spherical_code_bound`` in high dimension: −½·log2(1 − s²) for s > 0, and 0 below.

    The bound reaches it from above once dim is large for the given s; in few dimensions and near s = 1
    it lies below. The error of the projection rule is 1 − s², so this is ½·log2(1/e²), Shannon's rate of a
    Gaussian source (tests/ratedist/test_bounds.py::test_limit_is_reached_from_above).
    """
    s = as_numbers("similarity", similarity, low=-1.0, high=1.0)
    positive = np.maximum(s, 0.0)
    with np.errstate(divide="ignore"):
        return np.maximum(-0.5 * np.log2((1.0 - positive) * (1.0 + positive)), 0.0)


def similarity_of_error2(error_squared: ArrayLike, rule: str = "own-norm") -> FloatArray:
    """Similarity s >= 0 at which a scale rule has the given e²; puts the bounds on the axis of an error.

    Args:
        error_squared: e², any shape: within [0, 2] for ``own-norm``, within [0, 1] for ``projection``.
        rule: ``own-norm`` or ``projection``; ``raw`` depends on the norms and has no inverse of its own.

    Test: tests/ratedist/test_bounds.py::test_similarity_of_error_inverts_the_rules.
    """
    if rule == "own-norm":
        return 1.0 - as_numbers("error_squared", error_squared, low=0.0, high=2.0) / 2.0
    if rule == "projection":
        return np.sqrt(1.0 - as_numbers("error_squared", error_squared, low=0.0, high=1.0))
    if rule == "raw":
        raise InputError("rule", rule, "depends on the norms of both blocks; use own-norm or projection")
    error2(0.0, rule)  # names the rules that exist
    raise AssertionError(rule)
