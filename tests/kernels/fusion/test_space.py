"""Blocks as they are matched: copies without positions and means, and the means, against float64 oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import generator, make_layer
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels._launch_triton import Specialisation
from ratedist.kernels.fusion import _match_cpu, _match_triton, _space_triton
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.fusion.matching import Centring, Turns
from ratedist.kernels.rotary import STYLES, Rotary

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MATCHERS = {"cpu": _match_cpu, "triton": _match_triton}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN."""
    allocate: Callable[..., Tensor] = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def pool_of(blocks: int, shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """(blocks, *shape), NaN in block 0 and in every second one: views of a tensor twice as long."""
    both = torch.randn((blocks, 2, *shape), generator=generator(seed)).to(dtype)
    both[:, 1] = float("nan")
    both[0] = float("nan")
    return both[:, 0]


def oracle(blocks: Tensor, rotary: Rotary | None, tokens: Tensor) -> Tensor:
    """Float64: pairs of channels as complex numbers, turned by exp(i · tokens · frequency)."""
    turned = blocks.double().clone()
    if rotary is None:
        return turned
    half = rotary.rotary_dim // 2
    for i, frequency in enumerate(rotary.inverse_frequencies.double().tolist()):
        left, right = (i, i + half) if rotary.style == "half" else (2 * i, 2 * i + 1)
        pair = torch.complex(turned[..., left], turned[..., right])
        pair *= torch.polar(torch.ones(len(blocks)).double(), frequency * tokens.double())[:, None, None]
        turned[..., left], turned[..., right] = pair.real, pair.imag
    return turned


def held(
    matcher: Any,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    rotary: Rotary | None,
    chosen: int,
    groups: int,
    seed: int,
) -> None:
    """Copies and means of shuffled, repeated blocks are those of the oracle."""
    random = generator(seed)
    pool = pool_of(9, shape, dtype, seed)
    ids = torch.randint(1, 9, (chosen,), generator=random)
    tokens = torch.randint(-3000, 3000, (chosen,), generator=random) * torch.randint(
        2, (chosen,), generator=random
    )
    # None is empty, and they do not come in order.
    group = torch.cat((torch.arange(groups), torch.randint(groups, (chosen - groups,), generator=random)))
    group = group[torch.randperm(chosen, generator=random)]
    turns = None if rotary is None else Turns(rotary, tokens)
    turned = oracle(pool[ids], rotary, tokens)

    plain = matcher.matched_blocks(pool, ids, turns, None)
    assert (plain.dtype, plain.shape) == (torch.float32, (chosen, *shape))
    assert_close(plain, turned, torch.float32)
    still = torch.ones(chosen).bool() if rotary is None else tokens == 0
    assert torch.equal(plain[still], pool[ids][still].float())

    means = matcher.group_means(pool, ids, turns, group, groups)
    assert (means.dtype, means.shape) == (dtype, (groups, *shape))
    exact = torch.stack([turned[group == g].mean(0) for g in range(groups)])
    size = float(exact.abs().max())
    assert float((means.double() - exact).abs().max()) <= size * torch.finfo(dtype).eps

    stored = torch.randn((groups, *shape), generator=random).to(dtype)
    centred = matcher.matched_blocks(pool, ids, turns, Centring(stored, group))
    assert_close(centred, turned - stored[group].double(), torch.float32)


def rotaries(head_dim: int) -> list[Rotary | None]:
    """None, and both styles over all channels and over some of them only."""
    most = head_dim // 2 * 2
    dims = sorted({max(2, most // 4 * 2), most} - {0})
    return [None, *(Rotary.from_base(1e4, dim, style) for dim in dims for style in STYLES)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 1, 8), (1, 2, 24), (2, 2, 64), (3, 1, 80)], ids=str)
def test_copies_and_means(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for matcher in MATCHERS.values():
        for seed, rotary in enumerate(rotaries(shape[2])):
            held(matcher, shape, dtype, rotary, 7, 3, seed)


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 40)),
    dtype=st.sampled_from(DTYPES),
    chosen=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 999),
)
def test_any_shape(
    shape: tuple[int, int, int], dtype: torch.dtype, chosen: int, data: st.DataObject, seed: int
) -> None:
    rotary = data.draw(st.sampled_from(rotaries(shape[2])))
    groups = data.draw(st.integers(1, chosen))
    for matcher in MATCHERS.values():
        held(matcher, shape, dtype, rotary, chosen, groups, seed)


def test_the_tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of several tiles, the last of which is not full, in rows and in columns."""
    keep = Specialisation.with_constexprs
    monkeypatch.setattr(
        Specialisation, "with_constexprs", lambda self, **changes: keep(self, UNIT=changes["UNIT"])
    )
    held(_match_triton, (17, 2, 40), torch.float16, Rotary.from_base(1e4, 40), 3, 2, 0)
    held(_match_triton, (3, 3, 136), torch.bfloat16, Rotary.from_base(1e4, 64, "interleaved"), 3, 1, 1)
    held(_match_triton, (11, 2, 80), torch.float32, None, 3, 2, 2)


@pytest.mark.parametrize("splits", [2, 5])
def test_sums_of_parts_of_a_group(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    """As on a GPU with few groups; some parts are empty."""
    monkeypatch.setattr(_space_triton, "_splits", lambda *_: splits)
    held(_match_triton, (2, 1, 8), torch.float32, Rotary.from_base(1e4, 8), 11, 3, 3)


def test_nothing_chosen() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    turns = Turns(Rotary.from_base(1e4, 4), none)
    for pool in (torch.zeros(3, 2, 1, 4), torch.zeros(0, 2, 1, 4)):
        for matcher in MATCHERS.values():
            for turned in (None, turns):
                assert matcher.matched_blocks(pool, none, turned, None).shape == (0, 2, 1, 4)
                assert matcher.group_means(pool, none, turned, none, 0).shape == (0, 2, 1, 4)


def test_fusion_with_triton_runs_these_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    launch = Specialisation.launch

    def noted(self: Specialisation, grid: tuple[int, ...], **arguments: Any) -> None:
        launched.append(self.name)
        launch(self, grid, **arguments)

    monkeypatch.setattr(Specialisation, "launch", noted)
    layer = make_layer((9, 12), head_dim=8, fused=False)
    fuse(layer, threshold=0.5, backend="triton", rotary=Rotary.from_base(1e4, 8), centre="layer")
    for kernel in ("group_sums", "matched_blocks"):
        assert [name for name in launched if name.startswith(kernel)] == [
            f"{kernel}[turned 64]",
            f"{kernel}[flat]",
        ]


def test_heads_that_are_too_wide() -> None:
    pool, ids = torch.ones(2, 1, 1, 264), torch.tensor([1])
    turns = Turns(Rotary.from_base(1e4, 64), torch.tensor([5]))
    with pytest.raises(
        InputError, match="head_dim = 264: the kernels turn heads of up to 256; backend 'cpu'"
    ):
        _match_triton.matched_blocks(pool, ids, turns, None)
    assert torch.equal(_match_triton.matched_blocks(pool, ids, None, None), pool[ids])
    assert torch.equal(_match_cpu.matched_blocks(pool, ids, turns, None)[..., 64:], pool[ids][..., 64:])
