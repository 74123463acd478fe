"""A policy on the real fusion: what it is shown is what is read, and streams of captures under several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ratedist.adaptive import AdaptiveThreshold, FixedThreshold, Observation, error_ceiling
from ratedist.errors import InputError
from ratedist.kernels.resident.layer import ResidentLayer
from ratedist.kernels.resident.pool import BlockPool
from ratedist.kernels.restore import restore_blocks
from ratedist.validate.adaptive import AdaptiveFusion, adapt, observe

BLOCK, HEADS, DIM = 4, 2, 8


class Recorder:
    """A threshold that moves to and fro, and what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    @property
    def threshold(self) -> float:
        return (0.3, 0.9, 0.5)[len(self.seen) % 3]

    def update(self, observation: Observation) -> None:
        self.seen.append(observation)


def test_realised_error_is_that_of_the_restored_blocks() -> None:
    """``observe`` against what is read back, also where twins join and where a block is partly filled."""
    generator = torch.Generator().manual_seed(0)
    cache = ResidentLayer(BlockPool(200, BLOCK, HEADS, DIM), threshold=1.0, criterion="both")
    policy = Recorder()
    fusion = AdaptiveFusion(cache, policy, probes=3)
    mean = torch.randn(HEADS, DIM, generator=generator)
    twice = torch.randn(BLOCK, HEADS, DIM, generator=generator).repeat(2, 1, 1)
    absorbed = 0
    for round_ in range(9):
        own = 1.2 * mean + torch.randn(6 * BLOCK, HEADS, DIM, generator=generator)
        k = (
            torch.cat((own[: 4 * BLOCK], twice, own[4 * BLOCK :], own[:1]))
            if round_ % 2
            else own[: 5 * BLOCK + 1]
        )
        v = k.flip(-1) + 0.2 * mean
        request = cache.admit(k, v)
        # What a fork reads is turned with it, and is no error of this request.
        fork = cache.fork(request)
        done, _ = fusion.fuse(request)
        cache.release(fork)
        absorbed += len(done.absorbed)
        layer = cache.layer([request])
        full = len(k) // BLOCK
        entries = layer.table.entries[0, :full]
        errors = []
        for pool, scale, original in ((layer.k, layer.k_scale, k), (layer.v, layer.v_scale, v)):
            restored = restore_blocks(pool, entries, scale[0, :full]).flatten(1)
            expected = original[: full * BLOCK].reshape(full, -1)
            errors.append((restored - expected).square().sum(1) / expected.square().sum(1))
        assert policy.seen[-1].realised == pytest.approx(
            float(torch.stack(errors).mean()), rel=1e-4, abs=1e-9
        )
        assert len(policy.seen[-1].scores) == 3
    assert absorbed > 10


def test_a_request_without_a_full_block_teaches_nothing() -> None:
    cache = ResidentLayer(BlockPool(8, BLOCK, HEADS, DIM), threshold=1.0)
    policy = Recorder()
    request = cache.admit(*torch.randn(2, BLOCK - 1, HEADS, DIM))
    fusion, decision = AdaptiveFusion(cache, policy).fuse(request)
    assert (observe(fusion, request), decision, policy.seen) == (None, None, [])
    # The first block has nobody to match: its probe says so.
    cache.append(request, *torch.randn(2, 1, HEADS, DIM))
    AdaptiveFusion(cache, policy).fuse(request)
    (seen,) = policy.seen
    assert (seen.scores.tolist(), seen.errors.tolist(), seen.realised) == ([-1.0], [0.0], 0.0)
    for change in ({"probes": 0}, {"seed": -1}):
        with pytest.raises(InputError, match=f"{next(iter(change))} = .*must be a whole number of at least"):
            AdaptiveFusion(cache, policy, **change)


def test_promise_on_real_fusion_through_a_change() -> None:
    """Blocks near a few centres, then further, where the old threshold does more harm, then near again."""
    rng = torch.Generator().manual_seed(1)
    centres = torch.randn(6, BLOCK, HEADS, DIM, generator=rng)

    def request(noise: float) -> torch.Tensor:
        picked = centres[torch.randint(6, (6,), generator=rng)]
        return (picked + noise * torch.randn(picked.shape, generator=rng)).flatten(0, 1)

    grid = np.linspace(0.5, 1, 51)
    target, window = 0.06, 40
    courses: dict[str, list[float]] = {}
    policies: dict[str, Any] = {
        "fixed": FixedThreshold(0.6),
        "adaptive": AdaptiveThreshold(
            target, ceiling=error_ceiling(grid, criterion="both"), thresholds=grid, window=window
        ),
    }
    for name, policy in policies.items():
        rng.manual_seed(2)
        cache = ResidentLayer(BlockPool(400, BLOCK, HEADS, DIM), threshold=1.0, criterion="both")
        fusion = AdaptiveFusion(cache, policy, probes=4)
        errors = []
        for noise in [0.1] * 60 + [0.5] * 60 + [0.1] * 60:
            number = cache.admit(request(noise), request(noise))
            done, _ = fusion.fuse(number)
            seen = observe(done, number)
            assert seen is not None
            errors.append(float(seen.realised or 0.0))
            if len(cache.requests) > 12:
                cache.release(cache.requests[0])
        courses[name] = errors
    means = {
        name: np.convolve(errors, np.full(window, 1 / window), "valid") for name, errors in courses.items()
    }
    assert means["adaptive"].max() <= target
    assert means["fixed"].max() > target
    assert np.mean(courses["adaptive"]) > 0


def test_rows_and_summary_of_a_stream(make_capture: Any, tmp_path: Any) -> None:
    captures = [
        make_capture(name, lengths=(64,) * 24, layers=(2,), seed=seed, shared_tokens=shared)
        for name, seed, shared in (("one", 0, 16), ("two", 5, 48))
    ]
    record = adapt(captures, layer=2, target=0.1, window=20, resident=8, probes=2)
    names = ["integral", "bound", "mean", "fixed", "oracle"]
    assert [row["policy"] for row in record.summary] == names
    assert len(record.rows) == 5 * 48
    for row in record.summary:
        steps = [one for one in record.rows if one["policy"] == row["policy"]]
        errors = np.array([one["error"] for one in steps])
        assert [one["request"] for one in steps] == list(range(48))
        assert [one["workload"] for one in steps] == ["one"] * 24 + ["two"] * 24
        assert row["error"] == pytest.approx(errors.mean())
        windows = np.convolve(errors, np.full(20, 1 / 20), "valid")
        assert row["largest_window_error"] == pytest.approx(windows.max())
        assert row["compression"] >= 1
        if row["guarantee"] is not None:
            assert row["largest_window_error"] <= row["guarantee"]
            assert row["alarms"] == [one["request"] for one in steps if one["calibration_due"]]
    guarantee = {row["policy"]: row["guarantee"] for row in record.summary}
    assert guarantee["integral"] == pytest.approx(0.1)
    assert guarantee["mean"] > 0.1
    assert guarantee["fixed"] is guarantee["oracle"] is None
    # Blocks in use are what remains of what is held: byte-equal prefixes share at every threshold.
    assert all(one["blocks_in_use"] <= one["blocks_held"] for one in record.rows)
    fixed = next(row for row in record.summary if row["policy"] == "fixed")
    oracle = next(row for row in record.summary if row["policy"] == "oracle")
    assert fixed["by_workload"]["one"] == oracle["by_workload"]["one"]
    assert oracle["by_workload"]["one"]["error"] <= 0.1
    assert adapt(captures, layer=2, target=0.1, window=20, resident=8, probes=2).rows == record.rows
    with pytest.raises(InputError, match=r"captures = 1: needs at least two: a stream that changes"):
        adapt(captures[:1], layer=2, target=0.1)
    with pytest.raises(InputError, match=r"window = 5: is too short"):
        adapt(captures, layer=2, target=0.1, window=5)
    with pytest.raises(InputError, match=r"resident = 1: must be a whole number of at least 2"):
        adapt(captures, layer=2, target=0.1, resident=1)
