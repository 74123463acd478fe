"""What holds of every fusion, on every implementation: the invariants of docs/design.md."""

from __future__ import annotations

import torch
from caches import generator
from hypothesis import assume
from hypothesis import strategies as st
from strategies import (
    CLOSE,
    byte_groups,
    criteria,
    decided,
    full_blocks,
    layers,
    on_every_backend,
    rearranged,
    scales,
    score_matrix,
    thresholds,
    variants,
)

from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.compact import compact
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.restore import block_errors

FIELDS = ("representative", "absorber", "score")


def restored(layer: FusedLayer, logical: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one logical block in float64, straight from the definition of a fused layer."""
    request, block = divmod(logical, layer.table.entries.shape[1])
    physical = int(layer.table.entries[request, block])
    return (
        layer.k[physical].double() * float(layer.k_scale[request, block]),
        layer.v[physical].double() * float(layer.v_scale[request, block]),
    )


def same_fusion(a: Fusion, b: Fusion) -> None:
    for name in FIELDS[:2]:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.score, b.score, rtol=5e-6, atol=2e-6)
    assert (a.candidates, a.kept, a.exact) == (b.candidates, b.kept, b.exact)
    assert torch.equal(a.layer.table.entries, b.layer.table.entries)
    torch.testing.assert_close(a.layer.k_scale, b.layer.k_scale, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(a.layer.v_scale, b.layer.v_scale, rtol=1e-5, atol=2e-6)


@on_every_backend(layers(), thresholds, variants, criteria, scales)
def test_byte_equal_blocks_of_different_requests_share(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, scale: str
) -> None:
    fusion = fuse(
        layer, threshold=threshold, variant=variant, criterion=criterion, scale=scale, backend=backend
    )
    table, groups = fusion.layer.table, byte_groups(layer)
    for group in groups:
        assert len(set(table.entries.flatten()[group].tolist())) == 1
        assert len(set(fusion.representative.flatten()[group].tolist())) == 1
        for per_block in (fusion.layer.k_scale, fusion.layer.v_scale, fusion.score):
            assert len(set(per_block.flatten()[group].tolist())) == 1
        assert fusion.absorber.flatten()[group[1:]].tolist() == [group[0]] * (len(group) - 1)
    assert fusion.exact == sum(len(group) - 1 for group in groups)


@on_every_backend(layers(), variants, criteria, scales)
def test_at_threshold_one_nothing_else_shares(
    backend: str, layer: PagedLayer, variant: str, criterion: str, scale: str
) -> None:
    fusion = fuse(layer, threshold=1.0, variant=variant, criterion=criterion, scale=scale, backend=backend)
    expected = {a: group[0] for group in byte_groups(layer) for a in group}
    for a in full_blocks(layer):
        assert int(fusion.representative.flatten()[a]) == expected.get(a, a)
    assert fusion.absorbed == fusion.exact
    assert bool((fusion.layer.k_scale == 1).all())
    assert bool((fusion.layer.v_scale == 1).all())
    # Table entries may differ, what is read may not.
    for a in full_blocks(layer):
        physical = int(layer.table.entries.flatten()[a])
        assert torch.equal(restored(fusion.layer, a)[0], layer.k[physical].double())
        assert torch.equal(restored(fusion.layer, a)[1], layer.v[physical].double())


@on_every_backend(layers(), thresholds, criteria)
def test_every_member_of_a_leader_is_within_the_threshold(
    backend: str, layer: PagedLayer, threshold: float, criterion: str
) -> None:
    fusion = fuse(layer, threshold=threshold, variant="leader", criterion=criterion, backend=backend)
    assert torch.equal(fusion.absorber, fusion.representative) or fusion.exact
    first = {a: group[0] for group in byte_groups(layer) for a in group}
    score, logical = score_matrix(layer, criterion), full_blocks(layer)
    for n, a in enumerate(logical):
        root = int(fusion.representative.flatten()[a])
        if root != first.get(a, a):
            reported = float(fusion.score.flatten()[a])
            assert reported > torch.tensor(threshold, dtype=torch.float32)
            assert abs(reported - float(score[n, logical.index(root)])) < CLOSE
            # Its best match among the blocks kept of earlier requests.
            rivals = [
                float(score[n, m])
                for m, b in enumerate(logical)
                if int(fusion.representative.flatten()[b]) == b
                and same_domain(layer, a, b)
                and request_of(layer, b) < request_of(layer, first.get(a, a))
            ]
            assert reported > max(rivals) - CLOSE
        elif root == a:
            # Nobody it was allowed to join was near enough.
            for m, b in enumerate(logical):
                if int(fusion.representative.flatten()[b]) == b and request_of(layer, b) < request_of(
                    layer, a
                ):
                    assert not same_domain(layer, a, b) or float(score[n, m]) < threshold + CLOSE


@on_every_backend(layers(), thresholds, variants, criteria)
def test_kept_and_absorbed_make_the_total(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str
) -> None:
    fusion = fuse(layer, threshold=threshold, variant=variant, criterion=criterion, backend=backend)
    logical = full_blocks(layer)
    representative = fusion.representative.flatten()
    kept = [a for a in logical if int(representative[a]) == a]
    first = {a: group[0] for group in byte_groups(layer) for a in group}
    assert fusion.candidates == len(logical)
    assert fusion.kept == len(kept)
    assert fusion.kept + fusion.absorbed == fusion.candidates
    assert fusion.exact <= fusion.absorbed
    assert fusion.compression == (fusion.candidates / fusion.kept if kept else 1.0)
    for a in logical:
        root, absorber = int(representative[a]), int(fusion.absorber.flatten()[a])
        assert root in kept
        assert int(representative[absorber]) == root
        assert root <= absorber <= a
        if root != first.get(a, a):
            # Members come later in logical order and belong to other requests.
            assert request_of(layer, root) < request_of(layer, first.get(a, a))
        if root == a:
            assert absorber == a
            assert float(fusion.score.flatten()[a]) == 1.0
    # Whoever is kept has its own physical block, with scale exactly 1.
    assert torch.equal(fusion.layer.table.entries.flatten()[kept], layer.table.entries.flatten()[kept])
    assert bool((fusion.layer.k_scale.flatten()[kept] == 1).all())
    assert bool((fusion.layer.v_scale.flatten()[kept] == 1).all())
    # So the saving that is claimed is there: every kept candidate is one physical block of its domain.
    in_use = {
        (int(layer.table.domains[request_of(layer, a)]), int(fusion.layer.table.entries.flatten()[a]))
        for a in logical
    }
    assert len(in_use) == fusion.kept
    # And a member reads its representative's.
    members = fusion.layer.table.entries.flatten()[logical]
    assert torch.equal(members, layer.table.entries.flatten()[representative[logical]])


@on_every_backend(layers(), thresholds, variants, criteria)
def test_scores_are_those_against_the_final_representative(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str
) -> None:
    fusion = fuse(layer, threshold=threshold, variant=variant, criterion=criterion, backend=backend)
    score, logical = score_matrix(layer, criterion), full_blocks(layer)
    for n, a in enumerate(logical):
        root = int(fusion.representative.flatten()[a])
        expected = float(score[n, logical.index(root)])
        first = next((group[0] for group in byte_groups(layer) if a in group), a)
        if root == first:
            expected = 1.0
        assert abs(float(fusion.score.flatten()[a]) - expected) < CLOSE * max(1.0, abs(expected))


@on_every_backend(layers(), thresholds, variants, criteria)
def test_blocks_of_different_domains_never_share(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str
) -> None:
    fusion = fuse(layer, threshold=threshold, variant=variant, criterion=criterion, backend=backend)
    for a in full_blocks(layer):
        assert same_domain(layer, a, int(fusion.representative.flatten()[a]))
    # Each domain fuses as it does alone.
    for domain in layer.table.domains.unique().tolist():
        chosen = torch.nonzero(layer.table.domains == domain).flatten()
        table = BlockTable(
            layer.table.entries[chosen],
            layer.table.lengths[chosen],
            layer.table.domains[chosen],
            layer.table.block_size,
        )
        alone = fuse(
            PagedLayer(layer.k, layer.v, table),
            threshold=threshold,
            variant=variant,
            criterion=criterion,
            backend=backend,
        )
        assert torch.equal(alone.layer.table.entries, fusion.layer.table.entries[chosen])
        assert torch.equal(alone.layer.k_scale, fusion.layer.k_scale[chosen])


@on_every_backend(layers(), thresholds, variants, scales)
def test_partly_filled_blocks_and_the_pool_are_left_alone(
    backend: str, layer: PagedLayer, threshold: float, variant: str, scale: str
) -> None:
    before = [tensor.clone() for tensor in (layer.k, layer.v, layer.table.entries)]
    fusion = fuse(layer, threshold=threshold, variant=variant, scale=scale, backend=backend)
    for tensor, copy in zip((layer.k, layer.v, layer.table.entries), before, strict=True):
        assert torch.equal(tensor.contiguous().view(torch.uint8), copy.contiguous().view(torch.uint8))
    assert fusion.layer.k is layer.k
    assert fusion.layer.v is layer.v
    max_blocks = layer.table.entries.shape[1]
    partial = []
    for request, length in enumerate(layer.table.lengths.tolist()):
        used = -(-length // layer.table.block_size)
        assert bool((fusion.representative[request, used:] == -1).all())
        assert bool((fusion.absorber[request, used:] == -1).all())
        assert bool((fusion.layer.table.entries[request, used:] == UNUSED).all())
        assert bool((fusion.score[request, used:] == 0).all())
        if length % layer.table.block_size:
            partial.append(request * max_blocks + used - 1)
    flat = fusion.representative.flatten()
    for a in partial:
        assert (flat == a).nonzero().flatten().tolist() == [a]
        assert int(fusion.layer.table.entries.flatten()[a]) == int(layer.table.entries.flatten()[a])
        assert float(fusion.layer.k_scale.flatten()[a]) == float(fusion.layer.v_scale.flatten()[a]) == 1.0
        assert float(fusion.score.flatten()[a]) == 1.0


@on_every_backend(layers(), st.floats(0.6, 0.95), variants)
def test_a_request_that_took_no_part_decodes_bit_identically(
    backend: str, layer: PagedLayer, threshold: float, variant: str
) -> None:
    fusion = fuse(layer, threshold=threshold, variant=variant, backend=backend)
    kv_heads, head_dim = layer.k.shape[2:]
    shape = (layer.table.requests, 2 * kv_heads, head_dim)
    q = torch.randn(shape, generator=generator(7)).to(layer.k.dtype)
    # The Triton decoder is held to this in test_attention.py; here the fusions differ, not the decoder.
    before, _ = paged_decode_attention(q, layer, backend="cpu")
    after, _ = paged_decode_attention(q, fusion.layer, backend="cpu")
    absorbed = fusion.representative != torch.arange(fusion.representative.numel()).view_as(
        fusion.representative
    )
    absorbed &= fusion.representative >= 0
    for request in torch.nonzero(~absorbed.any(dim=1)).flatten().tolist():
        used = int(layer.table.used_blocks[request])
        assert torch.equal(fusion.layer.table.entries[request, :used], layer.table.entries[request, :used])
        assert torch.equal(before[request], after[request])


@on_every_backend(layers(), thresholds, criteria, scales)
def test_fusing_a_leader_again_changes_nothing(
    backend: str, layer: PagedLayer, threshold: float, criterion: str, scale: str
) -> None:
    # Scores of kept blocks are computed anew, in other tiles.
    assume(threshold == 1.0 or decided_threshold(layer, threshold, criterion))
    once = fuse(layer, threshold=threshold, criterion=criterion, scale=scale, backend=backend)
    twice = fuse(once.layer, threshold=threshold, criterion=criterion, scale=scale, backend=backend)
    assert torch.equal(twice.layer.table.entries, once.layer.table.entries)
    assert torch.equal(twice.layer.k_scale, once.layer.k_scale)
    assert torch.equal(twice.layer.v_scale, once.layer.v_scale)
    assert (twice.candidates, twice.kept) == (once.candidates, once.kept)
    # All that was absorbed now shares a block, and so is byte-equal.
    assert twice.exact == twice.absorbed


@on_every_backend(layers(ties=False), thresholds, variants, criteria, scales, st.integers(0, 1000))
def test_padding_and_the_order_of_the_pool_do_not_matter(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    scale: str,
    seed: int,
) -> None:
    assume(decided(layer, threshold, criterion))
    options = {"threshold": threshold, "variant": variant, "criterion": criterion, "scale": scale}
    fusion = fuse(layer, **options, backend=backend)
    moved = fuse(rearranged(layer, seed), **options, backend=backend)

    # Logical indices grow with the width of the table, and empty requests lie in between.
    max_blocks = layer.table.entries.shape[1]
    wide = moved.representative.shape[1]
    for name in FIELDS[:2]:
        ours, theirs = getattr(fusion, name), getattr(moved, name)[1::2, :max_blocks]
        other = torch.where(theirs >= 0, (theirs // wide - 1) // 2 * max_blocks + theirs % wide, theirs)
        assert torch.equal(ours, other), name
    assert (fusion.candidates, fusion.kept, fusion.exact) == (moved.candidates, moved.kept, moved.exact)
    assert moved.representative[::2].eq(-1).all()
    torch.testing.assert_close(fusion.score, moved.score[1::2, :max_blocks], rtol=5e-6, atol=2e-6)
    for a in full_blocks(layer):
        b = (2 * (a // max_blocks) + 1) * wide + a % max_blocks
        for x, y in zip(restored(fusion.layer, a), restored(moved.layer, b), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=2e-6)


@on_every_backend(layers(), thresholds, variants, criteria, scales)
def test_distortion_is_that_of_the_restored_cache(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, scale: str
) -> None:
    fusion = fuse(
        layer, threshold=threshold, variant=variant, criterion=criterion, scale=scale, backend=backend
    )
    errors = block_errors(layer, fusion.layer)
    for a in full_blocks(layer):
        physical = int(layer.table.entries.flatten()[a])
        for error, pool, back in zip(errors, (layer.k, layer.v), restored(fusion.layer, a), strict=True):
            original = pool[physical].double()
            difference = float((back - original).square().sum())
            power = float(original.square().sum())
            expected = difference / power if power else (0.0 if difference == 0 else float("inf"))
            assert abs(float(error.flatten()[a]) - expected) <= 1e-5 * max(
                1.0, expected
            ) or expected == float(error.flatten()[a])
    beyond = fusion.representative == -1
    assert bool((errors[0][beyond] == 0).all())
    assert bool((errors[1][beyond] == 0).all())


@on_every_backend(layers(ties=False), thresholds, variants, criteria, scales)
def test_agrees_with_the_reference(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, scale: str
) -> None:
    assume(decided(layer, threshold, criterion))
    options = {"threshold": threshold, "variant": variant, "criterion": criterion, "scale": scale}
    expected = fuse(layer, **options, backend="reference")
    same_fusion(fuse(layer, **options, backend=backend), expected)
    # A fused layer is fused as it is stored, under other rules too; scales multiply.
    other = {"threshold": 0.5, "variant": "tree", "criterion": "keys", "scale": "own-norm"}
    assume(decided(PagedLayer(layer.k, layer.v, expected.layer.table), 0.5, "keys"))
    same_fusion(
        fuse(expected.layer, **other, backend=backend), fuse(expected.layer, **other, backend="reference")
    )


@on_every_backend(layers(ties=False), thresholds, variants)
def test_an_aliased_table_fuses_like_separate_blocks(
    backend: str, layer: PagedLayer, threshold: float, variant: str
) -> None:
    assume(decided(layer, threshold, "keys"))
    entries = layer.table.entries
    used = torch.arange(entries.shape[1]) < layer.table.used_blocks[:, None]
    separate = torch.full_like(entries, UNUSED)
    separate[used] = torch.arange(int(used.sum()), dtype=torch.int32)
    physical = entries[used].long()
    table = BlockTable(separate, layer.table.lengths, layer.table.domains, layer.table.block_size)
    apart = fuse(
        PagedLayer(layer.k[physical], layer.v[physical], table),
        threshold=threshold,
        variant=variant,
        backend=backend,
    )
    fusion = fuse(layer, threshold=threshold, variant=variant, backend=backend)
    assert torch.equal(apart.representative, fusion.representative)
    torch.testing.assert_close(apart.score, fusion.score, rtol=0, atol=2e-6)


@on_every_backend(layers(), thresholds, variants)
def test_compacting_keeps_what_is_read_and_frees_the_rest(
    backend: str, layer: PagedLayer, threshold: float, variant: str
) -> None:
    fused = fuse(layer, threshold=threshold, variant=variant, backend=backend).layer
    dense = compact(fused)
    used = torch.arange(fused.table.entries.shape[1]) < fused.table.used_blocks[:, None]
    in_use = fused.table.entries[used].tolist()
    assert dense.k.shape[0] == dense.v.shape[0] == len(set(in_use))
    # Blocks stand in order of first use.
    assert list(dict.fromkeys(dense.table.entries[used].tolist())) == list(range(len(set(in_use))))
    assert bool((dense.table.entries[~used] == UNUSED).all())
    for pool, dense_pool in ((fused.k, dense.k), (fused.v, dense.v)):
        before = pool[in_use].view(torch.uint8)
        assert torch.equal(dense_pool[dense.table.entries[used].long()].view(torch.uint8), before)
    assert torch.equal(dense.k_scale, fused.k_scale)
    assert torch.equal(dense.v_scale, fused.v_scale)


def request_of(layer: PagedLayer, logical: int) -> int:
    return logical // layer.table.entries.shape[1]


def same_domain(layer: PagedLayer, a: int, b: int) -> bool:
    domains = layer.table.domains
    return int(domains[request_of(layer, a)]) == int(domains[request_of(layer, b)])


def decided_threshold(layer: PagedLayer, threshold: float, criterion: str) -> bool:
    return bool(((score_matrix(layer, criterion) - threshold).abs() > CLOSE).all())
