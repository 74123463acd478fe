"""Continuous batching over a fixed pool of KV blocks: admission, prefill, fusion, preemption, release.

The clock of a run is the time that its forward passes, fusions and scheduling took on this machine, one after
the other; where nobody is there to be served it jumps to the next arrival. So a trace of minutes can be
replayed without waiting, and what is reported was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.resident.cache import ResidentCache
from ratedist.kernels.resident.layer import ResidentLayer
from ratedist.kernels.resident.pool import BlockPool
from ratedist.scheduling import Job, Scheduler, Work
from ratedist.validate.serving.packed import PackedModel
from ratedist.validate.serving.prefix import PrefixIndex
from ratedist.validate.serving.trace import Request, check_trace

__all__ = ["EngineOptions", "Served", "ServingRun", "Step", "profile_prompts", "run_engine"]

EXACT = 1.0
"""Threshold at which only byte-equal blocks share."""


@dataclass(frozen=True)
class EngineOptions:
    """How a trace is served.

    Attributes:
        pool_blocks: physical blocks, each of one layer, that all layers draw on.
        fused_layers: layers whose prompts are fused once they are prefilled; empty for no fusion.
        threshold: of fusion, see ``ratedist.kernels.fusion.fuse.fuse``.
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
        for name in ("pool_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be at least 1")


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


def run_engine(
    packed: PackedModel,
    trace: Sequence[Request],
    options: EngineOptions,
    *,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ServingRun:
    """Serve a trace with greedy decoding.

    Requests are scheduled by ``ratedist.scheduling.Scheduler``. One is admitted when the free blocks, less
    what is promised to prompts under way, hold its whole prompt unfused: its blocks stand in the pool before
    they can be fused.

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
    jobs = [Job(request.arrival, len(request.prompt), request.new_tokens) for request in trace]
    pool = _Pool(packed, dict(zip(jobs, trace, strict=True)), options)
    scheduler = Scheduler(jobs, pool, max_batch=options.max_batch, step_tokens=options.step_tokens)
    wanted = sum(job.new_tokens for job in jobs)
    clock = 0.0
    steps = []
    while not scheduler.finished:
        clock = scheduler.arrive(clock)
        started = time.perf_counter()
        work = scheduler.plan(clock)
        logits = pool.compute(packed, work)
        computed = time.perf_counter()
        complete = scheduler.advance(work)
        context, blocks, running = sum(job.held for job, _ in work), pool.used, len(scheduler.running)
        pool.note_prefixes(work)
        pool.choose_tokens(work, complete, logits)
        fusing = time.perf_counter()
        for job in complete:
            if not job.prefilled:
                pool.fuse(job)
        finished = time.perf_counter()
        # Everything that was done for this pass counts, scheduling included.
        clock += finished - started
        scheduler.emit(complete, clock)
        steps.append(
            Step(
                seconds=computed - started,
                fusion_seconds=finished - fusing,
                new_tokens=sum(tokens for _, tokens in work),
                context_tokens=context,
                requests=len(work),
                running=running,
                blocks=blocks,
                blocks_after=pool.used,
            )
        )
        if progress is not None:
            progress(sum(job.generated for job in jobs), wanted)
    return ServingRun(
        options=options,
        served=tuple(
            Served(
                tuple(pool.generated[job]),
                job.arrival,
                job.admitted,
                tuple(job.token_times),
                job.preemptions,
                job.prefix,
            )
            for job in jobs
        ),
        steps=tuple(steps),
        seconds=clock,
        candidates=pool.candidates,
        kept=pool.kept,
    )


def profile_prompts(
    packed: PackedModel, requests: Sequence[Request], options: EngineOptions
) -> tuple[list[int], float]:
    """What resident prompts take: prefill requests one after the other, fuse each, and release none.

    Args:
        packed: the model, within its context.
        requests: whose prompts are computed; nothing is generated.
        options: of which the pool must hold them all.

    Returns:
        Blocks in use with 0, 1, … requests resident, and the mean seconds of one request's fusion.
    """
    jobs = [Job(request.arrival, len(request.prompt), request.new_tokens) for request in requests]
    pool = _Pool(packed, dict(zip(jobs, requests, strict=True)), options)
    blocks, seconds = [0], 0.0
    for index, job in enumerate(jobs):
        job.held = pool.place(job, jobs[:index])
        while job.held < job.known:
            work = [(job, min(options.step_tokens, job.known - job.held))]
            pool.compute(packed, work)
            job.held += work[0][1]
            pool.note_prefixes(work)
        started = time.perf_counter()
        pool.fuse(job)
        seconds += time.perf_counter() - started
        blocks.append(pool.used)
    return blocks, seconds / len(jobs)


class _Pool:
    """The real pool behind the scheduler (``ratedist.scheduling.Blocks``), and the requests' tokens."""

    def __init__(self, packed: PackedModel, requests: dict[Job, Request], options: EngineOptions) -> None:
        config = packed.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = config.num_hidden_layers
        for layer in options.fused_layers:
            if not 0 <= layer < self._layers:
                raise InputError("fused_layers", layer, f"the model has layers 0 … {self._layers - 1}")
        self._size = options.block_size
        for index, job in enumerate(requests):
            if self._blocks(job.most) > options.pool_blocks:
                raise InputError(
                    "pool_blocks",
                    options.pool_blocks,
                    f"request {index} alone needs {self._blocks(job.most)} blocks in {self._layers} layers; "
                    "make it larger",
                )
        model = packed.model
        self._pool = BlockPool(
            options.pool_blocks, self._size, heads, dim, dtype=model.dtype, device=model.device
        )
        self._cache = ResidentCache(
            [
                ResidentLayer(
                    self._pool,
                    threshold=options.threshold if layer in options.fused_layers else EXACT,
                    criterion=options.criterion,
                    scale=options.scale,
                )
                for layer in range(self._layers)
            ]
        )
        self._options = options
        self._requests = requests
        self._numbers: dict[Job, int] = {}
        self._prefixes = PrefixIndex(self._size)
        self.generated: dict[Job, list[int]] = {job: [] for job in requests}
        self.candidates = self.kept = 0

    @property
    def used(self) -> int:
        """Blocks in use."""
        return self._pool.blocks - self._pool.free_blocks

    def fits(self, work: Work) -> bool:
        numbers, tokens = [self._numbers[job] for job, _ in work], [count for _, count in work]
        needed = sum(layer.blocks_to_extend(numbers, tokens) for layer in self._cache.layers)
        return needed <= self._pool.free_blocks

    def admits(self, job: Job, running: Sequence[Job]) -> bool:
        promised = sum(self._blocks(other.known) - self._blocks(other.held) for other in running)
        # One block per layer for each request that decodes, so that an admission is not undone at once.
        spare = self._layers * len(running)
        found = self._prefix(job)
        new = self._blocks(job.known) - (found[1] * self._layers if found else 0)
        return new + promised + spare <= self._pool.free_blocks

    def place(self, job: Job, running: Sequence[Job]) -> int:
        found = self._prefix(job)
        if found is None:
            self._numbers[job] = self._cache.open(domain=self._requests[job].domain)
            return 0
        self._numbers[job] = self._cache.fork(*found)
        return found[1] * self._size

    def release(self, job: Job) -> None:
        number = self._numbers.pop(job)
        self._prefixes.remove(number)
        self._cache.release(number)

    def compute(self, packed: PackedModel, work: Work) -> Tensor:
        """Logits after the last token of every job's share of ``work``."""
        return packed.step(
            self._cache,
            [self._numbers[job] for job, _ in work],
            [self._tokens(job)[job.held : job.held + count] for job, count in work],
        )

    def note_prefixes(self, work: Work) -> None:
        """Let other requests find what has been computed of prompts."""
        if self._options.share_prefixes:
            for job, _ in work:
                if not job.prefilled:
                    tokens = self._tokens(job)[: job.held]
                    self._prefixes.add(self._numbers[job], tokens, self._requests[job].domain)

    def choose_tokens(self, work: Work, complete: Sequence[Job], logits: Tensor) -> None:
        """Greedy decoding: the most likely token of every complete job."""
        row = {job: index for index, (job, _) in enumerate(work)}
        for job, token in zip(
            complete, logits[[row[job] for job in complete]].argmax(1).tolist(), strict=True
        ):
            self.generated[job].append(token)

    def fuse(self, job: Job) -> None:
        """A prompt is in the cache: fuse its blocks with what is resident."""
        for layer in self._options.fused_layers:
            result = self._cache.layers[layer].fuse([self._numbers[job]])
            self.candidates += result.candidates
            self.kept += result.kept

    def _tokens(self, job: Job) -> tuple[int, ...]:
        return (*self._requests[job].prompt, *self.generated[job])

    def _prefix(self, job: Job) -> tuple[int, int] | None:
        if not self._options.share_prefixes:
            return None
        return self._prefixes.longest(self._tokens(job), self._requests[job].domain)

    def _blocks(self, tokens: int) -> int:
        """Blocks that so many tokens of one request take without sharing."""
        return -(-tokens // self._size) * self._layers
