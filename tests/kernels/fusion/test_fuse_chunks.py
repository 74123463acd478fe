"""Chunks fast-fusion: the units are chunks of a request, and requests share nothing."""

from __future__ import annotations

import pytest
import torch
from by_hand import COS40, direction, one_token_layer
from hypothesis import assume
from hypothesis import strategies as st
from strategies import criteria, decided, full_blocks, layers, on_every_backend, scales, thresholds, variants

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import UNUSED, BlockTable, PagedLayer


def chunks_as_requests(layer: PagedLayer, chunk_blocks: int) -> tuple[PagedLayer, list[int]]:
    """The layer with every chunk as a request and every request as a domain, and where its blocks lay.

    Returns:
        The layer, and for each of its flat logical indices the one in ``layer`` (-1 beyond the end).
    """
    table = layer.table
    rows, lengths, domains, origin = [], [], [], []
    for request, length in enumerate(table.lengths.tolist()):
        full = length // table.block_size
        chunks = max(1, -(-full // chunk_blocks))
        for chunk in range(chunks):
            first = chunk * chunk_blocks
            last = chunk == chunks - 1
            tokens = length - first * table.block_size if last else chunk_blocks * table.block_size
            row, place = [UNUSED] * (chunk_blocks + 1), [-1] * (chunk_blocks + 1)
            for block in range(-(-tokens // table.block_size)):
                row[block] = int(table.entries[request, first + block])
                place[block] = request * table.entries.shape[1] + first + block
            rows.append(row)
            origin += place
            lengths.append(tokens)
            domains.append(request)
    made = BlockTable(
        torch.tensor(rows, dtype=torch.int32).view(len(rows), chunk_blocks + 1),
        torch.tensor(lengths, dtype=torch.int64),
        torch.tensor(domains, dtype=torch.int64),
        table.block_size,
    )
    return PagedLayer(layer.k, layer.v, made), origin


@on_every_backend(layers(), thresholds, variants, criteria, scales, st.integers(1, 3), share=0.6)
def test_chunks_fuse_as_requests_of_their_own_domain_would(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    scale: str,
    chunk_blocks: int,
) -> None:
    """So every invariant of test_fuse_invariants.py holds with chunk for request and request for domain."""
    other, origin = chunks_as_requests(layer, chunk_blocks)
    options = {"threshold": threshold, "variant": variant, "criterion": criterion, "scale": scale}
    fusion = fuse(layer, **options, mode="cff", chunk_blocks=chunk_blocks, backend=backend)
    expected = fuse(other, **options, backend=backend)
    assert (fusion.candidates, fusion.kept, fusion.exact) == (
        expected.candidates,
        expected.kept,
        expected.exact,
    )
    for there, here in enumerate(origin):
        if here < 0:
            continue
        for name in ("representative", "absorber"):
            mapped = origin[int(getattr(expected, name).flatten()[there])]
            assert int(getattr(fusion, name).flatten()[here]) == mapped
        for one, two in (
            (fusion.score, expected.score),
            (fusion.layer.k_scale, expected.layer.k_scale),
            (fusion.layer.v_scale, expected.layer.v_scale),
            (fusion.layer.table.entries, expected.layer.table.entries),
        ):
            assert float(one.flatten()[here]) == float(two.flatten()[there])


@on_every_backend(layers(ties=False), st.floats(0.3, 0.95), variants, criteria, st.integers(1, 3), share=0.5)
def test_chunks_agree_with_the_reference(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, chunk_blocks: int
) -> None:
    assume(decided(chunks_as_requests(layer, chunk_blocks)[0], threshold, criterion))
    found = [
        fuse(
            layer,
            threshold=threshold,
            variant=variant,
            criterion=criterion,
            mode="cff",
            chunk_blocks=chunk_blocks,
            backend=one,
        )
        for one in (backend, "reference")
    ]
    assert torch.equal(found[0].representative, found[1].representative)
    for a in full_blocks(layer):
        assert int(found[0].representative.flatten()[a]) // layer.table.entries.shape[1] == (
            a // layer.table.entries.shape[1]
        )


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_chunks_by_hand(backend: str) -> None:
    layer = one_token_layer([[direction(0), direction(1), direction(2)], [direction(0), direction(50)]])
    fusion = fuse(layer, threshold=COS40, mode="cff", chunk_blocks=2, backend=backend)
    # 0° and 1° are one chunk; 2° finds 1° nearest; the other request is another domain, and one chunk.
    assert fusion.representative.tolist() == [[0, 1, 1], [3, 4, -1]]
    fusion = fuse(layer, threshold=COS40, mode="cff", chunk_blocks=1, backend=backend)
    assert fusion.representative.tolist() == [[0, 0, 0], [3, 4, -1]]


def test_bad_chunks() -> None:
    layer = one_token_layer([[direction(0)]])
    for chunk_blocks in (0, -1, True, 1.5, None, "2"):
        with pytest.raises(InputError, match=r"chunk_blocks = .*: must be a whole number of blocks"):
            fuse(layer, threshold=0.5, mode="cff", chunk_blocks=chunk_blocks)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"chunk_blocks = 2: goes with mode='cff'"):
        fuse(layer, threshold=0.5, chunk_blocks=2)
    with pytest.raises(InputError, match=r"mode = 'chunks': must be one of bff, cff"):
        fuse(layer, threshold=0.5, mode="chunks")
