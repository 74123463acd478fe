"""Exact duplicates are found by hashing and confirmed byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from caches import generator
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES
from torch import Tensor

from ratedist.kernels.fusion import exact
from ratedist.kernels.fusion.exact import byte_classes

SHAPE = (3, 2, 4)


def classes_by_bytes(k: Tensor, v: Tensor, ids: Tensor) -> list[int]:
    """Oracle: the bytes themselves as the key."""
    first: dict[bytes, int] = {}
    found = []
    for index, physical in enumerate(ids.tolist()):
        content = b"".join(
            bytes(x[physical].contiguous().view(torch.uint8).flatten().tolist()) for x in (k, v)
        )
        found.append(first.setdefault(content, index))
    return found


@st.composite
def repetitive_pools(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Pools of few different blocks, some of which differ in one scalar; and ids in any order."""
    shape = draw(st.sampled_from([(1, 1, 1), (1, 1, 3), SHAPE]))
    blocks = draw(st.integers(1, 12))
    random = generator(draw(st.integers(0, 1000)))
    pools = []
    for kinds in (draw(st.integers(1, 3)), draw(st.integers(1, 3))):
        base = torch.randn(kinds, *shape, generator=random).to(draw(st.sampled_from(DTYPES)))
        pool = base[torch.randint(kinds, (blocks,), generator=random)]
        if draw(st.booleans()):
            pool.view(blocks, -1)[-1, -1] = -0.0
            pool.view(blocks, -1)[0, -1] = 0.0
        pools.append(pool)
    ids = torch.randperm(blocks, generator=random)
    return pools[0], pools[1], ids


def constant(pool: Tensor, ids: Tensor) -> Tensor:
    return torch.full_like(ids, 7)


def coarse(pool: Tensor, ids: Tensor) -> Tensor:
    return (pool.float().flatten(1)[ids, 0] > 0).long()


@pytest.mark.parametrize("sample", [exact._sample, constant, coarse])
@pytest.mark.parametrize("digest", [exact._hash, constant, coarse])
def test_classes_are_those_of_the_bytes_whatever_the_hash(
    monkeypatch: pytest.MonkeyPatch,
    sample: Callable[[Tensor, Tensor], Tensor],
    digest: Callable[[Tensor, Tensor], Tensor],
) -> None:
    monkeypatch.setattr(exact, "_sample", sample)
    monkeypatch.setattr(exact, "_hash", digest)

    @given(repetitive_pools())
    def run(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
        k, v, ids = drawn
        assert byte_classes(k, v, ids).tolist() == classes_by_bytes(k, v, ids)

    run()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_pool_that_is_not_contiguous(dtype: torch.dtype) -> None:
    pool = torch.randn(2, 6, 4, 3, 5, generator=generator(0)).to(dtype)
    pool[:, 4] = pool[:, 1]
    for layout in (pool, pool.transpose(2, 3), pool[..., ::2]):
        k, v = layout[0], layout[1]
        ids = torch.arange(6)
        assert byte_classes(k, v, ids).tolist() == [0, 1, 2, 3, 1, 5]


def test_hash_tells_blocks_apart_that_differ_in_one_bit() -> None:
    block = torch.randn(1, 4, 2, 8, generator=generator(1))
    bits = block.view(torch.int32).flatten()
    changed = [block]
    for position in range(bits.numel()):
        for bit in (0, 15, 31):
            other = bits.clone()
            other[position] ^= torch.tensor(1 << bit).int() if bit < 31 else torch.iinfo(torch.int32).min
            changed.append(other.view(torch.float32).view_as(block))
    pool = torch.cat(changed)
    digests = exact._hash(pool, torch.arange(len(pool)))
    assert len(digests.unique()) == len(pool)
    assert torch.equal(digests, exact._hash(pool, torch.arange(len(pool))))


def test_full_bytes_are_read_only_where_samples_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    digest = exact._hash

    def counting(pool: Tensor, ids: Tensor) -> Tensor:
        read.extend(ids.tolist())
        return digest(pool, ids)

    monkeypatch.setattr(exact, "_hash", counting)
    k = torch.randn(50, *SHAPE, generator=generator(2))
    v = torch.randn(50, *SHAPE, generator=generator(3))
    k[30], v[30] = k[11], v[11]
    assert byte_classes(k, v, torch.arange(50))[30] == 11
    assert sorted(set(read)) == [11, 30]
