"""Caps: how many read one block, and how much of a request is absorbed by similarity."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from by_hand import ASIDE, direction, one_token_layer
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    CLOSE,
    criteria,
    decided,
    full_blocks,
    layers,
    on_every_backend,
    score_matrix,
    variants,
)

from ratedist.errors import InputError
from ratedist.kernels.fusion.caps import absorption_limit
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.layout import PagedLayer

sharers = st.sampled_from([None, 1, 2, 3, 4])
shares = st.sampled_from([None, 0.0, 0.3, 0.5, 2 / 3])
modes = st.sampled_from([{}, {"mode": "cff", "chunk_blocks": 1}])


def by_similarity(layer: PagedLayer, fusion: Fusion, mode: dict[str, object]) -> list[int]:
    """Logical blocks that were absorbed by similarity, without their duplicates."""
    first = firsts(layer, mode)
    return [a for a in full_blocks(layer) if first[a] == a and int(fusion.absorber.flatten()[a]) != a]


def firsts(layer: PagedLayer, mode: dict[str, object]) -> dict[int, int]:
    """The byte-equal block whose physical block each takes: what fusion at threshold 1 shares."""
    exact = fuse(layer, threshold=1.0, **mode, backend="reference").representative  # type: ignore[arg-type]
    return {a: int(exact.flatten()[a]) for a in full_blocks(layer)}


@on_every_backend(layers(), st.floats(-0.2, 0.9), variants, criteria, sharers, shares, modes)
def test_caps_hold_and_refuse_only_where_they_must(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    most: int | None,
    share: float | None,
    mode: dict[str, object],
) -> None:
    fusion = fuse(
        layer,
        threshold=threshold,
        variant=variant,
        criterion=criterion,
        max_sharers=most,
        max_absorbed_share=share,
        backend=backend,
        **mode,  # type: ignore[arg-type]
    )
    first, absorbed = firsts(layer, mode), by_similarity(layer, fusion, mode)
    flat = fusion.representative.flatten()
    readers: dict[int, list[int]] = {}
    for a in full_blocks(layer):
        readers.setdefault(int(flat[a]), []).append(a)
    for root, group in readers.items():
        if most is not None and any(first[a] != root for a in group):
            assert len(group) <= most
    max_blocks = layer.table.entries.shape[1]
    taken = {i: [a for a in absorbed if a // max_blocks == i] for i in range(layer.table.requests)}
    for i, full in enumerate(layer.table.full_blocks.tolist()):
        assert share is None or Fraction(len(taken[i])) <= Fraction(share) * full + Fraction(1, 10**9)
    # Exact duplicates share whatever the caps say.
    for a, b in first.items():
        assert int(flat[a]) == int(flat[b])
    if variant == "tree" or mode:
        return
    score, logical = score_matrix(layer, criterion), full_blocks(layer)
    for a in absorbed:
        assert float(fusion.score.flatten()[a]) > torch.tensor(threshold, dtype=torch.float32)
    domains = layer.table.domains
    for n, a in enumerate(logical):
        if first[a] != a or int(flat[a]) != a:
            continue
        met = [
            (float(score[n, m]), b)
            for m, b in enumerate(logical)
            if int(flat[b]) == b
            and b // max_blocks < a // max_blocks
            and int(domains[b // max_blocks]) == int(domains[a // max_blocks])
        ]
        best = max((s for s, _ in met), default=-2.0)
        if best <= threshold + CLOSE:
            continue
        # It was refused: its request had no more to give, or its best match no room for all that come along.
        own = sum(first[b] == a for b in logical)
        targets = [b for s, b in met if s > best - CLOSE]
        full = int(layer.table.full_blocks[a // max_blocks])
        spent = share is not None and len(taken[a // max_blocks]) == absorption_limit(share, full)
        assert spent or any(most is not None and len(readers[b]) + own > most for b in targets)


@on_every_backend(layers(), st.floats(0.0, 0.9), variants, criteria, modes, share=0.4)
def test_caps_that_never_bind_change_nothing(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, mode: dict[str, object]
) -> None:
    options = {"threshold": threshold, "variant": variant, "criterion": criterion, "backend": backend, **mode}
    free = fuse(layer, **options)  # type: ignore[arg-type]
    capped = fuse(layer, max_sharers=1000, max_absorbed_share=1, **options)  # type: ignore[arg-type]
    for name in ("representative", "absorber", "score"):
        assert torch.equal(getattr(free, name), getattr(capped, name))
    assert torch.equal(free.layer.table.entries, capped.layer.table.entries)
    # With no room at all only exact duplicates share.
    for cap in ({"max_sharers": 1}, {"max_absorbed_share": 0.0}):
        none = fuse(layer, **cap, **options)  # type: ignore[arg-type]
        assert none.absorbed == none.exact


@on_every_backend(layers(ties=False), st.floats(0.0, 0.9), variants, criteria, sharers, shares, share=0.8)
def test_caps_agree_with_the_reference(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    most: int | None,
    share: float | None,
) -> None:
    assume(decided(layer, threshold, criterion))
    # Nor may two blocks that ask for room be nearly equal.
    above = score_matrix(layer, criterion).flatten()
    above = above[(above > threshold) & (above < 1 - CLOSE)].sort().values.tolist()
    if criterion != "distance":
        above = above[::2]  # every score stands twice
    assume(all(b - a > CLOSE for a, b in pairwise(above)))
    options = {"threshold": threshold, "variant": variant, "criterion": criterion}
    found = [
        fuse(layer, **options, max_sharers=most, max_absorbed_share=share, backend=one)  # type: ignore[arg-type]
        for one in (backend, "reference")
    ]
    assert torch.equal(found[0].representative, found[1].representative)
    assert torch.equal(found[0].absorber, found[1].absorber)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_caps_by_hand(backend: str, variant: str) -> None:
    # 20° and 10° ask 0° for its one place: the nearer gets it, though it comes second.
    layer = one_token_layer([[direction(0)], [direction(20), direction(10)]])
    fusion = fuse(layer, threshold=0.5, variant=variant, max_sharers=2, backend=backend)
    assert fusion.representative.tolist() == [[0, -1], [2, 0]]
    fusion = fuse(layer, threshold=0.5, variant=variant, max_absorbed_share=0.5, backend=backend)
    assert fusion.representative.tolist() == [[0, -1], [2, 0]]
    assert fuse(layer, threshold=0.5, variant=variant, max_absorbed_share=0.49, backend=backend).kept == 3
    # No second choice: 45° and 62° are nearest to 60°, which 61° has filled; that 0° has room is no matter.
    layer = one_token_layer([[direction(0), direction(60)], [direction(61)], [direction(45), direction(62)]])
    fusion = fuse(layer, threshold=0.5, variant=variant, max_sharers=2, backend=backend)
    assert fusion.representative.tolist() == [[0, 1], [1, -1], [4, 5]]


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_members_move_along_and_count(backend: str) -> None:
    # In the tree 70° joins 35° first; together with 0° they would be three.
    layer = one_token_layer([[direction(0)], [ASIDE], [direction(35)], [direction(70)]])
    for most, expected in ((2, [0, 1, 2, 2]), (3, [0, 1, 0, 0])):
        fusion = fuse(layer, threshold=0.75, variant="tree", max_sharers=most, backend=backend)
        assert fusion.representative.flatten().tolist() == expected
    # Duplicates count, and are not kept apart: two of each, and four do not fit.
    same = [[[1.0, 0.0, 0.0, 0.0]]] * 2 + [[[0.9, 0.1, 0.0, 0.0]]] * 2
    layer = one_token_layer(same, [[[1.0, 2.0, 3.0, 4.0]]] * 4)
    for most, kept in ((1, 2), (3, 2), (4, 1)):
        assert fuse(layer, threshold=0.5, max_sharers=most, backend=backend).kept == kept


@given(st.integers(0, 200), st.integers(0, 200))
def test_an_absorption_limit_is_the_fraction_that_was_meant(number: int, blocks: int) -> None:
    assume(0 < number <= blocks)
    assert absorption_limit(number / blocks, blocks) == number
    assert absorption_limit(number / blocks - 1e-6, blocks) == number - 1


def test_bad_caps() -> None:
    layer = one_token_layer([[direction(0)]])
    for most in (0, -1, True, 1.5, "2"):
        with pytest.raises(InputError, match=r"max_sharers = .*: must be a whole number, at least 1"):
            fuse(layer, threshold=0.5, max_sharers=most)  # type: ignore[arg-type]
    for share in (-0.1, 1.1, float("nan"), True, "half"):
        with pytest.raises(InputError, match=r"max_absorbed_share = .*: must be a number within \[0, 1\]"):
            fuse(layer, threshold=0.5, max_absorbed_share=share)  # type: ignore[arg-type]
