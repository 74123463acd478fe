"""The capacity model and its scheduler, by hand and against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.capacity import (
    Capacity,
    Demand,
    Machine,
    PromptBlocks,
    StepCost,
    fit_step_cost,
    kv_share_for_gain,
    simulate_capacity,
    throughput_gain,
)
from ratedist.errors import InputError
from ratedist.scheduling import Job, Scheduler

UNSHARED = 1 << 20


def unshared(blocks_per_prompt: int) -> PromptBlocks:
    return PromptBlocks(np.array([0.0, blocks_per_prompt]))


def run(demands: list[Demand], cost: StepCost, **options: float) -> Capacity:
    return simulate_capacity(
        demands,
        cost,
        **{  # type: ignore[arg-type]
            "pool_blocks": UNSHARED,
            "layers": 1,
            "block_size": 4,
            "prompt_blocks": unshared(2),
            "max_batch": 8,
            "step_tokens": 64,
        }
        | options,
    )


def test_by_hand() -> None:
    """Two requests of 8 + 3 tokens: one pass for both prompts, then two passes of one token each."""
    cost = StepCost(1.0, 0.1, 0.01)
    together = run([Demand(0.0, 8, 3)] * 2, cost)
    expected = (1 + 1.6 + 0.16) + (1 + 0.2 + 0.18) + (1 + 0.2 + 0.20)
    assert together.seconds == pytest.approx(expected)
    assert together.tokens_per_second == pytest.approx(6 / expected)
    assert together.time_to_first_token == pytest.approx([2.76, 2.76])
    # After the prompts, each of the two holds its 2 blocks and one more for the new tokens.
    assert together.peak_blocks == 6
    # Room for one at a time only: 3 blocks of its own, and the second one waits.
    alone = run([Demand(0.0, 8, 3)] * 2, cost, pool_blocks=4)
    assert alone.seconds == pytest.approx(2 * ((1 + 0.8 + 0.08) + (1 + 0.1 + 0.09) + (1 + 0.1 + 0.10)))
    assert alone.mean_running == 1
    assert alone.peak_blocks == 3
    # Room for both prompts but not for what they grow to: the second is computed again, with its first token.
    preempted = run([Demand(0.0, 8, 3)] * 2, cost, pool_blocks=5)
    assert preempted.preemptions == 1
    assert preempted.seconds == pytest.approx(2.76 + 1.19 + 1.2 + (1 + 0.9 + 0.09) + (1 + 0.1 + 0.1))
    overlapped = StepCost(1.0, 0.5, 0.01, overlapped=True)
    assert run([Demand(0.0, 8, 1)], overlapped).seconds == pytest.approx(4.0)
    assert run([Demand(5.0, 8, 1)], cost, settle_seconds=0.5).seconds == pytest.approx(5 + 1.88 + 0.5)


def test_prefixes_and_fused_prompts_take_fewer_blocks() -> None:
    cost = StepCost(1.0, 0.1, 0.0)
    demands = [Demand(0.0, 8, 2, shared_prefix=4)] * 3
    # The first pass computes 8 tokens of the first prompt, 4 of the others.
    assert run(demands, cost).seconds == pytest.approx((1 + 0.1 * 16) + (1 + 0.3))
    fused = run(demands, cost, prompt_blocks=PromptBlocks(np.array([0.0, 2.0, 2.5])))
    plain = run(demands, cost)
    assert fused.peak_blocks < plain.peak_blocks
    # Beyond the numbers given, each further request takes what the last one took.
    assert PromptBlocks(np.array([0.0, 2.0, 2.5])).of(4) == pytest.approx(3.5)


@pytest.mark.parametrize("kv_share", [0.05, 0.4, 2.0])
def test_gain_is_what_the_simulation_gives(kv_share: float) -> None:
    """Long decoding from a full pool: twice the requests, c(1 + x)/(1 + cx) times the tokens.

    ``throughput_gain`` leaves out prompts, waiting and the tail, which the long runs here make small.
    """
    batch, prompt, new = 8, 64, 400
    context = batch * (prompt + new / 2)
    cost = StepCost(1.0, 0.0, kv_share / context, overlapped=True)
    demands = [Demand(0.0, prompt, new)] * (batch * 8)
    whole = -(-(prompt + new) // 4)
    rates = []
    for factor in (1, 2):
        # What a request takes is halved, so that twice as many run in the same pool.
        result = run(
            demands,
            cost,
            pool_blocks=UNSHARED,
            max_batch=batch * factor,
            step_tokens=batch * factor * prompt,
            prompt_blocks=unshared(whole),
        )
        rates.append(result.tokens_per_second)
    assert rates[1] / rates[0] == pytest.approx(throughput_gain(2.0, kv_share), rel=0.02)


def test_the_published_gain_needs_weights_to_dominate() -> None:
    """40 % more tokens at 35 to 50 % fewer blocks."""
    shares = [kv_share_for_gain(1.4, 1 / (1 - fewer)) for fewer in (0.35, 0.5)]
    assert shares == pytest.approx([0.225, 0.75], abs=2e-3)
    for fewer, share in zip((0.35, 0.5), shares, strict=True):
        assert throughput_gain(1 / (1 - fewer), share) == pytest.approx(1.4)
    assert throughput_gain(2.0, 0.0) == 2.0
    assert throughput_gain(2.0, 1e9) == pytest.approx(1.0)


def test_cost_is_recovered() -> None:
    """From passes with 5 % noise: every part within 4 standard errors of least squares, none negative."""
    random = np.random.default_rng(0)
    tokens, context = random.integers(1, 300, 400), random.integers(1, 8000, 400)
    noise = 1 + 0.05 * random.standard_normal(400)
    true = StepCost(0.04, 2e-3, 5e-6)
    seconds = np.array([true.seconds(int(n), int(c)) for n, c in zip(tokens, context, strict=True)]) * noise
    found = fit_step_cost(seconds, tokens, context)
    parts = np.stack([np.ones(400), tokens, context], axis=1) / seconds[:, None]
    errors = 0.05 * np.sqrt(np.diag(np.linalg.inv(parts.T @ parts)))
    for name, error in zip(("base", "per_token", "per_context_token"), errors, strict=True):
        assert abs(getattr(found, name) - getattr(true, name)) < 4 * error, name
    none = fit_step_cost([1.0, 1.0, 1.0, 1.0], [1, 2, 3, 4], [0, 0, 0, 0])
    assert 0 <= none.per_token < 1e-12
    assert none.per_context_token == 0
    assert none.base == pytest.approx(1.0)


def test_a_machine_is_its_roofline() -> None:
    cost = Machine(80e9, 2e12, 300e12).step_cost(7e9, 131072)
    assert cost.base == pytest.approx(14e9 / 2e12)
    assert cost.per_token == pytest.approx(14e9 / 300e12)
    assert cost.per_context_token == pytest.approx(131072 / 2e12)
    assert cost.overlapped


jobs_drawn = st.lists(
    st.tuples(st.floats(0, 5), st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8
)


@given(jobs_drawn, st.integers(8, 40), st.integers(1, 4), st.integers(0, 6))
def test_every_trace_is_served_within_its_limits(
    drawn: list[tuple[float, int, int]], pool: int, batch: int, extra: int
) -> None:
    """Every request gets its tokens in order of time, the pool and the budget hold, and work is conserved."""
    demands = [Demand(arrival, prompt, new) for arrival, prompt, new in sorted(drawn)]
    cost = StepCost(0.5, 0.1, 0.0)
    needed = max(-(-(d.prompt + d.new_tokens - 1) // 4) for d in demands)
    options = {"pool_blocks": max(pool, needed), "max_batch": batch, "step_tokens": batch + extra}
    jobs = [Job(d.arrival, d.prompt, d.new_tokens) for d in demands]

    class Pool:
        def used(self, work: list[tuple[Job, int]]) -> int:
            more = {id(job): tokens for job, tokens in work}
            return sum(-(-(job.held + more.get(id(job), 0)) // 4) for job in placed)

        def fits(self, work: list[tuple[Job, int]]) -> bool:
            return self.used(work) <= options["pool_blocks"]

        def admits(self, job: Job, running: object) -> bool:
            return sum(-(-one.known // 4) + 1 for one in (*placed, job)) <= options["pool_blocks"]

        def place(self, job: Job, running: object) -> int:
            placed.append(job)
            return 0

        def release(self, job: Job) -> None:
            placed.remove(job)

    placed: list[Job] = []
    pool_of_counts = Pool()
    scheduler = Scheduler(jobs, pool_of_counts, max_batch=batch, step_tokens=batch + extra)  # type: ignore[arg-type]
    clock, computed = 0.0, 0
    while not scheduler.finished:
        clock = scheduler.arrive(clock)
        work = scheduler.plan(clock)
        assert work
        assert sum(tokens for _, tokens in work) <= batch + extra
        assert len(scheduler.running) <= batch
        assert pool_of_counts.used(work) <= options["pool_blocks"]
        computed += sum(tokens for _, tokens in work)
        complete = scheduler.advance(work)
        clock += 0.1
        scheduler.emit(complete, clock)
    assert not placed
    assert computed >= sum(job.most for job in jobs)
    if not any(job.preemptions for job in jobs):
        assert computed == sum(job.most for job in jobs)
    for job in jobs:
        assert len(job.token_times) == job.new_tokens
        assert all(a < b for a, b in pairwise(job.token_times))
        assert job.arrival <= job.admitted < job.token_times[0]
    # First come, first served.
    assert [job.admitted for job in jobs] == sorted(job.admitted for job in jobs)

    result = simulate_capacity(
        demands,
        cost,
        layers=1,
        block_size=4,
        prompt_blocks=PromptBlocks(np.array([0.0, 5.0])),
        **options,  # type: ignore[arg-type]
    )
    assert result.seconds >= sum(job.most for job in jobs) * 0.1
    assert result.mean_running <= batch


def test_refuses() -> None:
    cost = StepCost(1.0, 0.1, 0.0)
    with pytest.raises(InputError, match="holds no request"):
        run([], cost)
    with pytest.raises(InputError, match="request 1 arrives before the one ahead"):
        run([Demand(1.0, 1, 1), Demand(0.0, 1, 1)], cost)
    with pytest.raises(InputError, match=r"pool_blocks = 2.*request 0 alone needs 3 blocks"):
        run([Demand(0.0, 8, 3)], cost, pool_blocks=2)
    with pytest.raises(InputError, match="must leave a token"):
        run([Demand(0.0, 8, 3)], cost, step_tokens=2)
    with pytest.raises(InputError, match="max_batch"):
        run([Demand(0.0, 8, 3)], cost, max_batch=0)
    for arrival in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="arrival"):
            run([Demand(arrival, 8, 3)], cost)
    with pytest.raises(InputError, match="new_tokens = 0"):
        run([Demand(0.0, 8, 0)], cost)
    with pytest.raises(InputError, match="base = -1"):
        StepCost(-1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="must rise from 0"):
        PromptBlocks(np.array([1.0, 2.0]))
    with pytest.raises(InputError, match="must rise from 0"):
        PromptBlocks(np.array([0.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="at least three passes"):
        fit_step_cost([1.0, 1.0], [1, 2], [1, 2])
    with pytest.raises(InputError, match="must be at least 1"):
        throughput_gain(0.5, 1.0)
    with pytest.raises(InputError, match="must not be negative"):
        throughput_gain(2.0, -1.0)
    with pytest.raises(InputError, match="must be above 1 and at most the compression"):
        kv_share_for_gain(1.4, 1.2)
