"""Continuous batching: who computes how many tokens in the next pass, for any kind of blocks and any clock.

``ratedist.validate.serving.engine`` runs it with a real model and pool, ``ratedist.capacity`` with counts;
that both follow one scheduler is what makes the second a model of the first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from ratedist.errors import InputError

__all__ = ["Blocks", "Job", "Scheduler", "Work"]


@dataclass(eq=False)
class Job:
    """One request on its way. Times in seconds of the caller's clock, lengths in tokens.

    Attributes:
        arrival: when it comes.
        prompt: length of its prompt.
        new_tokens: what it wants generated.
        held: tokens of it that are in the cache.
        generated: tokens generated so far.
        prefilled: whether all that was known when it was admitted is in the cache.
        admitted: when it was first given blocks.
        prefix: tokens that were found in the cache then.
        token_times: when each of its tokens was there.
        preemptions: how often its blocks were taken away.
    """

    arrival: float
    prompt: int
    new_tokens: int
    held: int = 0
    generated: int = 0
    prefilled: bool = False
    admitted: float = math.nan
    prefix: int = 0
    token_times: list[float] = field(default_factory=list)
    preemptions: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival) and self.arrival >= 0):
            raise InputError("arrival", self.arrival, "must be a number of seconds that is not negative")
        for name in ("prompt", "new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be at least 1")

    @property
    def known(self) -> int:
        """Tokens there are to compute: the prompt, and what was generated so far."""
        return self.prompt + self.generated

    @property
    def most(self) -> int:
        """Tokens that the cache holds of it at the end; the last new one is never read."""
        return self.prompt + self.new_tokens - 1


Work = list[tuple[Job, int]]
"""Jobs with the number of tokens that each computes in a pass."""


class Blocks(Protocol):
    """The pool as the scheduler sees it."""

    def fits(self, work: Work) -> bool:
        """Whether there are free blocks for the tokens of ``work``."""

    def admits(self, job: Job, running: Sequence[Job]) -> bool:
        """Whether all known tokens of a waiting job fit, beside what is promised to ``running``."""

    def place(self, job: Job, running: Sequence[Job]) -> int:
        """Admit a job; how many of its tokens are in the cache already (fewer than it has)."""

    def release(self, job: Job) -> None:
        """Take the blocks of a job back."""


class Scheduler:
    """First come, first served, over a pool that may be too small for all.

    A pass has a budget of tokens. Every decoding job computes one; prompts under way get what is left, in
    order of admission, in chunks; then waiting jobs are admitted. Where the pool runs out, the job that was
    admitted last is preempted: its blocks are released, and it waits at the head of the queue to be computed
    again.
    """

    def __init__(self, jobs: Sequence[Job], blocks: Blocks, *, max_batch: int, step_tokens: int) -> None:
        """Args:
            jobs: in order of arrival.
            blocks: the pool, which must be able to hold each of them alone.
            max_batch: jobs that run at a time, at least 1.
            step_tokens: tokens per pass, at least ``max_batch``.

        Raises:
            InputError: no jobs, jobs out of order, or limits below what is listed.
        """
        if not jobs:
            raise InputError("trace", [], "holds no request")
        for index, (before, after) in enumerate(pairwise(jobs), start=1):
            if after.arrival < before.arrival:
                raise InputError(
                    "trace", after.arrival, f"request {index} arrives before the one ahead of it; sort them"
                )
        if max_batch < 1:
            raise InputError("max_batch", max_batch, "must be at least 1")
        if step_tokens < max_batch:
            raise InputError(
                "step_tokens", step_tokens, f"must leave a token for each of {max_batch} requests"
            )
        self._blocks = blocks
        self._max_batch, self._step_tokens = max_batch, step_tokens
        self._coming, self._waiting = deque(jobs), deque[Job]()
        self._running: list[Job] = []

    @property
    def running(self) -> Sequence[Job]:
        """Jobs that hold blocks, in order of admission."""
        return self._running

    @property
    def finished(self) -> bool:
        """Whether every job has all of its tokens."""
        return not (self._coming or self._waiting or self._running)

    def arrive(self, clock: float) -> float:
        """Let in who has come; the clock, moved to the next arrival where nobody is there to be served."""
        if not self._waiting and not self._running:
            clock = max(clock, self._coming[0].arrival)
        while self._coming and self._coming[0].arrival <= clock:
            self._waiting.append(self._coming.popleft())
        return clock

    def plan(self, clock: float) -> Work:
        """The work of the next pass; never empty after ``arrive``."""
        while not self._blocks.fits(work := self._under_way()):
            # The others' progress is worth more than that of who came last.
            victim = self._running[-1]
            self._drop(victim)
            victim.preemptions += 1
            self._waiting.appendleft(victim)
        left = self._step_tokens - sum(tokens for _, tokens in work)
        while self._waiting and left > 0 and len(self._running) < self._max_batch:
            job = self._waiting[0]
            # Alone, any job fits.
            if self._running and not self._blocks.admits(job, self._running):
                break
            job.held = self._blocks.place(job, self._running)
            if math.isnan(job.admitted):
                job.admitted, job.prefix = clock, job.held
            self._running.append(self._waiting.popleft())
            work.append((job, min(job.known - job.held, left)))
            left -= work[-1][1]
        return work

    def advance(self, work: Work) -> list[Job]:
        """Count the tokens of a pass as held; the jobs whose known tokens are all there, and that get one."""
        for job, tokens in work:
            job.held += tokens
        return [job for job, _ in work if job.held == job.known]

    def emit(self, jobs: Iterable[Job], clock: float) -> None:
        """Give each of these jobs a token, and let go of those that have all they want."""
        for job in jobs:
            job.prefilled = True
            job.generated += 1
            job.token_times.append(clock)
            if job.generated == job.new_tokens:
                self._drop(job)

    def _under_way(self) -> Work:
        work = [(job, 1) for job in self._running if job.known - job.held == 1]
        left = self._step_tokens - len(work)
        for job in self._running:
            missing = job.known - job.held
            if missing > 1 and left > 0:
                work.append((job, min(missing, left)))
                left -= work[-1][1]
        return work

    def _drop(self, job: Job) -> None:
        self._blocks.release(job)
        self._running.remove(job)
        job.held, job.prefilled = 0, False
