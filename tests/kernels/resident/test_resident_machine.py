"""A cache that requests enter, grow in, fuse in and leave, beside a twin that shares nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from caches import generator
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer
from ratedist.kernels.resident.layer import Absorbed, ResidentLayer
from ratedist.kernels.resident.pool import BlockPool, PoolExhaustedError
from ratedist.kernels.restore import restore_blocks

BLOCKS, BLOCK, HEADS, DIM = 12, 2, 2, 4
DIRECTIONS = torch.randn(4, BLOCK, HEADS, DIM, generator=generator(11))


@dataclass
class Twin:
    """A request as the cache would hold it if nothing were ever shared."""

    domain: int
    k: Tensor
    v: Tensor
    k_error: dict[int, float] = field(default_factory=dict)
    v_error: dict[int, float] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.twins: dict[int, Twin] = {}
        self.released: set[int] = set()

    @initialize(
        threshold=st.sampled_from([0.0, 0.6, 0.9, 1.0]),
        criterion=st.sampled_from(["keys", "both"]),
        scale=st.sampled_from(["own-norm", "raw", "projection"]),
    )
    def start(self, threshold: float, criterion: str, scale: str) -> None:
        self.pool = BlockPool(BLOCKS, BLOCK, HEADS, DIM)
        self.cache = ResidentLayer(self.pool, threshold=threshold, criterion=criterion, scale=scale)
        self.threshold = threshold
        for pool in (self.pool.k, self.pool.v):
            pool.fill_(float("nan"))

    def draw_tokens(self, count: int, cluster: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
        """Keys and values near one of a few directions; without noise they are byte-equal copies."""
        random = generator(seed)
        direction = DIRECTIONS[cluster].repeat(count // BLOCK + 1, 1, 1)[:count]
        k = direction + noise * torch.randn(direction.shape, generator=random)
        v = direction.flip(0) + noise * torch.randn(direction.shape, generator=random)
        return k, v

    def pick(self, choice: int) -> int:
        return list(self.twins)[choice % len(self.twins)]

    def reads(self) -> dict[int, tuple[Tensor, Tensor]]:
        """What every request reads of the cache: (blocks, block_size, kv_heads, head_dim) float32."""
        requests = list(self.twins)
        layer = self.cache.layer(requests)
        result = {}
        for row, request in enumerate(requests):
            used = int(layer.table.used_blocks[row])
            entries = layer.table.entries[row, :used]
            result[request] = (
                restore_blocks(layer.k, entries, layer.k_scale[row, :used]),
                restore_blocks(layer.v, entries, layer.v_scale[row, :used]),
            )
        return result

    def unchanged(self, before: dict[int, tuple[Tensor, Tensor]], but: int) -> None:
        after = self.reads()
        for request, pools in before.items():
            if request != but and request in after:
                for old, new in zip(pools, after[request], strict=True):
                    assert torch.equal(old.nan_to_num(), new.nan_to_num()), "a write reached another request"

    @rule(
        count=st.integers(0, 7),
        cluster=st.integers(0, 3),
        noise=st.sampled_from([0.0, 0.0, 0.2, 0.6]),
        seed=st.integers(0, 1000),
        domain=st.sampled_from([0, 0, 0, 3]),
    )
    def admit(self, count: int, cluster: int, noise: float, seed: int, domain: int) -> None:
        k, v = self.draw_tokens(count, cluster, noise, seed)
        before, free = self.reads(), self.pool.free_blocks
        needed = -(-count // BLOCK)
        if needed > free:
            with pytest.raises(PoolExhaustedError, match=f"needs {needed} free") as caught:
                self.cache.admit(k, v, domain=domain)
            assert (caught.value.needed, caught.value.free) == (needed, free)
            return
        request = self.cache.admit(k, v, domain=domain)
        assert request not in self.twins
        assert request not in self.released
        self.twins[request] = Twin(domain, k.clone(), v.clone())
        assert free - self.pool.free_blocks == needed
        self.unchanged(before, request)
        # What is given away later must not be what the caller holds.
        k.fill_(7.0)

    @precondition(lambda self: self.twins)
    @rule(
        choice=st.integers(0, 50),
        count=st.integers(1, 3),
        cluster=st.integers(0, 3),
        seed=st.integers(0, 1000),
    )
    def append(self, choice: int, count: int, cluster: int, seed: int) -> None:
        request = self.pick(choice)
        twin = self.twins[request]
        k, v = self.draw_tokens(count, cluster, 0.2 if seed % 2 else 0.0, seed)
        before, entries = self.reads(), self.entries(request)
        length = len(twin.k)
        copies = length % BLOCK > 0 and self.pool.references(entries[-1]) > 1
        needed = -(-(length + count) // BLOCK) - -(-length // BLOCK) + copies
        if needed > self.pool.free_blocks:
            with pytest.raises(PoolExhaustedError, match=f"needs {needed} free"):
                self.cache.append(request, k, v)
            self.unchanged(before, -1)
            return
        self.cache.append(request, k, v)
        twin.k, twin.v = torch.cat((twin.k, k)), torch.cat((twin.v, v))
        if copies:
            assert self.entries(request)[len(entries) - 1] != entries[-1]
        self.unchanged(before, request)

    @precondition(lambda self: len(self.twins) > 1)
    @rule(count=st.integers(0, 3), more=st.integers(0, 3), seed=st.integers(0, 1000))
    def extend(self, count: int, more: int, seed: int) -> None:
        """The first and the last request grow in one call."""
        requests, counts = [self.pick(0), self.pick(-1)], [count, more]
        k, v = self.draw_tokens(count + more, seed % 4, 0.2, seed)
        before, free = self.reads(), self.pool.free_blocks
        needed, references = 0, {}
        for request, tokens in zip(requests, counts, strict=True):
            length, entries = len(self.twins[request].k), self.entries(request)
            needed += -(-(length + tokens) // BLOCK) - -(-length // BLOCK)
            if tokens and length % BLOCK:
                last = entries[-(-length // BLOCK) - 1]
                if references.setdefault(last, self.pool.references(last)) > 1:
                    references[last] -= 1
                    needed += 1
        if needed > free:
            with pytest.raises(PoolExhaustedError, match=f"needs {needed} free"):
                self.cache.extend(requests, counts, k, v)
            self.unchanged(before, -1)
            return
        self.cache.extend(requests, counts, k, v)
        assert free - self.pool.free_blocks == needed
        for request, part in zip(requests, (slice(count), slice(count, None)), strict=True):
            twin = self.twins[request]
            twin.k, twin.v = torch.cat((twin.k, k[part])), torch.cat((twin.v, v[part]))
        for request in set(self.twins) - set(requests):
            old, new = before[request], self.reads()[request]
            assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(old, new, strict=True))

    @precondition(lambda self: self.twins)
    @rule(choice=st.integers(0, 50), part=st.one_of(st.none(), st.integers(0, 50)))
    def fork(self, choice: int, part: int | None) -> None:
        request = self.pick(choice)
        free = self.pool.free_blocks
        twin = self.twins[request]
        blocks = None if part is None else part % (len(twin.k) // BLOCK + 1)
        fork = self.cache.fork(request, blocks)
        tokens = None if blocks is None else blocks * BLOCK
        self.twins[fork] = Twin(
            twin.domain,
            twin.k[:tokens].clone(),
            twin.v[:tokens].clone(),
            {b: e for b, e in twin.k_error.items() if blocks is None or b < blocks},
            {b: e for b, e in twin.v_error.items() if blocks is None or b < blocks},
            {b for b in twin.touched if blocks is None or b < blocks},
        )
        assert self.pool.free_blocks == free

    @precondition(lambda self: self.twins)
    @rule(
        choice=st.one_of(st.none(), st.integers(0, 50)),
        threshold=st.one_of(st.none(), st.sampled_from([-0.5, 0.6, 0.9, 1.0])),
        probes=st.sampled_from([0, 1, 50]),
    )
    def fuse(self, choice: int | None, threshold: float | None, probes: int) -> None:
        free = self.pool.free_blocks
        chosen = None if choice is None else [self.pick(choice)]
        result = self.cache.fuse(chosen, threshold=threshold, probes=probes, generator=generator(3))
        assert self.pool.free_blocks - free == result.reclaimed
        limit = float(torch.tensor(self.threshold if threshold is None else threshold).float())
        for one in result.absorbed:
            self.note(one, limit)
        if probes == 50:
            assert len(result.probed) == result.candidates
        for seen in result.probed:
            moved = [one for one in result.absorbed if (one.request, one.block) == (seen.request, seen.block)]
            if moved:
                first = moved[0]
                assert (seen.k_error, seen.v_error) == (first.k_error, first.v_error)
                assert seen.score == first.score
            else:
                assert seen.score <= limit or chosen is None
        if choice is None:
            assert self.cache.fuse().candidates == 0

    def note(self, one: Absorbed, limit: float) -> None:
        twin = self.twins[one.request]
        assert (one.block + 1) * BLOCK <= len(twin.k), "a partly filled block was shared"
        # Nobody is further than the call's threshold from what it reads, exact duplicates neither.
        assert one.score > limit or (one.exact and (one.k_error, one.v_error) == (0.0, 0.0))
        if (one.k_error, one.v_error) != (0.0, 0.0):
            assert one.block not in twin.touched, "absorbed twice with an error"
            twin.k_error[one.block], twin.v_error[one.block] = one.k_error, one.v_error
            twin.touched.add(one.block)

    @precondition(lambda self: self.twins)
    @rule(choice=st.integers(0, 50))
    def release(self, choice: int) -> None:
        request = self.pick(choice)
        before, free = self.reads(), self.pool.free_blocks
        freed = self.cache.release(request)
        del self.twins[request]
        self.released.add(request)
        assert self.pool.free_blocks - free == freed
        self.unchanged(before, request)
        with pytest.raises(ValueError, match=f"request = {request}: was released before"):
            self.cache.release(request)

    def entries(self, request: int) -> list[int]:
        return self.cache.layer([request]).table.entries[0].tolist()

    @invariant()
    def tables_and_reads_are_the_twins(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert self.cache.requests == tuple(self.twins)
        for request, pools in self.reads().items():
            twin = self.twins[request]
            assert self.cache.length(request) == len(twin.k)
            assert self.cache.domain(request) == twin.domain
            assert len(self.entries(request)) == -(-len(twin.k) // BLOCK)
            for restored, expected, reported in zip(
                pools, (twin.k, twin.v), (twin.k_error, twin.v_error), strict=True
            ):
                read = restored.flatten(0, 1)[: len(expected)]
                for block, (here, there) in enumerate(
                    zip(read.split(BLOCK), expected.split(BLOCK), strict=True)
                ):
                    if block in twin.touched:
                        error = float((here - there).square().sum() / there.square().sum())
                        assert error == pytest.approx(reported[block], rel=1e-4, abs=1e-9)
                    else:
                        assert torch.equal(here, there), "changed although nothing fused"

    @invariant()
    def references_are_what_the_tables_count(self) -> None:
        if not hasattr(self, "cache"):
            return
        counted = [0] * BLOCKS
        domain: dict[int, int] = {}
        for request, twin in self.twins.items():
            for block in self.entries(request):
                counted[block] += 1
                assert domain.setdefault(block, twin.domain) == twin.domain, "domains share a block"
        assert [self.pool.references(block) for block in range(BLOCKS)] == counted
        assert self.pool.free_blocks == counted.count(0), "leaked blocks"
        # Nothing may be read of a free block, nor beyond a request's end.
        for block in range(BLOCKS):
            if counted[block] == 0:
                self.pool.k[block] = self.pool.v[block] = float("nan")

    @invariant()
    def attention_of_the_unfused_is_the_twins(self) -> None:
        if not hasattr(self, "cache") or not self.twins:
            return
        requests = list(self.twins)
        fused = self.cache.layer(requests)
        twin = self.unshared(requests)
        q = torch.randn(len(requests), 2 * HEADS, DIM, generator=generator(5))
        out, lse = paged_decode_attention(q, fused, backend="cpu")
        expected_out, expected_lse = paged_decode_attention(q, twin, backend="cpu")
        for row, request in enumerate(requests):
            if not self.twins[request].touched:
                assert torch.equal(out[row], expected_out[row])
                assert torch.equal(lse[row], expected_lse[row])

    def unshared(self, requests: list[int]) -> PagedLayer:
        """The twins as a paged layer, every request in blocks of its own."""
        lengths = torch.tensor([len(self.twins[request].k) for request in requests])
        needed = -(-lengths // BLOCK)
        entries = torch.full((len(requests), int(needed.max())), UNUSED, dtype=torch.int32)
        k = torch.zeros(int(needed.sum()), BLOCK, HEADS, DIM)
        v = k.clone()
        taken = 0
        for row, request in enumerate(requests):
            count = int(needed[row])
            entries[row, :count] = torch.arange(taken, taken + count)
            for pool, held in ((k, self.twins[request].k), (v, self.twins[request].v)):
                pool[taken : taken + count].flatten(0, 1)[: len(held)] = held
            taken += count
        domains = torch.tensor([self.twins[request].domain for request in requests])
        return PagedLayer(k, v, BlockTable(entries, lengths, domains, BLOCK))


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=25)
