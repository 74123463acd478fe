"""Incremental use: requests come, grow, fuse with what is resident, and leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import check_options, matcher_of
from ratedist.kernels.fusion.scales import member_scales
from ratedist.kernels.fusion.scoring import Part, Pools, make_scoring
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer
from ratedist.kernels.resident.content import Content, ContentIndex, digests
from ratedist.kernels.resident.pool import BlockPool
from ratedist.kernels.restore import restore_blocks
from ratedist.kernels.triton_support import choose_backend

__all__ = ["BACKENDS", "Absorbed", "Probed", "ResidentFusion", "ResidentLayer"]

BACKENDS = ("auto", "cpu", "triton")


@dataclass(frozen=True)
class Absorbed:
    """One entry of a block table that fusion turned to another block.

    Attributes:
        request: the request that reads it.
        block: logical index of the block in this request.
        representative: physical id of the block that it reads now.
        score: criterion score against the representative; 1 where the two are byte-equal.
        k_error: squared relative error of the keys as read from now on, against those before.
        v_error: the same of the values.
        exact: whether it shares because another request holds the same bytes.
    """

    request: int
    block: int
    representative: int
    score: float
    k_error: float
    v_error: float
    exact: bool


@dataclass(frozen=True)
class Probed:
    """What reading one block from its best match would do, whether that absorbed it or not.

    Attributes:
        request: the request that holds it.
        block: logical index of the block in this request.
        score: criterion score against the best match; where it is byte-equal to a block that is read already,
            the score of that one, so 1 where that was kept; −infinity where there was nobody to match.
        k_error: squared relative error of the keys that reading it from there has or would have; 0 where
            there was nobody.
        v_error: the same of the values.
    """

    request: int
    block: int
    score: float
    k_error: float
    v_error: float


@dataclass(frozen=True)
class ResidentFusion:
    """What one call of ``fuse`` did to one layer.

    Attributes:
        absorbed: every change of an entry of a block table, in the order in which they happened. An entry
            is named again, without a further error, where its representative joins one that is byte-equal.
        candidates: physical blocks that were looked at: full ones that had not been before.
        kept: candidates that are representatives now.
        reclaimed: physical blocks that became free.
        probed: of each request, the candidates that were probed.
    """

    absorbed: tuple[Absorbed, ...]
    candidates: int
    kept: int
    reclaimed: int
    probed: tuple[Probed, ...] = ()


@dataclass
class _Request:
    """The block table of one request, and its scales."""

    domain: int
    length: int = 0
    entries: list[int] = field(default_factory=list)
    k_scale: list[float] = field(default_factory=list)
    v_scale: list[float] = field(default_factory=list)


class ResidentLayer:
    """One layer's cache that requests enter and leave, fused as they come.

    Fusion is the leader variant of ``ratedist.kernels.fusion.fuse.fuse``, one request after the other: each
    full block is absorbed by its best match among the resident representatives of other requests of its
    domain, or becomes one. Admitting and fusing requests one by one therefore gives what one call of
    ``fuse`` over the whole batch gives. Byte-equal blocks of two requests share at every threshold; those
    of one request stay apart, in a fork of it too, until another request brings the same.

    A representative lives as long as a request reads it, be it another than the one that brought it.
    Nothing that is shared is written: to append to a shared block copies it first.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        threshold: float,
        criterion: str = "keys",
        scale: str = "own-norm",
        backend: str = "auto",
    ) -> None:
        """Start with no request.

        Criterion and scale are those of the cache, not of a call: every representative must have been chosen
        under the rules that later blocks meet. The threshold only decides who is absorbed, so that a call of
        ``fuse`` may change it: a member is within the threshold of the call that absorbed it.

        Args:
            pool: where the blocks lie; no one else may take from it.
            threshold: as ``ratedist.kernels.fusion.fuse.fuse``, where a call does not name another.
            criterion: as there.
            scale: as there.
            backend: "auto" (Triton on a GPU, else "cpu"), "cpu" or "triton".

        Raises:
            InputError: an argument outside what is listed, or a pool in use.
        """
        if not isinstance(pool, BlockPool):
            raise InputError("pool", type(pool).__name__, "must be a BlockPool")
        if pool.free_blocks != pool.blocks:
            raise InputError("pool", f"{pool.blocks - pool.free_blocks} blocks in use", "must be all free")
        limit = check_options(threshold, "leader", criterion, scale)
        # Rounded as ``fuse`` does it, so that a comparison means the same on every backend.
        self._limit = _rounded(limit)
        self._scale = scale
        self._matcher = matcher_of(choose_backend(backend, pool.k.device, BACKENDS))
        self._pool = pool
        self._requests: dict[int, _Request] = {}
        self._next = 0
        # Physical id → request that brought it, by domain, in the order in which they became one.
        self._representatives: dict[int, dict[int, int]] = {}
        self._index = ContentIndex()
        norms = torch.zeros(2, pool.blocks, dtype=torch.float32, device=pool.k.device)
        self._k_norm, self._v_norm = norms[0], norms[1]
        self._scoring = make_scoring(
            criterion, [Pools(Part(pool.k, self._k_norm), Part(pool.v, self._v_norm))]
        )

    @property
    def pool(self) -> BlockPool:
        """The physical blocks."""
        return self._pool

    @property
    def requests(self) -> tuple[int, ...]:
        """The resident requests, in order of admission."""
        return tuple(self._requests)

    @property
    def admitted(self) -> int:
        """How many requests there have been, released ones and forks included."""
        return self._next

    def length(self, request: int) -> int:
        """Tokens that are held of a request."""
        return self._find(request).length

    def domain(self, request: int) -> int:
        """Domain of a request."""
        return self._find(request).domain

    def blocks_for(self, tokens: int, request: int | None = None) -> int:
        """Free blocks that ``append`` of so many tokens takes, or ``admit`` where no request is given."""
        state = _Request(0) if request is None else self._find(request)
        size = self._pool.block_size
        grown = -(-(state.length + tokens) // size) - len(state.entries)
        return grown + int(tokens > 0 and self._must_copy(state))

    def blocks_to_extend(self, requests: Sequence[int], tokens: Sequence[int]) -> int:
        """Free blocks that ``extend`` of these requests by so many tokens takes.

        It may be less than ``blocks_for`` of each in sum: of all requests that read one partly filled block,
        the last to be extended keeps it.
        """
        size = self._pool.block_size
        grown = 0
        copied: dict[int, int] = {}
        for request, count in zip(requests, tokens, strict=True):
            state = self._find(request)
            grown += -(-(state.length + count) // size) - len(state.entries)
            if count and self._must_copy(state):
                copied[state.entries[-1]] = copied.get(state.entries[-1], 0) + 1
        return grown + sum(
            min(readers, self._pool.references(block) - 1) for block, readers in copied.items()
        )

    def admit(self, k: Tensor, v: Tensor, *, domain: int = 0) -> int:
        """Take in the prefilled keys and values of a new request.

        Args:
            k: (tokens, kv_heads, head_dim) in the pool's dtype and on its device; no tokens are fine.
            v: as ``k``.
            domain: requests of different domains never share.

        Returns:
            The request's number, by which the other methods know it. Numbers are never used again.

        Raises:
            InputError: keys or values of another shape, dtype or device, or that hold NaN or infinity;
                a domain that is no integer.
            PoolExhaustedError: not enough blocks are free.
        """
        if isinstance(domain, bool) or not isinstance(domain, int):
            raise InputError("domain", domain, "must be an integer")
        self.check_tokens(k, v)
        self._pool.require(self.blocks_for(k.shape[0]), "k", tuple(k.shape))
        request = self._next
        self._next += 1
        self._requests[request] = _Request(domain)
        self._write([self._requests[request]], [k.shape[0]], k, v)
        return request

    def append(self, request: int, k: Tensor, v: Tensor) -> None:
        """Write further tokens of one request; see ``extend``."""
        self.extend([request], [k.shape[0] if isinstance(k, Tensor) else 0], k, v)

    def extend(self, requests: Sequence[int], tokens: Sequence[int], k: Tensor, v: Tensor) -> None:
        """Write further tokens of several requests; a shared block that they would fall into is copied first.

        Args:
            requests: different numbers.
            tokens: how many each of them gets; in decoding, one.
            k: (sum of ``tokens``, kv_heads, head_dim): those of the first request, then those of the next …
            v: as ``k``.

        Raises:
            InputError: an unknown or released request, or one that is named twice; numbers of tokens that do
                not fit ``k``; keys or values as for ``admit``. Nothing was changed.
            PoolExhaustedError: not enough blocks are free. Nothing was changed.
        """
        states = [self._find(request) for request in requests]
        if len(set(requests)) < len(requests):
            raise InputError("requests", list(requests), "must be different")
        self.check_tokens(k, v)
        if len(tokens) != len(requests) or sum(tokens) != k.shape[0] or min(tokens, default=0) < 0:
            raise InputError(
                "tokens", list(tokens), f"must say for each request how many of the {k.shape[0]} are its own"
            )
        self._pool.require(self.blocks_to_extend(requests, tokens), "k", tuple(k.shape))
        self._write(states, tokens, k, v)

    def fork(self, request: int, blocks: int | None = None) -> int:
        """A new request that starts as this one, in its domain, and shares its blocks.

        Several samples of one prompt do this, and with ``blocks`` a request whose prompt begins alike.
        A partly filled last block is shared too, until one of the two appends to it.

        Args:
            request: its number.
            blocks: share only so many of its first blocks, which must be full; by default all.

        Returns:
            The new request's number.

        Raises:
            InputError: an unknown or released request, or more blocks than it has full ones.
        """
        state = self._find(request)
        full = state.length // self._pool.block_size
        if blocks is not None and not 0 <= blocks <= full:
            raise InputError("blocks", blocks, f"request {request} has {full} full blocks")
        length = state.length if blocks is None else blocks * self._pool.block_size
        entries = state.entries[:blocks]
        for block in entries:
            self._pool.share(block, state.domain)
        fork = self._next
        self._next += 1
        self._requests[fork] = _Request(
            state.domain, length, entries, state.k_scale[:blocks], state.v_scale[:blocks]
        )
        return fork

    def fuse(
        self,
        requests: Iterable[int] | None = None,
        *,
        threshold: float | None = None,
        probes: int = 0,
        generator: torch.Generator | None = None,
    ) -> ResidentFusion:
        """Fuse the full blocks of requests that have not been looked at before, request by request.

        A block that is byte-equal to one that was absorbed under a lower threshold, at a score that does not
        exceed this call's, does not follow it: it is matched anew, and what equals it later follows this one.

        Args:
            requests: numbers, in the order in which they are fused; by default all, in order of admission.
            threshold: for this call, within [-1, 1]; by default the cache's.
            probes: candidates of each request, drawn at random, whose best match is reported whatever the
                threshold; at most all.
            generator: source of the draws, on the CPU; by default torch's own.

        Raises:
            InputError: an unknown or released request, a block whose norm float32 cannot hold, or another
                argument outside what is listed. Nothing was changed.
        """
        chosen = list(self._requests) if requests is None else list(requests)
        limit = self._limit
        if threshold is not None:
            limit = _rounded(check_options(threshold, "leader", "keys", self._scale))
        if isinstance(probes, bool) or not isinstance(probes, int) or probes < 0:
            raise InputError("probes", probes, "must be an integer of at least 0")
        self.measure(chosen)
        before = self._pool.free_blocks
        absorbed: list[Absorbed] = []
        probed: list[Probed] = []
        candidates = kept = 0
        for request in chosen:
            state = self._requests[request]
            blocks = self._candidates(state)
            drawn = torch.randperm(len(blocks), generator=generator)[:probes].tolist() if probes else []
            stayed = self._fuse_request(
                request, state, blocks, limit, absorbed, {blocks[i] for i in drawn}, probed
            )
            candidates += len(blocks)
            kept += stayed
        reclaimed = self._pool.free_blocks - before
        return ResidentFusion(tuple(absorbed), candidates, kept, reclaimed, tuple(probed))

    def release(self, request: int) -> int:
        """Let a request go; blocks that no other request reads are free again.

        Returns:
            How many blocks became free.

        Raises:
            InputError: an unknown request, or one that was released before.
        """
        state = self._find(request)
        del self._requests[request]
        return sum(self._drop(block, state.domain) for block in state.entries)

    def layer(self, requests: Sequence[int] | None = None) -> FusedLayer:
        """The cache as attention reads it: the pool itself, not a copy, with a table made for the call.

        Args:
            requests: numbers, one per row of the table; by default all, in order of admission.

        Raises:
            InputError: an unknown or released request.
        """
        rows = [self._find(request) for request in (self._requests if requests is None else requests)]
        width = max((len(row.entries) for row in rows), default=0)
        device = self._pool.k.device

        def padded(lists: list[list[int]] | list[list[float]], fill: float, dtype: torch.dtype) -> Tensor:
            values = [[*row, *[fill] * (width - len(row))] for row in lists]
            return torch.tensor(values, dtype=dtype, device=device).view(len(rows), width)

        table = BlockTable(
            entries=padded([row.entries for row in rows], UNUSED, torch.int32),
            lengths=torch.tensor([row.length for row in rows], dtype=torch.int64, device=device),
            domains=torch.tensor([row.domain for row in rows], dtype=torch.int64, device=device),
            block_size=self._pool.block_size,
        )
        return FusedLayer(
            k=self._pool.k,
            v=self._pool.v,
            table=table,
            k_scale=padded([row.k_scale for row in rows], 1.0, torch.float32),
            v_scale=padded([row.v_scale for row in rows], 1.0, torch.float32),
        )

    def measure(self, requests: Iterable[int]) -> None:
        """Take the norms that ``fuse`` of these requests needs; raises InputError where ``fuse`` would."""
        for request in requests:
            self._measure_request(request, self._find(request))

    def check_tokens(self, k: Tensor, v: Tensor) -> None:
        """Raise InputError unless ``admit`` and ``append`` can take these keys and values."""
        self._pool.check_tokens(k, v)
        for name, tensor in (("k", k), ("v", v)):
            bad = torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1)).flatten()
            if len(bad):
                token = tensor[bad[0]].flatten()
                raise InputError(
                    name,
                    float(token[~torch.isfinite(token)][0]),
                    f"token {int(bad[0])} holds NaN or infinity; every value must be finite",
                )

    def _find(self, request: int) -> _Request:
        state = self._requests.get(request)
        if state is None:
            released = isinstance(request, int) and 0 <= request < self._next
            raise InputError(
                "request",
                request,
                "was released before" if released else "is unknown; admit returns the numbers of requests",
            )
        return state

    def _must_copy(self, state: _Request) -> bool:
        """Whether the next token falls into a block that another request reads as well."""
        partial = state.length % self._pool.block_size > 0
        return partial and self._pool.references(state.entries[-1]) > 1

    def _write(self, states: Sequence[_Request], tokens: Sequence[int], k: Tensor, v: Tensor) -> None:
        size = self._pool.block_size
        blocks: list[int] = []
        slots: list[int] = []
        for state, count in zip(states, tokens, strict=True):
            if count and self._must_copy(state):
                shared = state.entries[-1]
                # A partly filled block was never fused, so its scales are 1.
                state.entries[-1] = self._pool.take(state.domain)
                self._pool.copy(shared, state.entries[-1])
                self._pool.drop(shared)
            for position in range(state.length, state.length + count):
                if position % size == 0:
                    state.entries.append(self._pool.take(state.domain))
                    state.k_scale.append(1.0)
                    state.v_scale.append(1.0)
                blocks.append(state.entries[-1])
                slots.append(position % size)
            state.length += count
        self._pool.write_tokens(blocks, slots, k, v)

    def _candidates(self, state: _Request) -> list[int]:
        """Physical ids of the full blocks that no fusion has looked at."""
        known = self._representatives.get(state.domain, {})
        full = state.length // self._pool.block_size
        return [block for block in state.entries[:full] if block not in known]

    def _measure_request(self, request: int, state: _Request) -> None:
        blocks = self._candidates(state)
        ids = torch.tensor(blocks, dtype=torch.int64, device=self._pool.k.device)
        for name, pool, norms in (("k", self._pool.k, self._k_norm), ("v", self._pool.v, self._v_norm)):
            norm = self._matcher.block_norms(self._matcher.gather_blocks(pool, ids))
            bad = torch.nonzero(~torch.isfinite(norm)).flatten()
            if len(bad):
                block = blocks[int(bad[0])]
                raise InputError(
                    name,
                    float(pool[block].double().norm()),
                    f"request {request}, block {state.entries.index(block)} has a norm whose square float32 "
                    "cannot hold",
                )
            norms[ids] = norm

    def _fuse_request(
        self,
        request: int,
        state: _Request,
        blocks: list[int],
        limit: float,
        absorbed: list[Absorbed],
        drawn: set[int],
        probed: list[Probed],
    ) -> int:
        """Fuse a request's candidates; adds to ``absorbed``, and those drawn to ``probed``; how many stay."""
        if not blocks:
            return 0
        known = self._representatives.setdefault(state.domain, {})
        named = list(zip(blocks, digests(self._pool.k, self._pool.v, blocks), strict=True))
        left: list[tuple[int, bytes]] = []
        for block, digest in named:
            content = self._index.find(state.domain, digest)
            if content is None or not content.shared_with(request):
                left.append((block, digest))
                continue
            if not content.kept and content.score <= limit:
                self._index.displace(state.domain, digest)
                left.append((block, digest))
                continue
            index = state.entries.index(block)
            same = Content(content.request, content.representative)
            for twin in self._index.join(content):
                self._move(twin, same, True, content.request, state.domain, absorbed)
            self._move(block, content, True, request, state.domain, absorbed)
            if block in drawn:
                last = absorbed[-1]
                probed.append(Probed(request, index, content.score, last.k_error, last.v_error))

        others = [block for block, owner in known.items() if owner != request]
        device = self._pool.k.device
        rows = torch.tensor([block for block, _ in left], dtype=torch.int64, device=device)
        cols = torch.tensor(others, dtype=torch.int64, device=device)
        score, position = self._matcher.best_match(self._scoring, rows, cols)
        if drawn:
            nearest = [int(cols[p]) if p >= 0 else None for p in position.tolist()]
            for (block, _), match, best in zip(left, nearest, score.tolist(), strict=True):
                if block in drawn:
                    errors = (0.0, 0.0) if match is None else self._errors_from(block, match)
                    probed.append(Probed(request, state.entries.index(block), best, *errors))
        taken = torch.nonzero(score > limit).flatten()
        members, leaders = rows[taken], cols[position[taken]]
        k_scale = member_scales(self._pool.k, self._k_norm, members, leaders, self._scale)
        v_scale = member_scales(self._pool.v, self._v_norm, members, leaders, self._scale)
        decided = zip(
            members.tolist(),
            leaders.tolist(),
            k_scale.tolist(),
            v_scale.tolist(),
            score[taken].tolist(),
            strict=True,
        )
        found = {
            block: Content(request, leader, k_factor, v_factor, similarity, kept=False)
            for block, leader, k_factor, v_factor, similarity in decided
        }
        kept = 0
        for block, digest in left:
            content = found.get(block, Content(request, block))
            self._index.add(state.domain, digest, content)
            if content.kept:
                known[block] = request
                kept += 1
            else:
                self._move(block, content, False, request, state.domain, absorbed)
        return kept

    def _errors_from(self, block: int, match: int) -> tuple[float, float]:
        """Squared relative errors of keys and of values if ``block`` were read from ``match``."""
        device = self._pool.k.device
        member, leader = torch.tensor([block], device=device), torch.tensor([match], device=device)
        k, v = (
            _error(pool, block, match, float(member_scales(pool, norm, member, leader, self._scale)))
            for pool, norm in ((self._pool.k, self._k_norm), (self._pool.v, self._v_norm))
        )
        return k, v

    def _move(
        self, block: int, content: Content, exact: bool, reader: int, domain: int, absorbed: list[Absorbed]
    ) -> None:
        """Turn every entry that names ``block`` to the representative of ``content``, and report it.

        Args:
            block: physical id of the block that is given up.
            content: where its content is read from now on.
            exact: whether the two are byte-equal.
            reader: a request that is likely to be the only one to read it, looked at first.
            domain: the domain of the block and its readers.
            absorbed: where to report.
        """
        target = content.representative
        k_error = _error(self._pool.k, block, target, content.k_scale)
        v_error = _error(self._pool.v, block, target, content.v_scale)
        for request in (reader, *self._requests):
            if self._pool.references(block) == 0:
                break
            state = self._requests.get(request)
            if state is None or state.domain != domain:
                continue
            for index, entry in enumerate(state.entries):
                if entry != block:
                    continue
                state.entries[index] = target
                # Other than 1 only where a block that others had absorbed moves on; then scales multiply.
                state.k_scale[index] *= content.k_scale
                state.v_scale[index] *= content.v_scale
                self._pool.share(target, domain)
                self._drop(block, domain)
                absorbed.append(Absorbed(request, index, target, content.score, k_error, v_error, exact))

    def _drop(self, block: int, domain: int) -> bool:
        freed = self._pool.drop(block)
        if freed and self._representatives.get(domain, {}).pop(block, None) is not None:
            self._index.forget(block)
            if not self._representatives[domain]:
                del self._representatives[domain]
        return freed


def _rounded(threshold: float) -> float:
    """The threshold as float32 holds it, as the scores are."""
    return float(torch.tensor(threshold, dtype=torch.float32))


def _error(pool: Tensor, block: int, representative: int, scale: float) -> float:
    """Squared relative error of reading ``block`` as its scaled representative."""
    device = pool.device
    restored = restore_blocks(
        pool, torch.tensor([representative], device=device), torch.tensor([scale], device=device)
    )
    expected = pool[block].float()
    difference = float((restored[0] - expected).double().square().sum())
    if difference == 0:
        return 0.0
    power = float(expected.double().square().sum())
    return difference / power if power else float("inf")
