"""Content of new requests as the continuation of a sample: what follows what, and how often it is new."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ratedist.sim.content import Content
from ratedist.sim.popularity import PitmanYor, Succession, fit_pitman_yor, fit_succession

__all__ = ["ObservedContent", "PrefixTreeContent"]

IntArray = NDArray[np.int64]

_START = -1
# Two contents decide better than one what comes next: one alone may occur in several texts.
_Context = tuple[int, int]
_BEGIN: _Context = (_START, _START)
_ContextT = TypeVar("_ContextT", bound=Hashable)
# A context met so often is met often: a shared prefix is met by every request, a chunk by few.
_OFTEN = 4
# A new number is never one of the sample's.
_FRESH = 1 << 40


@dataclass(frozen=True)
class ObservedContent:
    """Content of the blocks of a sample, request by request, in the order of their positions.

    Attributes:
        exact: per request, (blocks,) int64; blocks with one number are byte-equal.
        groups: per request, (blocks, levels) int64; groups of similar blocks, from coarse to fine.
        positions: per request, (blocks,) int64.
    """

    exact: list[IntArray]
    groups: list[IntArray]
    positions: list[IntArray]


class _Follow(Generic[_ContextT]):
    """Which successors were seen after a context, and how often."""

    def __init__(self) -> None:
        self.after: dict[_ContextT, dict[int, int]] = {}

    def add(self, context: _ContextT, successor: int) -> bool:
        """Count one; True where this successor is new to the context."""
        seen = self.after.setdefault(context, {})
        seen[successor] = seen.get(successor, 0) + 1
        return seen[successor] == 1

    def partitions(
        self, *, only: _ContextT | None = None, without: _ContextT | None = None
    ) -> list[list[int]]:
        """Successors' counts of every context, or of one, or of all but one."""
        return [
            list(seen.values())
            for context, seen in self.after.items()
            if (only is None or context == only) and (without is None or context != without)
        ]


@dataclass(frozen=True)
class PrefixTreeContent:
    """New requests of the workload that a sample came from.

    Block by block:

    1. Which content? What followed the previous two blocks' contents before, or the previous one's. Where a
       request turns to something else: what stands at this position in others, or near it, or something
       new. After content that was hardly seen before, the length of the stretch so far decides whether it
       goes on; the start of a request has chances of its own.
    2. The same bytes? Only where the block before is, byte for byte, one that this content followed before:
    causal
       models give equal bytes exactly while everything before is equal.
    3. Else, how close a version of the content, level by level?
    All chances are those of Pitman-Yor processes fitted to the sample's counts. What is drawn joins the
    counts, so contents that are new in one request can return in later ones.

    Attributes:
        observed: the sample.
        key_levels: mean correlation of key residuals of blocks that share the groups down to each level.
        value_levels: the same of values.
    """

    observed: ObservedContent
    key_levels: tuple[float, ...]
    value_levels: tuple[float, ...]

    @property
    def shares(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Shares of each level and of the block's own part, for keys and for values."""
        keys, values = (
            tuple(np.diff([0.0, *level, 1.0]).tolist()) for level in (self.key_levels, self.value_levels)
        )
        return keys, values

    def draw(self, full_blocks: Sequence[int], seed: int) -> list[Content]:
        """See ``ContentProcess.draw``."""
        state = _State(self.observed)
        rng = np.random.default_rng([seed, 0xC0])
        return [state.request(blocks, rng) for blocks in full_blocks]


class _Followers:
    """Laws of what follows a context: contexts met often and rarely are not of one kind."""

    def __init__(self, partitions: list[list[int]]) -> None:
        self._all = fit_succession(partitions)
        rare = [sizes for sizes in partitions if 1 < sum(sizes) < _OFTEN]
        self._rare = fit_succession(rare) if rare else self._all

    def of(self, draws: int) -> Succession:
        """The law for a context met so often."""
        return self._rare if draws < _OFTEN else self._all


class _State:
    """Counts of the sample, which grow with every request drawn."""

    def __init__(self, observed: ObservedContent) -> None:
        self.levels = observed.groups[0].shape[1]
        # Successors of two contents and of one; contents at a position; blocks of a content after
        # a block.
        self.after_two: _Follow[_Context] = _Follow()
        self.after_one: _Follow[int] = _Follow()
        self.at: _Follow[int] = _Follow()
        self.turned_at: _Follow[int] = _Follow()
        self.exact: _Follow[tuple[int, int]] = _Follow()
        # Contents that were turned to, with the number of positions at which they were.
        self.library: dict[int, int] = {}
        # Children of a group: of level l + 1 within level l; the last level's children are exact blocks.
        self.within: list[_Follow[tuple[int, int]]] = [_Follow() for _ in range(self.levels)]
        self.rows: dict[int, tuple[IntArray, int]] = {}
        self.fresh = _FRESH
        contents = [groups[:, 0].tolist() for groups in observed.groups]
        turns = _turns(contents)
        # By blocks since the last turn: [went on, turned].
        self.by_age: dict[int, list[int]] = {}
        for request, exact in enumerate(observed.exact):
            previous, context, age = _START, _BEGIN, 0
            homes = observed.positions[request].tolist()
            for position, block in enumerate(exact.tolist()):
                row, turn = observed.groups[request][position], turns[request][position]
                if position:
                    self.by_age.setdefault(age, [0, 0])[turn] += 1
                self._record(previous, context, block, row, homes[position], position, turn)
                previous, context, age = block, (context[1], int(row[0])), 1 if turn else age + 1
        self.starts = fit_succession(self.after_two.partitions(only=_BEGIN))
        self.follows_two = _Followers(self.after_two.partitions(without=_BEGIN))
        self.follows_one = _Followers(self.after_one.partitions(without=_START))
        self.stands = fit_succession(self.at.partitions())
        self.turns = fit_pitman_yor([list(self.library.values())])
        self.repeats = fit_succession(self.exact.partitions())
        self.versions = [fit_pitman_yor(follow.partitions()) for follow in self.within]

    def _record(
        self,
        previous: int,
        context: _Context,
        block: int,
        row: IntArray,
        home: int,
        position: int,
        turn: bool,
    ) -> None:
        coarse = int(row[0])
        self.after_two.add(context, coarse)
        # For the library a content counts once per position and context that it was turned to from.
        fresh = self.after_one.add(context[1], coarse)
        self.at.add(position, coarse)
        if fresh and turn and self.turned_at.add(position, coarse):
            self.library[coarse] = self.library.get(coarse, 0) + 1
        if self.exact.add((previous, coarse), block):
            path = [*row.tolist(), block]
            for level in range(self.levels):
                self.within[level].add((level, path[level]), path[level + 1])
        self.rows.setdefault(block, (row, home))

    def request(self, blocks: int, rng: np.random.Generator) -> Content:
        """Draw one request and count it."""
        nodes = np.empty((blocks, self.levels + 1), dtype=np.int64)
        homes = np.empty(blocks, dtype=np.int64)
        previous, context, age = _START, _BEGIN, 0
        for position in range(blocks):
            coarse, turn = self._content(context, position, age, rng)
            seen = None if coarse is None else self.exact.after.get((previous, coarse))
            block = _again(seen, self.repeats, rng)
            if block is None:
                block, row = self._refine(coarse, rng)
                home = position
            else:
                row, home = self.rows[block]
            self._record(previous, context, block, row, home, position, turn)
            nodes[position, :-1], nodes[position, -1] = row, block
            homes[position] = self.rows[block][1]
            previous, context, age = block, (context[1], int(row[0])), 1 if turn else age + 1
        return Content(nodes, homes)

    def _content(
        self, context: _Context, position: int, age: int, rng: np.random.Generator
    ) -> tuple[int | None, bool]:
        """The next block's content (None: a new one), and whether the request turned to it."""
        seen = self.after_two.after.get(context)
        if context == _BEGIN:
            again, turn = _again(seen, self.starts, rng), True
        else:
            followers = self.follows_two
            if seen is None or sum(seen.values()) == 1:
                seen, followers = self.after_one.after.get(context[1]), self.follows_one
            if seen is None:
                # Nothing is known of this content: how long stretches last decides.
                if rng.random() >= self._turning(age):
                    return None, False
                again, turn = None, True
            else:
                draws = sum(seen.values())
                law = followers.of(draws)
                new = law.new(list(seen.values()))
                if draws == 1:
                    # Little is known: how long stretches last counts too, as further evidence.
                    new = _with_odds(new, self._turning(age), self._turning(None))
                again = None if rng.random() < new else _pick(seen, rng, law.law)
                turn = again is None or len(seen) > 1
        if again is not None:
            return again, turn
        gone = dict(seen or {})
        wider = {key: n for key, n in self.after_one.after.get(context[1], {}).items() if key not in gone}
        for choices, other in ((wider, self.follows_one), (self.at.after.get(position, {}), self.stands)):
            left = {key: n for key, n in choices.items() if key not in gone}
            law = other.of(sum(left.values())) if isinstance(other, _Followers) else other
            chosen = _again(left, law, rng)
            if chosen is not None:
                return chosen, True
            gone |= left
        chance = self.turns.new(list(self.library.values()))
        near = {key: weight for key, weight in self._near(position).items() if key not in gone}
        if not near or rng.random() < chance:
            return None, True
        return _pick(near, rng), True

    def _near(self, position: int) -> dict[int, float]:
        """Contents that were turned to, weighted by how near to this position."""
        weights: dict[int, float] = {}
        for other, counts in self.turned_at.after.items():
            weight = 1 / (1 + abs(position - other)) ** 2
            for content, count in counts.items():
                weights[content] = weights.get(content, 0.0) + weight * count
        return weights

    def _turning(self, age: int | None) -> float:
        """Chance to turn after a stretch of ``age`` blocks; of any length where None."""
        reach = 0
        while True:
            near = [n for a, n in self.by_age.items() if age is None or abs(a - age) <= reach]
            went_on, turned = (sum(counts[i] for counts in near) for i in (0, 1))
            # Stretches of this length, or of about it where none was seen.
            if went_on + turned > 0 or not self.by_age:
                # Jeffreys' prior is too wide for chances that are nearly always 0 or 1.
                return (turned + 0.05) / (went_on + turned + 0.1)
            reach += 1

    def _refine(self, node: int | None, rng: np.random.Generator) -> tuple[int, IntArray]:
        """A block of this content, and its groups."""
        row = np.empty(self.levels, dtype=np.int64)
        for level in range(self.levels):
            if node is None:
                row[level] = self._number()
                continue
            row[level] = node
            children = self.within[level].after.get((level, node), {})
            law = self.versions[level]
            if not children or rng.random() < law.new(list(children.values())):
                node = None
            else:
                node = _pick(children, rng, law)
        return (self._number() if node is None else node), row

    def _number(self) -> int:
        self.fresh += 1
        return self.fresh


def _with_odds(chance: float, evidence: float, usual: float) -> float:
    """A chance whose odds are multiplied by how much the evidence's odds exceed the usual ones."""
    ratio = evidence / (1 - evidence) * (1 - usual) / usual
    return chance * ratio / (chance * ratio + 1 - chance)


def _turns(contents: list[list[int]]) -> list[list[bool]]:
    """Whether each block's content is turned to, rather than what always follows the content before it."""
    one: _Follow[int] = _Follow()
    two: _Follow[_Context] = _Follow()
    before: dict[int, set[int]] = {}
    walks = []
    for request in contents:
        padded = [_START, _START, *request]
        walks.append(list(zip(padded, padded[1:], request, strict=False)))
        for second, last, this in walks[-1]:
            two.add((second, last), this)
            one.add(last, this)
            before.setdefault(this, set()).add(last)

    def turned(second: int, last: int, this: int) -> bool:
        if last == _START or len(two.after[second, last]) > 1:
            return True
        # Several contents lead here: a turn, unless the last one was seen to lead only here.
        sure = len(one.after[last]) == 1 and one.after[last][this] > 1
        return len(before[this]) > 1 and not sure

    return [[turned(*step) for step in walk] for walk in walks]


def _again(seen: dict[int, int] | None, law: Succession, rng: np.random.Generator) -> int | None:
    """One of the successors seen before, None for another."""
    if not seen or rng.random() < law.new(list(seen.values())):
        return None
    return _pick(seen, rng, law.law)


def _pick(counts: Mapping[int, float], rng: np.random.Generator, law: PitmanYor | None = None) -> int:
    """One of the keys, by the law's weights of their counts or by the counts themselves."""
    values = list(counts.values())
    weights = np.array(values, dtype=np.float64) if law is None else law.weights(values)
    steps = np.cumsum(np.maximum(weights, 1e-12))
    at = int(np.searchsorted(steps, rng.random() * steps[-1], side="right"))
    return list(counts)[min(at, len(values) - 1)]
