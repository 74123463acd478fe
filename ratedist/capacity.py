"""What saved blocks buy: a model of continuous batching with counts in the place of a language model.

A forward pass over n new tokens whose requests attend to c cached tokens takes base + α·n + γ·c seconds (what
is read once per pass, what is computed per token, what is read of the cache), or base + γ·c and α·n at the
same time where the machine overlaps them. Requests hold blocks; a pool of fixed size limits how many run at a
time, and with them over how many tokens ``base`` is shared. That is all that fusion changes: it frees
memory, no time. The scheduler is the one that serves real requests (``ratedist.scheduling``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ratedist._arguments import as_numbers
from ratedist.errors import InputError
from ratedist.scheduling import Job, Scheduler, Work

__all__ = [
    "Capacity",
    "Demand",
    "Machine",
    "PromptBlocks",
    "StepCost",
    "fit_step_cost",
    "kv_share_for_gain",
    "simulate_capacity",
    "throughput_gain",
]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepCost:
    """Seconds of a forward pass.

    Attributes:
        base: per pass.
        per_token: per new token.
        per_context_token: per cached token that a request of the pass attends to.
        overlapped: whether computing tokens overlaps with reading weights and cache, as on a GPU.
    """

    base: float
    per_token: float
    per_context_token: float
    overlapped: bool = False

    def __post_init__(self) -> None:
        for name in ("base", "per_token", "per_context_token"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(name, value, "must be a number of seconds that is not negative")

    def seconds(self, tokens: int, context: int) -> float:
        """Of a pass over ``tokens`` new tokens that attend to ``context`` cached ones."""
        reading, computing = self.base + self.per_context_token * context, self.per_token * tokens
        return max(reading, computing) if self.overlapped else reading + computing


@dataclass(frozen=True)
class Machine:
    """A GPU as far as serving depends on it.

    Attributes:
        memory: bytes for weights and cache.
        bandwidth: bytes per second.
        matrix_rate: operations per second, a multiply-add counting two.
    """

    memory: float
    bandwidth: float
    matrix_rate: float

    def step_cost(self, parameters: float, kv_bytes_per_token: float, scalar_bytes: float = 2.0) -> StepCost:
        """The roofline of a dense model: all weights are read once per pass, the cache once per request.

        Args:
            parameters: of the model; a token costs twice as many operations.
            kv_bytes_per_token: of all layers.
            scalar_bytes: of one weight.
        """
        return StepCost(
            base=parameters * scalar_bytes / self.bandwidth,
            per_token=2 * parameters / self.matrix_rate,
            per_context_token=kv_bytes_per_token / self.bandwidth,
            overlapped=True,
        )


@dataclass(frozen=True)
class Demand:
    """One request: when it comes, its prompt, what it wants. Times in seconds, lengths in tokens."""

    arrival: float
    prompt: int
    new_tokens: int
    shared_prefix: int = 0
    """Tokens of the prompt that another resident request has already computed."""


@dataclass(frozen=True)
class PromptBlocks:
    """Physical blocks that the prompts of n resident requests take once they are prefilled and fused.

    Attributes:
        resident: (n + 1,) blocks of 0, 1, …, n requests, rising from 0; beyond n it goes on by the last step.
    """

    resident: FloatArray

    def __post_init__(self) -> None:
        values = as_numbers("resident", self.resident, low=0.0).reshape(-1)
        object.__setattr__(self, "resident", values)
        if len(values) < 2 or values[0] != 0 or (np.diff(values) < 0).any():
            raise InputError(
                "resident",
                values.tolist(),
                "must rise from 0 blocks for 0 requests, for at least one request",
            )

    def of(self, requests: int) -> float:
        """Blocks of so many resident requests."""
        last = len(self.resident) - 1
        if requests <= last:
            return float(self.resident[requests])
        return float(
            self.resident[last] + (requests - last) * (self.resident[last] - self.resident[last - 1])
        )


@dataclass(frozen=True)
class Capacity:
    """What a trace gets of a pool.

    Attributes:
        seconds: from the first arrival's clock 0 to the last token.
        tokens_per_second: generated tokens over ``seconds``.
        mean_running: requests that hold blocks, averaged over passes.
        time_to_first_token: (requests,) seconds from arrival.
        preemptions: how often blocks were taken away.
        peak_blocks: most blocks in use.
    """

    seconds: float
    tokens_per_second: float
    mean_running: float
    time_to_first_token: FloatArray
    preemptions: int
    peak_blocks: float


def fit_step_cost(seconds: ArrayLike, tokens: ArrayLike, context: ArrayLike) -> StepCost:
    """The cost that fits measured passes best, in relative squared error with no negative part.

    Args:
        seconds: (passes,) each positive.
        tokens: (passes,) new tokens.
        context: (passes,) cached tokens attended to.

    Raises:
        InputError: fewer than three passes, or arrays of different lengths.

    Test: tests/ratedist/test_capacity.py::test_cost_is_recovered.
    """
    time = as_numbers("seconds", seconds, low=0.0, low_open=True).reshape(-1)
    parts = np.stack(
        [
            np.ones_like(time),
            *(as_numbers(n, x, low=0.0).reshape(-1) for n, x in (("tokens", tokens), ("context", context))),
        ],
        axis=1,
    )
    if len(time) < 3:
        raise InputError("seconds", len(time), "needs at least three passes")
    size = parts.max(axis=0)
    size[size == 0] = 1.0
    solution, _ = scipy.optimize.nnls(parts / size / time[:, None], np.ones_like(time))
    base, per_token, per_context = solution / size
    return StepCost(float(base), float(per_token), float(per_context))


def throughput_gain(compression: float, kv_share: float) -> float:
    """Tokens per second with fusion over those without, of a full pool of decoding requests.

    With W bytes of weights and x·W bytes of cache read per pass before fusion, memory-bound: c times the
    requests fit, each pass reads (1 + c·x)·W in the place of (1 + x)·W, so the gain is c·(1 + x)/(1 + c·x).
    It is c where weights dominate (x → 0) and 1 where the cache does: fusion then only fills memory with more
    to read. Kernels that read a shared block once for several requests would do better.

    Args:
        compression: c, logical blocks over physical ones; at least 1.
        kv_share: x, not negative.

    Test: tests/ratedist/test_capacity.py::test_gain_is_what_the_simulation_gives.
    """
    if not compression >= 1:
        raise InputError("compression", compression, "must be at least 1")
    if not kv_share >= 0:
        raise InputError("kv_share", kv_share, "must not be negative")
    return compression * (1 + kv_share) / (1 + compression * kv_share)


def kv_share_for_gain(gain: float, compression: float) -> float:
    """x at which ``throughput_gain`` is ``gain``: (c − g)/(c·(g − 1)).

    Joint Encoding (arXiv 2601.03067) reports about 40 % more tokens per second at 35 to 50 % fewer blocks: c
    from 1.54 to 2, hence x from 0.22 to 0.75. So a pass must have read between 0.22 and 0.75 bytes of cache
    per byte of weights; with more cache per pass fewer blocks could not have bought as much.

    Raises:
        InputError: a gain that is not above 1 and at most the compression.

    Test: tests/ratedist/test_capacity.py::test_the_published_gain_needs_weights_to_dominate.
    """
    if not 1 < gain <= compression:
        raise InputError("gain", gain, f"must be above 1 and at most the compression, {compression}")
    return (compression - gain) / (compression * (gain - 1))


def simulate_capacity(
    demands: Sequence[Demand],
    cost: StepCost,
    *,
    pool_blocks: float,
    layers: int,
    prompt_blocks: PromptBlocks,
    block_size: int = 16,
    max_batch: int = 32,
    step_tokens: int = 256,
    settle_seconds: float = 0.0,
) -> Capacity:
    """Serve a trace of counts.

    Args:
        demands: by arrival.
        cost: of a pass.
        pool_blocks: blocks, each of one layer, that all layers draw on.
        layers: of the model.
        prompt_blocks: what resident prompts take after fusion; every prompt is taken to be like every other.
        block_size: tokens per block.
        max_batch: requests that run at a time.
        step_tokens: tokens of a pass.
        settle_seconds: of one request's fusion.

    Raises:
        InputError: no demand, demands out of order, or one that alone exceeds the pool.

    Test: tests/ratedist/test_capacity.py::test_by_hand and ::test_gain_is_what_the_simulation_gives.
    """
    jobs = [Job(demand.arrival, demand.prompt, demand.new_tokens) for demand in demands]
    for index, job in enumerate(jobs):
        needed = layers * -(-job.most // block_size)
        if needed > pool_blocks:
            raise InputError("pool_blocks", pool_blocks, f"request {index} alone needs {needed} blocks")
    pool = _Counted(
        dict(zip(jobs, demands, strict=True)), float(pool_blocks), layers, block_size, prompt_blocks
    )
    scheduler = Scheduler(jobs, pool, max_batch=max_batch, step_tokens=step_tokens)
    clock, passes, running, peak = 0.0, 0, 0, 0.0
    while not scheduler.finished:
        clock = scheduler.arrive(clock)
        work = scheduler.plan(clock)
        complete = scheduler.advance(work)
        peak = max(peak, pool.used())
        clock += cost.seconds(sum(tokens for _, tokens in work), sum(job.held for job, _ in work))
        clock += settle_seconds * sum(not job.prefilled for job in complete)
        passes, running = passes + 1, running + len(scheduler.running)
        scheduler.emit(complete, clock)
    return Capacity(
        seconds=clock,
        tokens_per_second=sum(job.new_tokens for job in jobs) / clock,
        mean_running=running / passes,
        time_to_first_token=np.array([job.token_times[0] - job.arrival for job in jobs]),
        preemptions=sum(job.preemptions for job in jobs),
        peak_blocks=peak,
    )


class _Counted:
    """A pool of which only the number of blocks in use is known (``ratedist.scheduling.Blocks``)."""

    def __init__(
        self,
        demands: dict[Job, Demand],
        pool: float,
        layers: int,
        block_size: int,
        prompt_blocks: PromptBlocks,
    ) -> None:
        self._demands, self._pool, self._prompts = demands, pool, prompt_blocks
        self._layers, self._size = layers, block_size
        self._running: list[Job] = []

    def fits(self, work: Work) -> bool:
        return len(self._running) <= 1 or self.used(work) <= self._pool

    def admits(self, job: Job, running: Sequence[Job]) -> bool:
        promised = sum(self._blocks(other.known) - self._blocks(other.held) for other in running)
        spare = self._layers * len(running)
        new = self._blocks(job.known) - self._blocks(self._demands[job].shared_prefix)
        return self.used() + new + promised + spare <= self._pool

    def place(self, job: Job, running: Sequence[Job]) -> int:
        self._running.append(job)
        # A prefix is found where somebody else holds it.
        return min(self._demands[job].shared_prefix, job.known - 1) if running else 0

    def release(self, job: Job) -> None:
        self._running.remove(job)

    def used(self, work: Work | None = None) -> float:
        """Blocks in use after some more work: prefilled prompts as they are shared, all else by itself."""
        more = {id(job): tokens for job, tokens in work or ()}
        total = self._prompts.of(sum(job.prefilled for job in self._running))
        for job in self._running:
            held = job.held + more.get(id(job), 0)
            alone = job.prompt if job.prefilled else min(held, self._demands[job].shared_prefix)
            total += max(0, self._blocks(held) - self._blocks(alone))
        return total

    def _blocks(self, tokens: int) -> int:
        return self._layers * -(-tokens // self._size)
