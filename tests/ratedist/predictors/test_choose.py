"""predictors.choose: which predictor wins, and that nothing but the sample is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.predictors import PREDICTORS, PairSample, best_of, choose_predictor, held_out_errors
from ratedist.predictors.choose import HeldOutError


def sample_of(x: np.ndarray, domain: np.ndarray | None = None) -> PairSample:
    requests, blocks = x.shape[:2]
    flat = x.reshape(requests * blocks, -1)
    owner = np.repeat(np.arange(requests), blocks)
    places = np.tile(np.arange(blocks), requests)
    return PairSample.from_vectors(flat, flat, owner, places, None if domain is None else domain[owner])


def placed(requests: int, rng: np.random.Generator, weight: float) -> np.ndarray:
    """Blocks near the direction of their position."""
    x = rng.normal(size=(requests, 6, 24))
    return x / np.linalg.norm(x, axis=2, keepdims=True) + weight * np.eye(6, 24)


def test_the_right_model_is_chosen() -> None:
    """Traffic with positions: the Gaussian is far off; all see the same cells, in the order asked for."""
    sample = sample_of(placed(16, np.random.default_rng(0), 1.2))
    names = ["gaussian", "position-marked", "accumulation"]
    chosen, errors = choose_predictor(sample, [0.55, 0.62, 0.7], predictors=names)
    assert [error.predictor for error in errors] == names
    assert len({error.errors.size for error in errors}) == 1
    assert errors[0].errors.size > 0
    assert chosen != "gaussian"
    assert errors[0].score > 2 * min(error.score for error in errors)
    assert all(error.seconds > 0 for error in errors)


def test_the_error_is_that_of_the_requests_left_out() -> None:
    """Requests alike but for one half: a predictor fitted to the wrong side, or to all, would show it."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 3, 400))
    x[:, 0] = x[0, 0]
    # Distinct but for the shared first block: n held-out requests keep 2n + 1 of 3n.
    (error,) = held_out_errors(sample_of(x), [0.9], predictors=["position-marked"], splits=2)
    assert error.errors == pytest.approx([0.0, 0.0], abs=1e-9)
    (wide,) = held_out_errors(sample_of(x), [0.9], predictors=["gaussian"], splits=1, ratio=3.0)
    # 2 of 8 fitted to, 6 fused: 13 of 18 blocks stay, and the Gaussian that saw one copy in 9 pairs errs.
    assert 0.2 < wide.errors[0] < np.log(18 / 13)


def test_domains_of_few_requests_take_no_part() -> None:
    rng = np.random.default_rng(2)
    x = placed(9, rng, 1.2)
    domain = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    (both,) = held_out_errors(sample_of(x, domain), [0.6], predictors=["gaussian"])
    (alone,) = held_out_errors(sample_of(x[:6]), [0.6], predictors=["gaussian"])
    assert both.errors.size == alone.errors.size


def test_of_equal_scores_the_last_is_chosen() -> None:
    def error(name: str, *values: float) -> HeldOutError:
        return HeldOutError(name, np.array(values), 0.0)

    assert best_of([error("a", 0.3), error("b", 0.1, 0.2), error("c", 0.4)]) == "b"
    # One cell far off does not decide.
    assert best_of([error("a", 0.2, 0.2, 0.2), error("b", 0.1, 0.1, 9.0), error("c", 0.4)]) == "b"
    assert best_of([error("a"), error("b"), error("c")]) == "c"
    assert best_of([error("a", 0.2), error("b", 0.2), error("c", 0.4)]) == "b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "forest"}, "variant = 'forest': unknown"),
        ({"criterion": "x"}, "criterion = 'x': unknown"),
        (
            {"predictors": ["oracle"]},
            f"predictor = 'oracle': unknown; choose one of {next(iter(PREDICTORS))}",
        ),
        ({"predictors": []}, r"predictors = \[\]: name at least one"),
        ({"ratio": 0.0}, "ratio = 0.0: must be above 0"),
        ({"splits": 0}, "splits = 0: must be at least 1"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str) -> None:
    sample = sample_of(np.random.default_rng(0).normal(size=(5, 2, 6)))
    with pytest.raises(InputError, match=message):
        held_out_errors(sample, [0.5], **options)  # type: ignore[arg-type]


def test_a_sample_of_three_requests_cannot_choose() -> None:
    sample = sample_of(np.random.default_rng(0).normal(size=(3, 2, 6)))
    with pytest.raises(
        InputError, match="requests = 3: choosing a predictor needs four calibration requests"
    ):
        choose_predictor(sample, [0.5])


def test_cost_of_a_sample() -> None:
    """Pairs of different requests of one domain, each once; bytes of its arrays."""
    sample = sample_of(np.random.default_rng(0).normal(size=(5, 2, 6)), np.array([0, 0, 0, 1, 1]))
    assert sample.pairs == 3 * 4 + 1 * 4
    assert sample.bytes == 8 * (2 * 10 * 10 + 6 * 10)
    part = sample.of_requests([0, 2])
    assert part.request.tolist() == [0, 0, 2, 2]
    np.testing.assert_array_equal(part.s_k, sample.s_k[np.ix_([0, 1, 4, 5], [0, 1, 4, 5])])
    assert part.pairs == 4
