"""Rows of a quality record: numbers by hand, standard errors that cover, worst requests with their merges."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.validate.quality.continuation import Quality
from ratedist.validate.quality.methods import Method, parse_method
from ratedist.validate.quality.rows import clustered_error, quality_row, worst_requests

REQUESTS, TOKENS = 3, 4


def quality(**changes: object) -> Quality:
    rng = np.random.default_rng(0)
    fields: dict[str, object] = {
        "kl": rng.uniform(0, 1, (REQUESTS, TOKENS)),
        "same_top1": rng.uniform(size=(REQUESTS, TOKENS)) < 0.7,
        "delta_nll": rng.normal(size=(REQUESTS, TOKENS)),
        "k_error2": rng.uniform(0, 1, (2, REQUESTS)),
        "v_error2": rng.uniform(0, 1, (2, REQUESTS)),
        "attention_error2": rng.uniform(0, 1, (2, REQUESTS)),
        "bytes": np.array([10.0, 20.0, 30.0]),
        "unfused_bytes": np.array([40.0, 40.0, 40.0]),
        "fusions": {},
    }
    return Quality(**(fields | changes))  # type: ignore[arg-type]


def test_row_by_hand() -> None:
    q = quality()
    row = quality_row("mine", Method("fusion", variant="tree", threshold=0.8), q, (2, 5))
    assert (row["workload"], row["method"], row["variant"]) == ("mine", "fusion", "tree")
    assert row["threshold"] == 0.8
    assert row["compression"] == 2
    assert row["k_error"] == pytest.approx(np.sqrt(np.mean(q.k_error2)))
    assert row["by_layer"]["layer"] == [2, 5]
    assert row["by_layer"]["v_error"] == pytest.approx([np.sqrt(np.mean(e)) for e in q.v_error2])
    assert row["by_request"]["attention_error"] == pytest.approx(
        [np.sqrt(np.mean(q.attention_error2[:, r])) for r in range(REQUESTS)]
    )
    assert row["kl_by_position"] == pytest.approx([q.kl[:, t].mean() for t in range(TOKENS)])
    assert row["by_request"]["kl"] == pytest.approx([q.kl[r].mean() for r in range(REQUESTS)])
    assert row["kl_p99"] == pytest.approx(np.quantile(q.kl, 0.99))
    means = [q.delta_nll[r].mean() for r in range(REQUESTS)]
    assert row["delta_log_ppl"] == pytest.approx(np.mean(means))
    assert row["delta_log_ppl_se"] == pytest.approx(
        np.sqrt(sum((m - np.mean(means)) ** 2 for m in means) / (REQUESTS * (REQUESTS - 1)))
    )
    json.dumps(row, allow_nan=False)


def test_errors_that_do_not_exist_are_none() -> None:
    hidden = quality_row("mine", parse_method("evict0.5"), quality(k_error2=None, v_error2=None), (0, 1))
    assert hidden["k_error"] is None
    assert hidden["by_request"]["v_error"] is None
    spoiled = quality(k_error2=np.array([[np.inf, 0, 0], [0, 0, 0.25]]))
    infinite = quality_row("mine", Method(), spoiled, (0, 1))
    assert infinite["k_error"] is None
    assert infinite["by_request"]["k_error"] == [None, 0.0, pytest.approx(np.sqrt(0.125))]
    json.dumps(infinite, allow_nan=False)


def test_clustered_error_covers() -> None:
    """Tokens of a request that move together: the plain standard error would be half as large."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        values = rng.normal(size=(12, 1)) + rng.normal(size=(12, 8))
        means.append(values.mean())
        errors.append(clustered_error(values))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.sqrt((1 + 1 / 8) / 12), rel=0.06)
    assert np.mean(np.abs(means) < 1.796 * np.array(errors)) == pytest.approx(0.9, abs=0.06)  # t, 11 degrees
    assert clustered_error(rng.normal(size=(1, 8))) is None


def test_worst_requests_are_listed_with_what_was_merged_into_them() -> None:
    """Request 1 is request 0 turned a little in its second block; request 2 shares nothing."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(9, 16, 1, 4, generator=generator)
    pool[3] = pool[0]
    pool[4] = pool[1] + 0.2 * torch.randn(16, 1, 4, generator=generator)
    table = BlockTable(
        torch.arange(9, dtype=torch.int32).view(3, 3),
        torch.full((3,), 48),
        torch.zeros(3, dtype=torch.int64),
        16,
    )
    fusion = fuse(PagedLayer(pool, pool.clone(), table), threshold=0.9)
    kl = np.array([[0.1] * 4, [0.5] * 4, [0.2] * 4])
    worst = worst_requests(quality(kl=kl, fusions={7: fusion}), count=2)
    assert [entry["request"] for entry in worst] == [1, 2]
    assert worst[0]["kl_mean"] == pytest.approx(0.5)
    assert (worst[0]["absorbed"], worst[0]["exact"], worst[0]["partners"]) == (2, 1, [[0, 1]])
    merges = worst[0]["merges"]
    assert [(m["layer"], m["block"], m["with_request"], m["with_block"]) for m in merges] == [
        (7, 1, 0, 1),
        (7, 0, 0, 0),
    ]
    assert merges[0]["score"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(pool[4].flatten(), pool[1].flatten(), dim=0)), abs=1e-5
    )
    assert merges[1]["score"] == 1
    assert (worst[1]["absorbed"], worst[1]["merges"]) == (0, [])
