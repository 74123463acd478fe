"""Attention of many queries per request, with everything that models ask for, against a float64 oracle."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from caches import attention_oracle, generator, make_layer, with_reading
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.kernels.attention import _attention_triton, paged_attention, paged_decode_attention
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.quantised import Layer, quantise

BACKENDS = ("reference", "cpu", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

RAGGED = ((9, 0, 17, 150, 16), (3, 0, 17, 140, 1))
"""Lengths and queries: a chunk, none, prefill at once, more queries than one piece or tile, one."""

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 5},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.linspace(-3, 2, 6)},
    "all": {"window": 21, "softcap": 0.9, "sinks": torch.linspace(2, -3, 6).half(), "softmax_scale": -0.7},
}


def ragged(dtype: torch.dtype, **options: Any) -> tuple[torch.Tensor, FusedLayer | PagedLayer, torch.Tensor]:
    lengths, counts = RAGGED
    layer = make_layer(lengths, dtype=dtype, seed=11, **options)
    q = torch.randn(sum(counts), 6, 24, generator=generator(12)).to(dtype)
    return q, layer, torch.tensor(counts)


def check(
    q: torch.Tensor,
    layer: Layer,
    query_lengths: torch.Tensor | None,
    backends: tuple[str, ...] = BACKENDS,
    **options: Any,
) -> None:
    expected_out, expected_lse = attention_oracle(q, layer, query_lengths, **options)
    for backend in backends:
        out, lse = paged_attention(q, layer, query_lengths, backend=backend, **options)
        assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
        assert_close(out, expected_out, q.dtype, f"{backend} out")
        assert_close(lse, expected_lse, q.dtype, f"{backend} lse")


@pytest.mark.parametrize("form", FORMS)
def test_prefill_against_oracle(form: str) -> None:
    check(*ragged(torch.float32), **FORMS[form])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_prefill_in_low_precision(dtype: torch.dtype) -> None:
    check(*ragged(dtype), **FORMS["all"])


@pytest.mark.parametrize(
    ("style", "dtype"), [("half", torch.float32), ("interleaved", torch.float16), ("half", torch.bfloat16)]
)
def test_turned_and_centred_blocks(style: str, dtype: torch.dtype) -> None:
    """Reading with shifts and means as ``Reading`` says, partial rotary included, in a request or not."""
    q, layer, query_lengths = ragged(dtype)
    assert isinstance(layer, FusedLayer)
    layer = with_reading(layer, style, 20)
    assert layer.reading is not None
    # One of the requests reads its blocks as they are stored.
    plain = torch.arange(5)[:, None] == 2
    means = layer.reading.means
    assert means is not None
    assert layer.reading.shift is not None
    means = dataclasses.replace(
        means, add=means.add.masked_fill(plain, -1), subtract=means.subtract.masked_fill(plain, -1)
    )
    reading = dataclasses.replace(layer.reading, means=means, shift=layer.reading.shift.masked_fill(plain, 0))
    layer = dataclasses.replace(layer, reading=reading)
    check(q, layer, query_lengths, window=40, softcap=3.0, sinks=torch.linspace(-1, 1, 6))
    # Bit for bit what it is where nothing can be turned or centred.
    unread = dataclasses.replace(layer, reading=None)
    own = slice(3, 20)
    for backend in BACKENDS:
        with_it, without = (
            paged_attention(q, part, query_lengths, backend=backend)[0] for part in (layer, unread)
        )
        assert torch.equal(with_it[own], without[own])
        assert not torch.equal(with_it, without)


@pytest.mark.parametrize("form", ["plain", "reading", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_tiles_of_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, form: str) -> None:
    """Interpreted with the tiles that are compiled: several of tokens and of rows, with rows of no token."""
    monkeypatch.setattr(_attention_triton, "_TILES_OF_DATA", False)
    layer: Layer = make_layer((75, 0, 20), block_size=16, kv_heads=1, head_dim=72, dtype=dtype, seed=23)
    assert isinstance(layer, FusedLayer)
    if form != "plain":
        layer = with_reading(layer, "half", 48)
    if form.startswith("int"):
        layer = quantise(layer, int(form.removeprefix("int")))
    query_lengths = torch.tensor([40, 0, 2])
    q = torch.randn(42, 2, 72, generator=generator(24)).to(dtype)
    check(q, layer, query_lengths, ("triton",), window=18, softcap=4.0)


@pytest.mark.parametrize("kind", ["shifts", "means"])
def test_shifts_or_means_alone(kind: str) -> None:
    layer = make_layer((9, 0, 20), fused=True, seed=13)
    assert isinstance(layer, FusedLayer)
    layer = with_reading(layer, "half", 24)
    assert layer.reading is not None
    changes = {"means": None} if kind == "shifts" else {"shift": None, "rotary": None}
    layer = dataclasses.replace(layer, reading=dataclasses.replace(layer.reading, **changes))
    check(torch.randn(3, 4, 24, generator=generator(14)), layer, None)


def test_tables_of_turns_follow_the_shifts() -> None:
    """Turned tables are kept from call to call, and made anew where shifts are written in place."""
    layer = make_layer((20, 12), seed=15)
    assert isinstance(layer, FusedLayer)
    layer = with_reading(layer, "half", 24)
    q = torch.randn(2, 4, 24, generator=generator(16))
    check(q, layer, None, ("triton",))
    assert layer.reading is not None
    assert layer.reading.shift is not None
    layer.reading.shift.add_(7)
    check(q, layer, None, ("triton",))


@pytest.mark.parametrize("backend", BACKENDS)
def test_prefill_in_chunks_at_once_and_token_by_token(backend: str) -> None:
    options: dict[str, Any] = {"window": 9, "sinks": torch.linspace(-1, 1, 4), "backend": backend}
    layer = make_layer((14, 6), fused=True, seed=17)
    assert isinstance(layer, FusedLayer)
    lengths = layer.table.lengths
    q = [torch.randn(n, 4, 24, generator=generator(n)) for n in (14, 6)]

    def at(ends: list[int], counts: list[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The queries that end at ``ends``, while the cache holds no more than that."""
        part = dataclasses.replace(
            layer, table=dataclasses.replace(layer.table, lengths=torch.tensor(ends, dtype=torch.int64))
        )
        rows = torch.cat([own[end - n : end] for own, end, n in zip(q, ends, counts, strict=True)])
        out, lse = paged_attention(rows, part, torch.tensor(counts), **options)
        return list(out.split(counts)), list(lse.split(counts))

    whole = at([14, 6], [14, 6])
    assert lengths.tolist() == [14, 6]
    chunks = [at([5, 0], [5, 0]), at([11, 4], [6, 4]), at([14, 6], [3, 2])]
    steps = [at([min(n, 14), min(n, 6)], [1, int(n <= 6)]) for n in range(1, 15)]
    for parts in (chunks, steps):
        for request in range(2):
            for which in range(2):
                joined = torch.cat([part[which][request] for part in parts])
                assert_close(joined, whole[which][request].double(), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_of_the_whole_length_is_none(backend: str) -> None:
    q, layer, query_lengths = ragged(torch.float32)
    for one, other in zip(
        paged_attention(q, layer, query_lengths, window=150, backend=backend),
        paged_attention(q, layer, query_lengths, backend=backend),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert not torch.equal(one, paged_attention(q, layer, query_lengths, window=149, backend=backend)[1])


def test_blocks_before_the_window_are_not_read() -> None:
    """Nor is anything else that no query attends to: the first blocks may hold anything."""
    layer = make_layer((30, 21), fused=False, seed=18)
    q = torch.randn(5, 4, 24, generator=generator(19))
    query_lengths = torch.tensor([2, 3])
    expected = attention_oracle(q, layer, query_lengths, window=7)
    for blocks, request in ((5, 0), (3, 1)):
        # Positions 28 - 6 = 22 and 18 - 6 = 12 are the first that count.
        layer.k[layer.table.entries[request, :blocks].long()] = float("nan")
        layer.v[layer.table.entries[request, :blocks].long()] = float("nan")
    for backend in BACKENDS:
        out, lse = paged_attention(q, layer, query_lengths, window=7, backend=backend)
        assert_close(out, expected[0], torch.float32)
        assert_close(lse, expected[1], torch.float32)


@pytest.mark.parametrize("form", ["plain", "all"])
def test_splits_of_the_sequence(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs per tile, some of them with nothing to read, and the kernel that merges them."""
    launched = []
    keep = _attention_triton.Specialisation.launch

    def launch(self: Any, grid: tuple[int, ...], **arguments: Any) -> None:
        launched.append((self.name, grid))
        keep(self, grid, **arguments)

    monkeypatch.setattr(_attention_triton.Specialisation, "launch", launch)
    # With the tiles that are compiled: one as long as the sequence would leave the other splits nothing.
    monkeypatch.setattr(_attention_triton, "_TILES_OF_DATA", False)
    monkeypatch.setattr(_attention_triton, "processors", lambda device: 1000)
    monkeypatch.setattr(_attention_triton, "_SHORTEST_SPLIT", 30)
    layer = make_layer((9, 0, 17, 150), seed=11)
    q = torch.randn(9, 6, 24, generator=generator(12))
    query_lengths = torch.tensor([3, 0, 4, 2])
    check(q, layer, query_lengths, ("triton",), **FORMS[form])
    # A window of 21 is too short to be split.
    assert launched[0][1][2] == (5 if form == "plain" else 1)
    if form == "plain":
        assert launched[-1][0] == "attention_merge"
        assert isinstance(layer, FusedLayer)
        sinks = torch.linspace(-2, 2, 6)
        check(q[:4], with_reading(layer, "half", 20), None, ("triton",), sinks=sinks)
        check(q[:4].bfloat16(), make_layer((150, 3, 0, 70), dtype=torch.bfloat16), None, ("triton",))


def test_rows_that_see_nothing_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 queries share tiles of 32 tokens, and a window of 3 hides whole tiles from some of them."""
    monkeypatch.setattr(_attention_triton, "_TILES_OF_DATA", False)
    layer = make_layer((70,), block_size=16, kv_heads=1, head_dim=72, dtype=torch.float16, seed=25)
    q = torch.randn(70, 1, 72, generator=generator(26)).half()
    check(q, layer, torch.tensor([70]), ("triton",), window=3)


def test_choice_of_splits() -> None:
    choose = _attention_triton.choose_splits
    assert choose(programs=8, tokens=100_000, processors=132) == 33
    assert choose(programs=1, tokens=1 << 20, processors=132) == 64
    assert choose(programs=8, tokens=1000, processors=132) == 3
    assert choose(programs=8, tokens=0, processors=132) == 1
    assert choose(programs=0, tokens=0, processors=132) == 1
    assert choose(programs=4096, tokens=100_000, processors=132) == 1
    assert _attention_triton.processors(torch.device("cpu")) == 1


@settings(max_examples=20)
@given(
    requests=st.lists(
        st.integers(0, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=3
    ),
    block_size=st.integers(1, 9),
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    head_dim=st.sampled_from([1, 6, 8, 24]),
    window=st.sampled_from([None, 1, 2, 7, 29, 2**40]),
    softcap=st.sampled_from([None, 0.5, 30.0]),
    sink=st.sampled_from([None, -math.inf, 1.0]),
    style=st.sampled_from([None, "half", "interleaved"]),
    seed=st.integers(0, 1000),
)
def test_any_shapes(
    requests: list[tuple[int, int]],
    block_size: int,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    softcap: float | None,
    sink: float | None,
    style: str | None,
    seed: int,
) -> None:
    lengths, counts = [n for n, _ in requests], [n for _, n in requests]
    layer = make_layer(lengths, block_size=block_size, kv_heads=heads[0], head_dim=head_dim, seed=seed)
    if style is not None and head_dim > 1:
        assert isinstance(layer, FusedLayer)
        layer = with_reading(layer, style, 2 * (head_dim // 4 + 1) if head_dim > 2 else 2, seed)
    q = torch.randn(sum(counts), heads[0] * heads[1], head_dim, generator=generator(seed))
    sinks = None if sink is None else torch.full((heads[0] * heads[1],), sink)
    query_lengths = torch.tensor(counts, dtype=torch.int64)
    check(q, layer, query_lengths, window=window, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_in_values_and_their_means(backend: str) -> None:
    """Twice the scale of values: out moves away from what the means alone give by twice as much."""
    layer = make_layer((12, 8), seed=20)
    assert isinstance(layer, FusedLayer)
    layer = with_reading(layer, "half", 24)
    q = torch.randn(2, 4, 24, generator=generator(21))
    at_0, at_1, at_2 = (
        paged_decode_attention(
            q, dataclasses.replace(layer, v_scale=layer.v_scale * factor), backend=backend
        )[0].double()
        for factor in (0.0, 1.0, 2.0)
    )
    assert_close(2 * at_1 - at_0, at_2, torch.float32)
    assert float((at_1 - at_0).abs().max()) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_with_strides(backend: str) -> None:
    """A slice of a tensor of queries, keys and values, which is what a projection leaves."""
    q, layer, query_lengths = ragged(torch.float32)
    wide = torch.randn(len(q), 10, 25, generator=generator(22))
    wide[:, 2:8, 1:] = q
    check(wide[:, 2:8, 1:], layer, query_lengths, (backend,))


def _with(**changes: Any) -> dict[str, Any]:
    layer = make_layer((5, 3))
    q = torch.randn(4, 4, 24, generator=generator(1))
    return {"q": q, "layer": layer, "query_lengths": torch.tensor([3, 1]), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_lengths": None}, r"q = \(4, 4, 24\): must hold one row for each of 2 requests where"),
        ({"query_lengths": [3, 1]}, r"query_lengths = 'list': must be int64 of shape \(2,\), or None"),
        ({"query_lengths": torch.tensor([4])}, r"query_lengths = 'torch.int64 of shape \(1,\)'"),
        ({"query_lengths": torch.tensor([3, 1]).int()}, "query_lengths = 'torch.int32 of shape"),
        (
            {"query_lengths": torch.zeros(2, dtype=torch.int64, device="meta")},
            "query_lengths = 'meta': must be on cpu like the block table",
        ),
        ({"query_lengths": torch.tensor([0, 4])}, "query_lengths = 4: .* the length of request 1, 3, which"),
        ({"query_lengths": torch.tensor([5, -1])}, "query_lengths = -1: must be between 0 and the length"),
        ({"query_lengths": torch.tensor([3, 2])}, "query_lengths = 5: must add up to the 4 rows of q"),
        ({"window": 0}, "window = 0: must be a whole number of tokens, at least 1"),
        ({"window": 2.0}, "window = 2.0: must be a whole number"),
        ({"window": True}, "window = True: must be a whole number"),
        ({"softcap": 0.0}, "softcap = 0.0: must be a finite number above 0"),
        ({"softcap": math.inf}, "softcap = inf: must be a finite number above 0"),
        ({"softcap": "50"}, "softcap = '50': must be a finite number above 0"),
        ({"sinks": 1.0}, r"sinks = 'float': must be floating point of shape \(4,\)"),
        ({"sinks": torch.zeros(2)}, r"sinks = 'torch.float32 of shape \(2,\)': must be floating point of"),
        ({"sinks": torch.zeros(4, dtype=torch.int64)}, "sinks = 'torch.int64 of shape"),
        ({"sinks": torch.zeros(4, device="meta")}, "sinks = 'meta': must be on cpu like q"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paged_attention(**_with(**changes))
