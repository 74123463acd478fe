"""Plans for more requests than were seen, against predictors fitted and bytes counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.predictors import predictor_class
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.layer_law import LayerLaw
from ratedist.validate.planning.service import foresee_service
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method
from ratedist.validate.suite.chunks import as_chunks
from ratedist.validate.workloads.prompts import Prompt, PromptSet

METHODS = {0: Method("fusion", threshold=0.4), 1: Method("exact"), 2: Method()}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


def session_of(loaded: LoadedModel, requests: int) -> QualitySession:
    """Requests that begin alike for four blocks of four tokens and go on at random, the odd ones longer."""
    start = torch.randint(1, 250, (16,), generator=torch.Generator().manual_seed(5)).tolist()
    generator = torch.Generator().manual_seed(0)
    prompts = tuple(
        Prompt((*start, *torch.randint(1, 250, (37 + 5 * (n % 2),), generator=generator).tolist()))
        for n in range(requests)
    )
    return QualitySession(
        loaded, PromptSet("tiny", prompts), continuation=4, layers=(0, 1, 2), block_size=4, batch_size=8
    )


@pytest.fixture(scope="module")
def session(loaded: LoadedModel) -> QualitySession:
    return session_of(loaded, 8)


def test_twice_the_requests_against_predictors_by_hand(session: QualitySession) -> None:
    said: list[float] = []
    found = foresee_service(session, METHODS, 16, progress=lambda what, share: said.append(share))
    lengths = [48 + 5 * (n % 2) for n in range(16)]
    assert session.lengths == lengths[:8]
    token = 2 * 2 * 8 * 2  # keys and values of two heads of eight bfloat16
    whole = 3 * sum(lengths) * token
    blocks = [length // 4 for length in lengths]
    stored = np.full(3, sum(lengths) * token, dtype=float)
    squared = []
    for layer, threshold in ((0, 0.4), (1, 1.0)):
        fitted = predictor_class("heterogeneous")(pair_sample(session.layer(layer).paged))
        foreseen = fitted.predict(blocks, [threshold])
        assert foreseen.kept_low is not None
        assert foreseen.kept_high is not None
        partial = sum(length % 4 for length in lengths) * token
        for end, kept in enumerate((foreseen.kept, foreseen.kept_high, foreseen.kept_low)):
            stored[end] += kept[0] * 4 * token + 12 * sum(blocks) + partial
        squared += [foreseen.k_error[0] ** 2, foreseen.v_error[0] ** 2]
    names = ("compression", "compression_low", "compression_high")
    assert [found[name] for name in names] == pytest.approx(whole / stored)
    assert found["saving"] == pytest.approx(1 - stored[0] / whole)
    assert found["compression_low"] < found["compression"] < found["compression_high"]
    assert found["kv_error"] == pytest.approx(np.sqrt(np.mean(squared)))
    assert found["kv_error_calibration"] < found["kv_error"]
    assert said == [0.5, pytest.approx(1.0)] or said[-1] == pytest.approx(2 / 3)


def test_the_prediction_for_four_times_as_many_is_near_what_they_save(loaded: LoadedModel) -> None:
    """Of exact sharing: 32 requests of the same kind, fused, save what 8 foretell, within the band."""
    few, many = session_of(loaded, 8), session_of(loaded, 32)
    exact = dict.fromkeys((0, 1, 2), Method("exact"))
    found = foresee_service(few, exact, 32)
    measured = many.measure(exact).compression
    assert found["compression_low"] * 0.999 <= measured <= found["compression_high"] * 1.001
    assert found["compression"] == pytest.approx(measured, rel=0.02)
    assert found["compression"] > few.measure(exact).compression


def test_across_chunks_requests_only_repeat(session: QualitySession) -> None:
    """Twice the requests keep twice the blocks, and the law is that of the chunks."""
    paged = session.layer(0).paged
    method = Method("fusion", threshold=0.3, mode="cff", chunk_blocks=2)
    law = LayerLaw(paged)
    blocks = paged.table.full_blocks.numpy()
    one = law.predict(method, blocks, np.zeros(8))
    two = law.predict(method, np.concatenate([blocks, blocks]), np.zeros(16))
    assert two.kept == pytest.approx(2 * one.kept)
    chunks = as_chunks(paged, 2)
    fitted = predictor_class("heterogeneous")(pair_sample(chunks))
    expected = fitted.predict(chunks.table.full_blocks.numpy(), [0.3], domains=chunks.table.domains.numpy())
    assert one.kept == pytest.approx(expected.kept)
    assert one.kept[0] < blocks.sum()


@pytest.mark.parametrize(
    ("methods", "requests", "message"),
    [
        (METHODS, 8, "serve = 8: must be more than the 8 calibration requests"),
        (
            {0: Method("fusion", variant="centroid")},
            16,
            "plan, layer 0: variant = 'centroid': is not predicted",
        ),
        ({0: Method("", "kivi", 4)}, 16, "plan = 'kivi4': shares nothing"),
    ],
)
def test_refuses(session: QualitySession, methods: Any, requests: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        foresee_service(session, methods, requests)
