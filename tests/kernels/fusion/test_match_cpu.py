"""The torch matcher: tiles, ties, layouts of the pool and working memory."""

from __future__ import annotations

import pytest
import torch
from caches import generator
from closeness import TOLERANCE
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_cases import SHAPE, lowest_labels_are_right, pools
from strategies import DTYPES, score_oracle
from torch import Tensor

from ratedist.kernels.bench.allocations import peak_extra_bytes
from ratedist.kernels.fusion import _match_cpu
from ratedist.kernels.fusion._match_cpu import best_match, block_norms, gather_blocks, tile_shape
from ratedist.kernels.fusion.scoring import CRITERIA, Part, Pools, Scoring, make_scoring

CPU = torch.device("cpu")


def scoring(k: Tensor, v: Tensor, criterion: str) -> Scoring:
    return make_scoring(criterion, [Pools(Part(k, block_norms(k)), Part(v, block_norms(v)))])


def match(k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, criterion: str) -> tuple[Tensor, Tensor]:
    return best_match(scoring(k, v, criterion), rows, cols)


@pytest.mark.parametrize("tile", [(2, 3), (4, 1), (1024, 256)])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_best_match_over_tiles_of_any_size(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], criterion: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(_match_cpu, "tile_shape", lambda scoring: tile)

    @settings(max_examples=15)
    @given(st.integers(0, 11), st.integers(0, 11), st.booleans(), st.integers(0, 100))
    def run(n_rows: int, n_cols: int, shuffled: bool, seed: int) -> None:
        k, v = pools(24, dtype, seed)
        k[3] = 0.0
        order = torch.randperm(24, generator=generator(seed)) if shuffled else torch.arange(24)
        rows, cols = order[:n_rows], order[12 : 12 + n_cols]
        score, position = match(k, v, rows, cols, criterion)
        assert score.dtype == torch.float32
        assert position.dtype == torch.int64
        if n_cols == 0:
            assert score.eq(-torch.inf).all()
            assert position.eq(-1).all()
            return
        expected = score_oracle(k, v, rows, cols, criterion)
        best = expected.max(dim=1).values
        torch.testing.assert_close(score.double(), best, rtol=1e-6, atol=1e-6)
        chosen = expected.gather(1, position[:, None]).flatten()
        torch.testing.assert_close(chosen, best, rtol=1e-6, atol=1e-6)

    run()


@pytest.mark.parametrize("criterion", ["keys", "both"])
@pytest.mark.parametrize("tile", [(4, 2), (64, 64)])
def test_equal_scores_go_to_the_lowest_position(
    monkeypatch: pytest.MonkeyPatch, criterion: str, tile: tuple[int, int]
) -> None:
    monkeypatch.setattr(_match_cpu, "tile_shape", lambda scoring: tile)
    k, v = pools(10)
    for copy, factor in ((5, 2.0), (6, 0.5), (8, 4.0)):
        k[copy], v[copy] = factor * k[2], factor * v[2]
    rows, cols = torch.tensor([2, 6]), torch.tensor([9, 8, 5, 7, 6])
    _, position = match(k, v, rows, cols, criterion)
    assert position.tolist() == [1, 1]


def test_scores_above_one_are_clipped_before_they_compete() -> None:
    below, above = 1.0 - 2**-24, 1.0 + 2**-23
    tile = torch.tensor([[below, 1.0, above], [above, 1.0, below], [0.1, 0.3, 0.2]])
    for terms, factor in ((1, torch.ones(3)), (1, None), (2, None)):
        best, position = _match_cpu._row_best([tile.clone() for _ in range(terms)], factor)
        assert best.tolist() == pytest.approx([1.0, 1.0, 0.3])
        assert float(best.max()) == 1.0
        assert position.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_of_the_pool_do_not_matter(dtype: torch.dtype) -> None:
    both = torch.randn(9, 2, *SHAPE, generator=generator(4)).to(dtype)
    k, v = both[:, 0].contiguous(), both[:, 1].contiguous()
    rows, cols = torch.tensor([4, 5, 6]), torch.tensor([0, 1, 2, 8])
    expected = match(k, v, rows, cols, "both")
    # Keys and values in one tensor; heads before tokens.
    swapped = both.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (both, swapped):
        found = match(other[:, 0], other[:, 1], rows, cols, "both")
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(block_norms(other[:, 0]), block_norms(k))
        assert torch.equal(gather_blocks(other[:, 1], rows), v[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_against_float64(dtype: torch.dtype) -> None:
    k, _ = pools(50, dtype)
    k[7] = 0.0
    norm = block_norms(k)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), k.double().flatten(1).norm(dim=1), rtol=1e-6, atol=0)
    assert TOLERANCE[torch.float32] > 1e-6


def test_neighbouring_blocks_are_read_in_place() -> None:
    k, v = pools(400)
    keys = scoring(k, v, "keys")
    rows, cols = torch.arange(200), torch.arange(200, 400)
    in_place = peak_extra_bytes(lambda: best_match(keys, rows, cols), CPU)
    gathered = peak_extra_bytes(lambda: best_match(keys, rows.flip(0), cols.flip(0)), CPU)
    # A gathered tile holds at least its rows in float32.
    assert gathered - in_place >= 4 * 30 * sum(min(side, 200) for side in tile_shape(keys))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_tiles_keep_within_their_share(dtype: torch.dtype, criterion: str) -> None:
    for blocks in (512, 4096, 100_000):
        pool = torch.empty(blocks, 16, 3, 64, dtype=dtype, device="meta")
        part = Part(pool, torch.empty(blocks, device="meta"))
        rows, cols = tile_shape(make_scoring(criterion, [Pools(part, part)]))
        parts = 1 if criterion == "keys" else 2
        used = 4 * ((parts * rows + cols) * 3072 + parts * rows * cols)
        assert used <= 0.09 * 2 * pool.numel() * pool.element_size() or (rows, cols) == (16, 16)
    # Of a large pool the largest tile is taken.
    assert (rows, cols) == (1024, 256)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_working_memory_is_what_the_tile_says(criterion: str) -> None:
    k, v = (torch.randn(600, 16, 2, 16, generator=generator(seed)) for seed in (1, 2))
    scored = scoring(k, v, criterion)
    order = torch.randperm(600, generator=generator(3))
    rows, cols = tile_shape(scored)
    parts = 1 if criterion == "keys" else 2
    extra = peak_extra_bytes(lambda: best_match(scored, order[:400], order[400:]), CPU)
    tile = 4 * ((parts * rows + cols) * 512 + parts * rows * cols)
    # Beyond the tile, vectors with a number per row or column, and the terms' minimum is taken in place.
    assert extra <= tile + 40 * 600 + 9 * rows * cols // 8


@pytest.mark.parametrize("tile", [(2, 3), (1024, 256)])
@pytest.mark.parametrize("criterion", ["keys", "both", "mean"])
def test_lowest_labels_over_tiles_of_any_size(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], criterion: str
) -> None:
    monkeypatch.setattr(_match_cpu, "tile_shape", lambda scoring: tile)
    for seed in range(6):
        assert lowest_labels_are_right(_match_cpu, 13 if seed else 0, criterion, seed)
