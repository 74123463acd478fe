"""ratedist.predictors.sample: similarities, errors and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.predictors import PairSample


def make_sample(seed: int = 0, requests: int = 3, blocks: int = 4, dim: int = 12) -> PairSample:
    rng = np.random.default_rng(seed)
    size = requests * blocks
    return PairSample.from_vectors(
        rng.normal(size=(size, dim)) + 0.5,
        rng.normal(size=(size, dim)),
        np.repeat(np.arange(requests), blocks),
        np.tile(np.arange(blocks), requests),
    )


@pytest.mark.parametrize("scale", ["own-norm", "projection", "raw"])
@given(seed=st.integers(0, 2**31))
def test_squared_errors_are_those_of_the_vectors(scale: str, seed: int) -> None:
    """PairSample.squared_errors against the restored vectors themselves, block by block."""
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, 5, 7)) * rng.uniform(0.2, 3, size=(2, 5, 1))
    sample = PairSample.from_vectors(k, v, np.arange(5), np.zeros(5, int))
    for vectors, errors in zip((k, v), sample.squared_errors(scale), strict=True):
        for row, x in enumerate(vectors):
            for column, y in enumerate(vectors):
                if row == column:
                    continue
                factor = {
                    "own-norm": np.linalg.norm(x) / np.linalg.norm(y),
                    "projection": x @ y / (y @ y),
                    "raw": 1.0,
                }[scale]
                expected = np.sum((factor * y - x) ** 2) / np.sum(x**2)
                assert errors[row, column] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_scores_of_both_are_the_lower_similarity() -> None:
    sample = make_sample()
    assert (sample.scores("both") <= sample.scores("keys")).all()
    off = ~np.eye(len(sample.request), dtype=bool)
    np.testing.assert_array_equal(sample.scores("both")[off], np.minimum(sample.s_k, sample.s_v)[off])


def test_byte_equal_blocks_score_one_and_cost_nothing() -> None:
    sample = make_sample()
    k = np.random.default_rng(1).normal(size=(4, 9))
    k[3] = k[0]
    sample = PairSample.from_vectors(k, 2 * k, [0, 0, 1, 1], [0, 1, 0, 1])
    assert sample.exact[0, 3]
    assert not sample.exact[0, 2]
    assert sample.scores("keys")[0, 3] == 1.0
    assert sample.squared_errors("raw")[0][0, 3] == 0.0
    # Keys alone being equal is not enough.
    other = PairSample.from_vectors(
        k, np.random.default_rng(2).normal(size=(4, 9)), [0, 0, 1, 1], [0, 1, 0, 1]
    )
    assert not other.exact[0, 3]


def test_a_block_of_norm_zero_is_similar_to_nothing() -> None:
    k = np.eye(3)
    k[1] = 0
    sample = PairSample.from_vectors(k, np.eye(3), [0, 1, 2], [0, 0, 0])
    assert sample.s_k[1].tolist() == [0, 0, 0]
    for scale, cost in (("own-norm", 0.0), ("projection", 0.0), ("raw", 1.0)):
        assert sample.squared_errors(scale)[0][1, 0] == cost


def test_pairs_are_comparable_across_requests_within_a_domain() -> None:
    rng = np.random.default_rng(0)
    sample = PairSample.from_vectors(
        rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), [0, 0, 1, 2], [0, 1, 0, 0], [7, 7, 7, 8]
    )
    expected = np.zeros((4, 4), bool)
    expected[:2, 2] = expected[2, :2] = True
    np.testing.assert_array_equal(sample.comparable, expected)
    assert sample.requests == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s_k": np.zeros((3, 3))}, r"s_k = \(3, 3\): must have shape \(12, 12\)"),
        ({"s_v": np.full((12, 12), np.nan)}, r"s_v\[0, 0\] = nan: must be finite"),
        ({"position": np.zeros(5, int)}, r"position = \(5,\): must have shape \(12,\)"),
        ({"k_norm": np.full(12, -1.0)}, "k_norm = .*not negative"),
        ({"v_norm": np.full(12, np.inf)}, "v_norm = .*finite"),
        ({"position": np.full(12, -1)}, "position = -1: must not be negative"),
        ({"request": np.zeros(12, int)}, "requests = 1: calibration needs two requests of one domain"),
        ({"domain": np.repeat([0, 1, 2], 4)}, "requests = 3: calibration needs two requests of one domain"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(make_sample(), **change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.scores("values"), "criterion = 'values': unknown; choose one of keys, both"),
        (
            lambda s: s.squared_errors("half"),
            "scale = 'half': unknown; choose one of own-norm, projection, raw",
        ),
    ],
)
def test_unknown_names_list_the_known(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(make_sample())
