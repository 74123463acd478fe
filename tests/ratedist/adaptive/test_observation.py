"""Error curves of probes, and the ceilings of errors, against brute force and against vectors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.adaptive import Observation, error_ceiling, error_curve
from ratedist.errors import InputError

GRID = np.array([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0])
probes = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 0.25, 0.5, 0.8, 0.99, 1.0]), st.floats(0, 4)),
    min_size=1,
    max_size=8,
)


@given(probes)
def test_curve_is_the_mean_of_what_would_be_absorbed(seen: list[tuple[float, float]]) -> None:
    """``error_curve`` against its definition; a score equal to a threshold does not exceed it."""
    scores, errors = np.array(seen).T
    expected = [np.where(scores > tau, errors, 0.0).mean() for tau in GRID]
    np.testing.assert_allclose(error_curve(Observation(scores, errors), GRID), expected, atol=1e-12)


def test_probes_estimate_the_request_without_bias() -> None:
    rng = np.random.default_rng(3)
    scores, errors = rng.uniform(-0.5, 1, 6), rng.uniform(0, 2, 6)
    drawn = [
        error_curve(Observation(scores[list(some)], errors[list(some)]), GRID)
        for some in itertools.combinations(range(6), 2)
    ]
    np.testing.assert_allclose(np.mean(drawn, axis=0), error_curve(Observation(scores, errors), GRID))


@pytest.mark.parametrize("criterion", ["keys", "both"])
@pytest.mark.parametrize("scale", ["own-norm", "projection"])
def test_ceiling_holds_for_vectors_and_is_reached(criterion: str, scale: str) -> None:
    """``error_ceiling`` bounds the error of two vectors at every threshold that they exceed, or nearly so."""
    rng = np.random.default_rng(0)
    nearest = np.inf
    for _ in range(3000):
        cosines = rng.choice([rng.uniform(-1, 1), -1.0, 1.0], 2, p=[0.6, 0.3, 0.1])
        score = cosines[0] if criterion == "keys" else cosines.min()
        total = 0.0
        for cosine in cosines:
            size, other = rng.uniform(0.1, 9, 2)
            x = size * np.array([1.0, 0.0])
            match = other * np.array([cosine, np.sqrt(1 - cosine**2)])
            factor = size / other if scale == "own-norm" else x @ match / other**2
            total += float(np.square(factor * match - x).sum() / size**2) / 2
        below = max(-1.0, float(np.nextafter(score, -2)))
        bound = float(error_ceiling(below, criterion=criterion, scale=scale))
        assert total <= bound + 1e-9
        nearest = min(nearest, bound - total)
    assert nearest < 1e-6


def test_ceiling_falls_to_nothing_at_one() -> None:
    tau = np.linspace(-1, 1, 201)
    for criterion, scale in itertools.product(("keys", "both"), ("own-norm", "projection")):
        ceiling = error_ceiling(tau, criterion=criterion, scale=scale)
        assert (np.diff(ceiling) <= 0).all()
        assert ceiling[-1] == 0


def test_what_is_refused() -> None:
    for arguments, message in (
        (([0.5], [0.1, 0.2]), r"scores = '1 scores, 2 errors': needs one score and one error per probe"),
        (([], []), r"scores = '0 scores, 0 errors'"),
        (([1.5], [0.1]), r"scores = 1.5: must be finite and lie in \[-1, 1\]"),
        (([0.5], [-0.1]), r"errors = -0.1: must be finite and at least 0"),
        (([0.5], [0.1], np.nan), r"realised = nan: must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            Observation(*arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"criterion = 'values': must be one of keys, both"):
        error_ceiling(0.5, criterion="values")
    with pytest.raises(InputError, match=r"scale = 'raw': must be one of own-norm, projection: others bound"):
        error_ceiling(0.5, scale="raw")
