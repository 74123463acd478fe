"""The Triton matcher, interpreted, against float64 oracles: norms, best matches, copies of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import generator
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_cases import lowest_labels_are_right
from strategies import score_oracle
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels._launch_triton import Specialisation
from ratedist.kernels.fusion import _match_cpu, _match_triton
from ratedist.kernels.fusion.scoring import CRITERIA, Part, Pools, Scoring, make_scoring

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN, or as a position that does not exist."""
    allocate: Callable[..., Tensor] = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -77)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret with the tiles that are compiled, instead of the large ones."""
    keep = Specialisation.with_constexprs

    def without_tiles(self: Any, **changes: Any) -> Any:
        return keep(self, **{name: changes[name] for name in ("UNIT", "UPCAST") if name in changes})

    monkeypatch.setattr(Specialisation, "with_constexprs", without_tiles)


def pools(
    blocks: int, shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Keys and values of (blocks, *shape); block 0, which padding tends to read, is NaN and unused."""
    random = generator(seed)
    common = torch.randn(shape, generator=random)
    pair = []
    for pull in (1.0, 0.3):
        pool = torch.randn((blocks, *shape), generator=random) + pull * common
        pool *= torch.rand((blocks, 1, 1, 1), generator=random) + 0.5
        pool[0] = float("nan")
        pair.append(pool.to(dtype))
    return pair[0], pair[1]


def cosines(pool: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """(rows, cols) float64; 0 where a norm is 0."""
    directions = []
    for ids in (rows, cols):
        flat = pool[ids].flatten(1).double()
        norm = flat.norm(dim=1, keepdim=True)
        directions.append(torch.where(norm > 0, flat / norm, 0.0))
    return directions[0] @ directions[1].T


def match(
    k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, criterion: str, matcher: Any = _match_triton
) -> tuple[Tensor, Tensor]:
    return matcher.best_match(scoring(k, v, criterion, matcher), rows, cols)


def scoring(k: Tensor, v: Tensor, criterion: str, matcher: Any = _match_triton) -> Scoring:
    return make_scoring(criterion, [Pools(Part(k, matcher.block_norms(k)), Part(v, matcher.block_norms(v)))])


def check(k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, criterion: str) -> None:
    """The score is right, and the position attains it; it is the lowest where scores are equal in float64."""
    score, position = match(k, v, rows, cols, criterion)
    assert (score.dtype, position.dtype) == (torch.float32, torch.int64)
    expected = score_oracle(k, v, rows, cols, criterion)
    best = expected.amax(dim=1)
    torch.testing.assert_close(score.double(), best, rtol=2e-6, atol=2e-6)
    attained = expected.gather(1, position[:, None])[:, 0]
    torch.testing.assert_close(attained, best, rtol=2e-6, atol=2e-6)
    rivals = (expected > best[:, None] - 1e-5).sum(dim=1) == 1
    assert torch.equal(position[rivals], expected.argmax(dim=1)[rivals])


SHAPES = {"round": (16, 3, 64), "odd": (3, 1, 7), "one": (1, 1, 1)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_block_norms(shape: str, dtype: torch.dtype) -> None:
    k, _ = pools(37, SHAPES[shape], dtype)
    norm = _match_triton.block_norms(k)
    assert bool(norm[0].isnan())
    assert_close(norm[1:], k[1:].flatten(1).double().norm(dim=1), torch.float32)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["round", "odd"])
def test_best_match(shape: str, dtype: torch.dtype, criterion: str) -> None:
    """More rows and columns than a tile, neither a multiple of one; ids shuffled and repeated."""
    k, v = pools(200, SHAPES[shape], dtype)
    rows = torch.randint(1, 200, (131,), generator=generator(1))
    cols = torch.randint(1, 200, (150,), generator=generator(2))
    check(k, v, rows, cols, criterion)


@pytest.mark.usefixtures("gpu_tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tiles_of_a_gpu(dtype: torch.dtype) -> None:
    k, v = pools(160, (5, 2, 16), dtype, seed=3)
    ids = torch.randperm(159, generator=generator(4)) + 1
    for criterion in CRITERIA[1:]:
        check(k, v, ids[:70], ids[10:], criterion)
    # Blocks that take several tiles of scalars, and a last one that is not full.
    large, _ = pools(11, (16, 2, 40), dtype, seed=14)
    norm = _match_triton.block_norms(large)
    assert_close(norm[1:], large[1:].flatten(1).double().norm(dim=1), torch.float32)
    ids = torch.tensor([4, 10, 1, 1, 7, 2])
    assert torch.equal(_match_triton.gather_blocks(large, ids), large[ids])


@pytest.mark.parametrize("splits", [2, 3])
def test_splits_over_the_columns(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    """As on a GPU with few rows: each program takes some of the columns, and the results are joined."""
    monkeypatch.setattr(_match_triton, "_splits", lambda *_: splits)
    k, v = pools(300, (2, 1, 8), torch.float32, seed=5)
    cols = torch.randperm(299, generator=generator(6)) + 1
    check(k, v, torch.arange(1, 20), cols, "keys")
    # The same block at the end of each split: the first one wins.
    same = torch.full((299,), 7)
    _, position = match(k, v, torch.tensor([7, 8]), same, "keys")
    assert position.tolist() == [0, 0]


@pytest.mark.parametrize("criterion", ["keys", "both", "mean"])
def test_lowest_labels(monkeypatch: pytest.MonkeyPatch, criterion: str) -> None:
    for blocks in (0, 21, 150):
        assert lowest_labels_are_right(_match_triton, blocks, criterion, seed=blocks)
    monkeypatch.setattr(_match_triton, "_splits", lambda *_: 2)
    assert lowest_labels_are_right(_match_triton, 150, criterion, seed=1)


@settings(max_examples=10)
@given(
    rows=st.lists(st.integers(1, 9), max_size=6),
    cols=st.lists(st.integers(1, 9), max_size=6),
    seed=st.integers(0, 99),
    criterion=st.sampled_from(CRITERIA),
)
def test_agrees_with_the_cpu_path(rows: list[int], cols: list[int], seed: int, criterion: str) -> None:
    k, v = pools(10, (2, 1, 5), torch.float32, seed)
    # As integers, all products and sums are exact and so are the ties.
    k, v = (torch.nan_to_num(pool * 2).round() for pool in (k, v))
    ids = torch.tensor(rows, dtype=torch.int64), torch.tensor(cols, dtype=torch.int64)
    score, position = match(k, v, *ids, criterion)
    other_score, other_position = match(k, v, *ids, criterion, _match_cpu)
    torch.testing.assert_close(score, other_score, rtol=1e-6, atol=1e-6)
    if cols:
        table = score_oracle(k, v, *ids, criterion)
        best = table.amax(dim=1, keepdim=True)
        near = (table > best - 1e-5).sum(dim=1)
        assert torch.equal(position[near == 1], other_position[near == 1])


def test_ties_go_to_the_lowest_column() -> None:
    """Within a tile of columns and between tiles; scores that rounding puts above 1 tie with 1."""
    k, v = pools(300, (1, 1, 24), torch.float32, seed=7)
    cols = torch.randperm(299, generator=generator(8)) + 1
    rows = cols[[3, 140, 150]].clone()
    # A multiple has the same direction, and its score is 1 up to rounding.
    for source, copies in ((3, (90, 200)), (140, (141, 290)), (150, (260, 280))):
        for number, copy in enumerate(copies):
            k[cols[copy]] = k[cols[source]] * (3.0 + number)
    score, position = match(k, v, rows, cols, "keys")
    assert bool((score <= 1).all())
    torch.testing.assert_close(score, torch.ones(3), rtol=0, atol=1e-6)
    exact = [cosines(k, rows[i : i + 1], cols)[0] for i in range(3)]
    assert all(float(exact[i][position[i]]) > 1 - 1e-6 for i in range(3))
    identical = cols.clone()
    identical[[5, 77, 133, 250]] = 11
    score, position = match(k, v, torch.tensor([11]), identical, "keys")
    lowest = int((identical == 11).nonzero()[0])
    assert position.tolist() == [lowest]


def test_the_cap_applies_before_scores_are_compared() -> None:
    """(1, 1, 1)·(1, 1, 1)/3 in float32: blocks whose score rounds above 1 do not beat one that is 1."""
    random = generator(9)
    k = torch.zeros(200, 1, 1, 16)
    base = torch.randn(16, generator=random)
    # Powers of two change no bit of the score, other multiples its last one.
    k[:] = base * torch.linspace(1, 5, 200)[:, None, None, None]
    ids = torch.arange(200)
    norm = _match_triton.block_norms(k)
    raw = (k.flatten(1) @ k.flatten(1).T) * (1 / norm[:, None]) * (1 / norm[None, :])
    assert bool((raw > 1).any()), "no score above 1: the test would show nothing"
    score, position = match(k, k, ids, ids, "keys")
    assert float(score.max()) == 1.0
    first = torch.where(raw >= 1, torch.arange(200), 200).amin(dim=1)
    capped = (raw >= 1).any(dim=1)
    # The interpreter's product may round otherwise than this one in a few places.
    assert int((position[capped] != first[capped]).sum()) <= 40
    assert float(position[capped].float().mean()) < 20, "high columns won over lower ones that tie"


def test_a_block_of_norm_zero_scores_zero() -> None:
    k, v = pools(6, (1, 1, 8), torch.float32, seed=10)
    k[1] = 0
    k[2], k[3] = torch.ones(1, 8), -torch.ones(1, 8)
    score, position = match(k, v, torch.tensor([1, 2, 2]), torch.tensor([3, 1, 3]), "keys")
    # Against everything 0; and better than an opposite direction.
    assert score.tolist() == [0.0, 0.0, 0.0]
    assert position.tolist() == [0, 1, 1]
    v[4] = 0
    score, _ = match(k, v, torch.tensor([2]), torch.tensor([4]), "both")
    assert float(score[0]) <= 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_to_match(criterion: str) -> None:
    k, v = pools(4, (2, 1, 8), torch.float32)
    empty = torch.zeros(0, dtype=torch.int64)
    score, position = match(k, v, torch.tensor([1, 2]), empty, criterion)
    assert score.tolist() == [float("-inf")] * 2
    assert position.tolist() == [-1, -1]
    score, position = match(k, v, empty, torch.tensor([1]), criterion)
    assert score.shape == position.shape == (0,)
    assert _match_triton.block_norms(k[:0]).shape == (0,)


def test_values_are_not_read_for_keys() -> None:
    k, v = pools(9, (2, 1, 8), torch.float32, seed=11)
    ids = torch.arange(1, 9)
    expected = match(k, v, ids, ids.flip(0), "keys")
    v[:] = float("nan")
    for one, other in zip(match(k, v, ids, ids.flip(0), "keys"), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_gather_copies_every_bit(shape: str, dtype: torch.dtype) -> None:
    pool, _ = pools(20, SHAPES[shape], dtype)
    words = torch.int32 if dtype == torch.float32 else torch.int16
    pool[3].view(words).fill_(-3)  # a NaN with a payload
    ids = torch.tensor([3, 19, 1, 3, 0, 0, 7])
    copy = _match_triton.gather_blocks(pool, ids)
    assert (copy.dtype, copy.shape) == (dtype, (7, *SHAPES[shape]))
    assert torch.equal(copy.view(words), pool[ids].view(words))
    assert _match_triton.gather_blocks(pool, ids[:0]).shape == (0, *SHAPES[shape])


def test_blocks_that_lie_apart() -> None:
    """Keys and values interleaved in one tensor: rows of blocks with a stride of their own."""
    k, v = pools(12, (2, 1, 8), torch.float32, seed=12)
    both = torch.stack([k, v], dim=1)
    ids = torch.arange(1, 12)
    expected = match(k, v, ids, ids.flip(0), "both")
    for one, other in zip(match(both[:, 0], both[:, 1], ids, ids.flip(0), "both"), expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(_match_triton.gather_blocks(both[:, 1], ids), v[ids])


def test_offsets_beyond_32_bits() -> None:
    """A block that starts 2^32 elements into the pool; the memory between is reserved, never touched."""
    spread = torch.empty_strided((2, 2, 1, 8), (2**32, 8, 8, 1), dtype=torch.float16)
    spread[1] = torch.randn(2, 1, 8, generator=generator(13)).half()
    far = torch.tensor([1])
    norm = torch.tensor([0.0, float(spread[1].float().norm())])
    part = Part(spread, norm)
    score, _ = _match_triton.best_match(make_scoring("both", [Pools(part, part)]), far, far)
    torch.testing.assert_close(score, torch.ones(1), rtol=0, atol=1e-5)
    assert torch.equal(_match_triton.gather_blocks(spread, far)[0], spread[1])


def test_bad_input() -> None:
    k, v = pools(4, (2, 2, 8), torch.float32)
    ids = torch.tensor([1])
    norm = _match_triton.block_norms(k)
    with pytest.raises(InputError, match="criterion = 'values': must be one of keys, both"):
        scoring(k, v, "values")
    with pytest.raises(InputError, match=r"pool = 'torch.float64': must be float32, float16 or bfloat16"):
        _match_triton.block_norms(k.double())
    wrong = make_scoring("keys", [Pools(Part(k.transpose(1, 2), norm), Part(v, norm))])
    with pytest.raises(InputError, match=r"k = .*must hold the scalars of each block densely"):
        _match_triton.best_match(wrong, ids, ids)
