"""Continuous batching over a fixed pool of KV blocks: admission, prefill, fusion, preemption, release.

The clock of a run is the time that its forward passes, fusions and scheduling took on this machine, one after
the other; where nobody is there to be served it jumps to the next arrival. So a trace of minutes can be
replayed without waiting, and what is reported was measured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ratedist.errors import InputError
from ratedist.kernels.pool import BlockPool
from ratedist.kernels.resident import ResidentLayer
from ratedist.kernels.resident_cache import ResidentCache
from ratedist.validate.serving.packed import PackedModel
from ratedist.validate.serving.prefix import PrefixIndex
from ratedist.validate.serving.trace import Request, check_trace

__all__ = ["EngineOptions", "Served", "ServingRun", "Step", "run_engine"]

EXACT = 1.0
"""Threshold at which only byte-equal blocks share."""


@dataclass(frozen=True)
class EngineOptions:
    """How a trace is served.

    Attributes:
        pool_blocks: physical blocks, each of one layer, that all layers draw on.
        fused_layers: layers whose prompts are fused once they are prefilled; empty for no fusion.
        threshold: of fusion, see ``ratedist.kernels.fuse.fuse``.
        criterion: as there.
        scale: as there.
        block_size: tokens per block.
        max_batch: requests that run at a time.
        step_tokens: tokens of a forward pass; prompts are prefilled in chunks that fit beside the decoding
            requests.
        share_prefixes: whether requests that begin with the same tokens share those blocks, computed once.
    """

    pool_blocks: int
    fused_layers: tuple[int, ...] = ()
    threshold: float = EXACT
    criterion: str = "keys"
    scale: str = "own-norm"
    block_size: int = 16
    max_batch: int = 32
    step_tokens: int = 256
    share_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("pool_blocks", "block_size", "max_batch", "step_tokens"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be at least 1")
        if self.step_tokens < self.max_batch:
            raise InputError(
                "step_tokens", self.step_tokens, f"must leave a token for each of {self.max_batch} requests"
            )


@dataclass(frozen=True)
class Served:
    """What one request got, in seconds of the run's clock.

    Attributes:
        tokens: the generated tokens.
        arrival: when it came.
        admitted: when it was first given blocks.
        token_times: when each of its tokens was there.
        preemptions: how often its blocks were taken away, to be computed again.
        prefix_tokens: tokens of its prompt that were found in the cache when it was first admitted.
    """

    tokens: tuple[int, ...]
    arrival: float
    admitted: float
    token_times: tuple[float, ...]
    preemptions: int
    prefix_tokens: int


@dataclass(frozen=True)
class Step:
    """One forward pass.

    Attributes:
        seconds: of the forward pass.
        fusion_seconds: of the fusions after it.
        new_tokens: tokens that it computed.
        context_tokens: tokens that its requests' queries attended to, summed over queries' requests.
        requests: requests in it.
        running: requests that hold blocks.
        blocks: physical blocks in use after the pass, before fusion.
        blocks_after: the same after fusion and release.
    """

    seconds: float
    fusion_seconds: float
    new_tokens: int
    context_tokens: int
    requests: int
    running: int
    blocks: int
    blocks_after: int


@dataclass(frozen=True)
class ServingRun:
    """A trace served from beginning to end.

    Attributes:
        options: how.
        served: per request of the trace.
        steps: in order.
        seconds: the clock at the end.
        candidates, kept: full blocks that fusion looked at, over all fused layers, and those it kept.
    """

    options: EngineOptions
    served: tuple[Served, ...]
    steps: tuple[Step, ...]
    seconds: float
    candidates: int
    kept: int

    @property
    def generated(self) -> int:
        """Tokens that were generated."""
        return sum(len(one.tokens) for one in self.served)


@dataclass
class _Job:
    """A request on its way."""

    index: int
    request: Request
    generated: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    number: int | None = None
    held: int = 0
    prompt_blocks: int = 0
    fused: bool = False
    admitted: float | None = None
    prefix_tokens: int | None = None
    preemptions: int = 0

    @property
    def known(self) -> tuple[int, ...]:
        """All tokens there are to compute: the prompt, and what was generated of it."""
        return (*self.request.prompt, *self.generated)


def run_engine(
    packed: PackedModel,
    trace: Sequence[Request],
    options: EngineOptions,
    *,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ServingRun:
    """Serve a trace with greedy decoding.

    First come, first served: a request is admitted when the free blocks, less what is promised to prompts
    under way, hold its whole prompt unfused: its blocks stand in the pool before they can be fused. Where
    the pool runs out during decoding, the request that was admitted last is preempted: its blocks are
    released, and it waits at the head of the queue to be computed again from its tokens.

    Args:
        packed: the model, within its context.
        trace: by arrival.
        options: how.
        max_tokens: the model's longest sequence; None for no limit.
        progress: called with the generated tokens so far and in total.

    Raises:
        InputError: a trace that is empty, out of order or too long for the model; a pool too small for one of
            its requests (which, and how many blocks it needs).
    """
    check_trace(trace, max_tokens)
    return _Engine(packed, trace, options).run(progress)


class _Engine:
    def __init__(self, packed: PackedModel, trace: Sequence[Request], options: EngineOptions) -> None:
        config = packed.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = config.num_hidden_layers
        for layer in options.fused_layers:
            if not 0 <= layer < self._layers:
                raise InputError("fused_layers", layer, f"the model has layers 0 … {self._layers - 1}")
        for index, request in enumerate(trace):
            needed = -(-request.tokens // options.block_size) * self._layers
            if needed > options.pool_blocks:
                raise InputError(
                    "pool_blocks",
                    options.pool_blocks,
                    f"request {index} alone needs {needed} blocks in {self._layers} layers; make it larger",
                )
        self._packed = packed
        self._options = options
        self._pool = BlockPool(
            options.pool_blocks,
            options.block_size,
            heads,
            dim,
            dtype=packed.model.dtype,
            device=packed.model.device,
        )
        fused = set(options.fused_layers)
        self._cache = ResidentCache(
            [
                ResidentLayer(
                    self._pool,
                    threshold=options.threshold if layer in fused else EXACT,
                    criterion=options.criterion,
                    scale=options.scale,
                )
                for layer in range(self._layers)
            ]
        )
        self._prefixes = PrefixIndex(options.block_size)
        self._coming = deque(_Job(index, request) for index, request in enumerate(trace))
        self._jobs = list(self._coming)
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._clock = 0.0
        self._steps: list[Step] = []
        self._candidates = self._kept = 0

    def run(self, progress: Callable[[int, int], None] | None) -> ServingRun:
        wanted = sum(job.request.new_tokens for job in self._jobs)
        while self._coming or self._waiting or self._running:
            started = time.perf_counter()
            if not self._waiting and not self._running:
                self._clock = max(self._clock, self._coming[0].request.arrival)
            while self._coming and self._coming[0].request.arrival <= self._clock:
                self._waiting.append(self._coming.popleft())
            work = self._plan()
            self._pass(work, started)
            if progress is not None:
                progress(sum(len(job.generated) for job in self._jobs), wanted)
        return ServingRun(
            options=self._options,
            served=tuple(
                Served(
                    tuple(job.generated),
                    job.request.arrival,
                    job.admitted or 0.0,
                    tuple(job.times),
                    job.preemptions,
                    job.prefix_tokens or 0,
                )
                for job in self._jobs
            ),
            steps=tuple(self._steps),
            seconds=self._clock,
            candidates=self._candidates,
            kept=self._kept,
        )

    def _plan(self) -> list[tuple[_Job, int]]:
        """Who computes how many tokens in the next pass; admits, and preempts where blocks run out."""
        while True:
            work = [(job, 1) for job in self._running if len(job.known) - job.held == 1]
            # Prompts under way go first, in order of admission, then whoever can be admitted.
            left = self._options.step_tokens - len(work)
            for job in self._running:
                missing = len(job.known) - job.held
                if missing > 1 and left > 0:
                    work.append((job, min(missing, left)))
                    left -= work[-1][1]
            if self._fits(work):
                break
            # The others' progress is worth more than that of who came last.
            self._preempt(self._running[-1])
        while self._waiting and left > 0 and len(self._running) < self._options.max_batch:
            job = self._waiting[0]
            if not self._admit(job):
                break
            self._waiting.popleft()
            self._running.append(job)
            tokens = min(len(job.known) - job.held, left)
            work.append((job, tokens))
            left -= tokens
        return work

    def _fits(self, work: list[tuple[_Job, int]]) -> bool:
        needed = sum(
            layer.blocks_to_extend([job.number or 0 for job, _ in work], [tokens for _, tokens in work])
            for layer in self._cache.layers
        )
        return needed <= self._pool.free_blocks

    def _blocks(self, tokens: int) -> int:
        """Physical blocks that so many tokens of one request take without sharing."""
        return -(-tokens // self._options.block_size) * self._layers

    def _admit(self, job: _Job) -> bool:
        """Give a waiting request a place, if its whole prompt fits beside what is promised to others."""
        known = job.known
        shared = self._prefixes.longest(known, job.request.domain) if self._options.share_prefixes else None
        held = 0 if shared is None else shared[1] * self._options.block_size
        promised = sum(self._blocks(len(other.known)) - self._blocks(other.held) for other in self._running)
        # One block per layer for each request that decodes, so that an admission is not undone at once.
        spare = self._layers * len(self._running)
        if (
            self._running
            and self._blocks(len(known)) - self._blocks(held) + promised + spare > self._pool.free_blocks
        ):
            return False
        if shared is None:
            job.number = self._cache.open(domain=job.request.domain)
        else:
            job.number = self._cache.fork(*shared)
        job.held = held
        job.fused = False
        if job.admitted is None:
            job.admitted, job.prefix_tokens = self._clock, held
        return True

    def _preempt(self, job: _Job) -> None:
        self._release(job)
        job.preemptions += 1
        self._waiting.appendleft(job)

    def _release(self, job: _Job) -> None:
        assert job.number is not None
        self._prefixes.remove(job.number)
        self._cache.release(job.number)
        self._running.remove(job)
        job.number, job.held = None, 0

    def _pass(self, work: list[tuple[_Job, int]], started: float) -> None:
        numbers = [job.number for job, _ in work if job.number is not None]
        tokens = [job.known[job.held : job.held + count] for job, count in work]
        before = time.perf_counter()
        logits = self._packed.step(self._cache, numbers, tokens)
        chosen = logits.argmax(dim=1).tolist()
        seconds = time.perf_counter() - before
        context = 0
        blocks = self._pool.blocks - self._pool.free_blocks
        complete = []
        for (job, count), token in zip(work, chosen, strict=True):
            job.held += count
            context += job.held
            if self._options.share_prefixes and not job.fused and job.number is not None:
                self._prefixes.add(job.number, job.known[: job.held], job.request.domain)
            if job.held == len(job.known):
                complete.append((job, token))
        fusing = time.perf_counter()
        for job, _ in complete:
            if not job.fused:
                self._settle(job)
        fusion_seconds = time.perf_counter() - fusing
        running = len(self._running)
        # Everything that was done for this pass counts, scheduling included.
        self._clock += time.perf_counter() - started
        for job, token in complete:
            job.generated.append(token)
            job.times.append(self._clock)
            if len(job.generated) == job.request.new_tokens:
                self._release(job)
        self._steps.append(
            Step(
                seconds=seconds,
                fusion_seconds=fusion_seconds,
                new_tokens=sum(count for _, count in work),
                context_tokens=context,
                requests=len(work),
                running=running,
                blocks=blocks,
                blocks_after=self._pool.blocks - self._pool.free_blocks,
            )
        )

    def _settle(self, job: _Job) -> None:
        """A prompt is in the cache, and is fused with what is there."""
        assert job.number is not None
        job.fused = True
        for layer in self._options.fused_layers:
            result = self._cache.layers[layer].fuse([job.number])
            self._candidates += result.candidates
            self._kept += result.kept
