"""Fusion by hashing: what it shares with all-pairs fusion, its recall, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from strategies import byte_groups, decided, full_blocks, layers, score_matrix
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.bench.search import planted_layer
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.kernels.search import leader as search
from ratedist.kernels.search.buckets import sort_buckets
from ratedist.kernels.search.hashing import Hashing, choose_hashing
from ratedist.kernels.search.leader import fuse_hashed
from ratedist.kernels.search.signatures import hash_keys, mean_direction
from ratedist.process import HashRecall

COMPLETE = Hashing(tables=160, bits=1)
"""Misses a pair of (centred) similarity 0 with chance 2^-160: in practice, only opposite directions."""


def layer_of(rows: Tensor, requests: int, domains: Tensor | None = None) -> PagedLayer:
    """A layer of blocks of one token and one head, as many per request."""
    per_request = len(rows) // requests
    return PagedLayer(
        rows[:, None, None, :],
        rows.flip(1)[:, None, None, :],
        BlockTable(
            torch.arange(len(rows)).view(requests, per_request).int(),
            torch.full((requests,), per_request),
            torch.zeros(requests, dtype=torch.int64) if domains is None else domains,
            1,
        ),
    )


def near_pairs(seed: int = 0, common: float = 0.0) -> tuple[PagedLayer, float]:
    planted = planted_layer(1280, 64, common=common, seed=seed)
    return planted.layer, planted.threshold


@settings(max_examples=40)
@given(layers())
def test_complete_candidates_give_the_leader_of_all_pairs(layer: PagedLayer) -> None:
    for criterion in ("keys", "both"):
        if not decided(layer, 0.7, criterion):
            continue
        # Without centring, blocks above 0.7 share a side with chance 0.75: one of 160 tables will do.
        hashing = Hashing(COMPLETE.tables, COMPLETE.bits, centre=False)
        found = fuse_hashed(layer, threshold=0.7, hashing=hashing, criterion=criterion, scale="projection")
        wanted = fuse(layer, threshold=0.7, criterion=criterion, scale="projection")
        for name in ("representative", "absorber"):
            assert torch.equal(getattr(found, name), getattr(wanted, name))
        for name in ("candidates", "kept", "exact"):
            assert getattr(found, name) == getattr(wanted, name)
        torch.testing.assert_close(found.score, wanted.score, atol=2e-6, rtol=0)
        assert torch.equal(found.layer.table.entries, wanted.layer.table.entries)
        torch.testing.assert_close(found.layer.k_scale, wanted.layer.k_scale, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.layer.v_scale, wanted.layer.v_scale, atol=1e-5, rtol=1e-5)


@settings(max_examples=40)
@given(layers())
def test_nothing_is_absorbed_that_all_pairs_would_not_absorb(layer: PagedLayer) -> None:
    # Sloppy hashing, ragged requests, two domains, partly filled blocks with NaN.
    fusion = fuse_hashed(layer, threshold=0.6, hashing=Hashing(2, 4), criterion="both")
    logical = full_blocks(layer)
    index = {a: n for n, a in enumerate(logical)}
    exact = score_matrix(layer, "both")
    groups = byte_groups(layer)
    first = {a: group[0] for group in groups for a in group}
    representative = fusion.representative.flatten().tolist()
    width = layer.table.entries.shape[1]
    for a in logical:
        root = representative[a]
        assert representative[root] == root
        assert layer.table.domains[root // width] == layer.table.domains[a // width]
        if root != first.get(a, a):
            assert root // width != first.get(a, a) // width
            assert exact[index[first.get(a, a)], index[root]] > 0.6 - 1e-5
    for group in groups:
        assert len({representative[a] for a in group}) == 1
    assert fusion.kept == sum(representative[a] == a for a in logical)


def test_exact_duplicates_share_at_threshold_one_whatever_the_hashing() -> None:
    rows = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    rows[20:30] = rows[:10]
    rows[30] = 2 * rows[11]
    fusion = fuse_hashed(layer_of(rows, 20), threshold=1.0)
    assert (fusion.exact, fusion.kept, fusion.compared) == (10, 30, 0)
    assert fusion.representative.flatten()[20:30].tolist() == list(range(10))


def test_recall_follows_the_thinning_curve() -> None:
    """``Hashing.recall``, with the share found in bins of similarity averaged over 12 draws of the planes."""
    hashing, draws, z = (5, 9), 12, []
    planted = planted_layer(12_800, 64, common=0.45, seed=3)
    found = []
    for seed in range(draws):
        fusion = fuse_hashed(planted.layer, threshold=planted.threshold, hashing=Hashing(*hashing, seed=seed))
        found.append(fusion.representative.flatten()[planted.copy] == planted.source)
        # Blocks without a pair are far below the threshold, so that every absorbed one is a planted copy.
        assert fusion.absorbed == int(found[-1].sum()) == fusion.matches
    share = torch.stack(found).double()
    # Not the similarity that was drawn, but the one that the directions have around their own mean.
    flat = planted.layer.k.flatten(1).double()[planted.layer.table.entries.flatten().long()]
    direction = flat / flat.norm(dim=1, keepdim=True)
    direction = direction - direction.mean(0)
    direction /= direction.norm(dim=1, keepdim=True)
    similarity = (direction[planted.copy] * direction[planted.source]).sum(1)
    assert float((similarity - planted.similarity).abs().max()) < 0.01
    curve = torch.tensor([Hashing(*hashing).recall(float(s)) for s in similarity], dtype=torch.float64)
    for low in (0.7, 0.8, 0.9):
        inside = (planted.similarity >= low) & (planted.similarity < low + 0.1)
        by_draw = (share[:, inside] - curve[inside]).mean(1)
        # One draw serves all pairs: the error is that of the mean over draws.
        z.append(float(by_draw.mean() / (by_draw.std() / draws**0.5)))
        assert abs(float(by_draw.mean())) < 0.02
    # Three z-scores of 11 degrees of freedom, which correlate: one beyond 4.5 has a chance below 0.3 %.
    assert max(map(abs, z)) < 4.5, z


@pytest.mark.parametrize(("tables", "bits"), [(1, 1), (7, 9), (31, 17), (4096, 30)])
def test_recall_is_the_curve_of_the_theory(tables: int, bits: int) -> None:
    curve = HashRecall(tables, bits)
    for s in (-1.0, -0.3, 0.0, 0.5, 0.9, 0.999, 1.0):
        assert Hashing(tables, bits).recall(s) == pytest.approx(float(curve(s)), rel=1e-9)


@pytest.mark.parametrize(("common", "similarity"), [(0.0, 0.9), (0.45, 0.9), (0.0, 0.6), (-0.2, 0.8)])
def test_chosen_hashing_has_the_recall_and_no_table_too_many(common: float, similarity: float) -> None:
    for blocks in (100, 10_000, 1_000_000):
        chosen = choose_hashing(0.9, similarity, blocks, dim=256, common=common)
        centred = min(similarity, (similarity - common) / (1 - common))
        assert chosen.recall(centred) >= 0.9
        assert Hashing(chosen.tables - 1, chosen.bits).recall(centred) < 0.9
    assert chosen.bits > choose_hashing(0.9, similarity, 100, dim=256, common=common).bits


def test_centring_keeps_the_candidates_few() -> None:
    counts = {}
    for common in (0.0, 0.45):
        layer, threshold = near_pairs(common=common)
        for centre in (True, False):
            hashing = Hashing(8, 8, centre=centre)
            counts[common, centre] = fuse_hashed(layer, threshold=threshold, hashing=hashing).compared
    assert counts[0.45, True] < 1.2 * counts[0.0, True]
    assert counts[0.45, False] > 3 * counts[0.45, True]


def test_explosion_is_refused_with_its_number() -> None:
    layer, threshold = near_pairs(common=0.45)
    with pytest.raises(
        InputError,
        match=r"^budget = 5000: hashing finds \d+,\d{3} candidate pairs among 1,280 blocks in 1 of 50 "
        r"tables, more than the budget; centre the blocks .* use more than 4 bits, raise the budget, or ",
    ):
        fuse_hashed(layer, threshold=threshold, hashing=Hashing(50, 4, centre=False), budget=5000)
    with pytest.raises(InputError, match=r"more than the budget; use more than 4 bits"):
        fuse_hashed(layer, threshold=threshold, hashing=Hashing(50, 4), budget=5000)


def test_budget_counts_what_is_compared() -> None:
    layer, threshold = near_pairs()
    needed = fuse_hashed(layer, threshold=threshold, hashing=Hashing(6, 6)).compared
    assert fuse_hashed(layer, threshold=threshold, hashing=Hashing(6, 6), budget=needed).compared == needed
    with pytest.raises(InputError, match=rf"finds {needed:,} candidate pairs .* in 6 of 6 tables"):
        fuse_hashed(layer, threshold=threshold, hashing=Hashing(6, 6), budget=needed - 1)


def test_domains_are_searched_as_if_alone() -> None:
    layer, threshold = near_pairs()
    rows = layer.k.flatten(1)[layer.table.entries.flatten().long()]
    # The second domain holds the same blocks, moved: in one domain all would be duplicates.
    both = torch.cat((rows, rows + 0.3))
    domains = torch.arange(2).repeat_interleave(20)
    hashing = Hashing(4, 10)
    joint = fuse_hashed(layer_of(both, 40, domains), threshold=threshold, hashing=hashing)
    alone = [
        fuse_hashed(layer_of(part, 20), threshold=threshold, hashing=hashing) for part in both.split(1280)
    ]
    shifted = [alone[0].representative, alone[1].representative + 1280]
    assert torch.equal(joint.representative, torch.cat(shifted))
    assert joint.compared == alone[0].compared + alone[1].compared


def test_fusing_again_changes_nothing() -> None:
    layer, threshold = near_pairs()
    once = fuse_hashed(layer, threshold=threshold, hashing=Hashing(30, 6))
    again = fuse_hashed(once.layer, threshold=threshold, hashing=Hashing(30, 6))
    assert once.absorbed > 100
    for name in ("k_scale", "v_scale"):
        assert torch.equal(getattr(again.layer, name), getattr(once.layer, name))
    assert torch.equal(again.layer.table.entries, once.layer.table.entries)
    assert again.kept == once.kept


def test_the_order_of_the_pool_does_not_matter() -> None:
    layer, threshold = near_pairs()
    order = torch.randperm(1280, generator=torch.Generator().manual_seed(1))
    place = torch.empty_like(order)
    place[order] = torch.arange(1280)
    table = layer.table
    moved = PagedLayer(
        layer.k[order],
        layer.v[order],
        BlockTable(place[table.entries.long()].int(), table.lengths, table.domains, table.block_size),
    )
    results = [fuse_hashed(part, threshold=threshold, hashing=Hashing(10, 8)) for part in (layer, moved)]
    assert torch.equal(results[0].representative, results[1].representative)
    assert results[0].absorbed > 50


@pytest.mark.parametrize("rounds", [0, 1, 64])
def test_rounds_and_one_by_one_decide_alike(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_PARALLEL_ROUNDS", rounds)
    generator = torch.Generator().manual_seed(1)
    for count in (2, 30, 200):
        pairs = torch.randint(count, (3 * count, 2), generator=generator)
        pairs = torch.unique(pairs[pairs[:, 0] > pairs[:, 1]], dim=0)
        # Few scores, so that ties are many.
        scores = torch.randint(5, (len(pairs),), generator=generator) / 5
        members, target, best = search._settle(count, pairs[:, 0], pairs[:, 1], scores)
        kept, wanted = set(), {}
        for block in range(count):
            options = [
                (-float(s), int(c))
                for (r, c), s in zip(pairs.tolist(), scores, strict=True)
                if r == block and c in kept
            ]
            if options:
                wanted[block] = min(options)
            else:
                kept.add(block)
        assert members.tolist() == list(wanted)
        assert target.tolist() == [col for _, col in wanted.values()]
        assert best.tolist() == pytest.approx([-negative for negative, _ in wanted.values()])


def test_a_chain_longer_than_the_rounds() -> None:
    rows = torch.arange(1, 400)
    members, target, _ = search._settle(400, rows, rows - 1, torch.ones(399))
    assert members.tolist() == list(range(1, 400, 2))
    assert target.tolist() == list(range(0, 399, 2))


def test_buckets_list_every_pair_of_two_requests_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ratedist.kernels.search import buckets

    monkeypatch.setattr(buckets, "_LISTED", 7)
    generator = torch.Generator().manual_seed(2)
    for count in (1, 2, 50):
        keys = torch.randint(6, (count,), generator=generator).int()
        request = torch.randint(12, (count,), generator=generator).sort().values
        found = sort_buckets(keys, request)
        listed = [
            pair
            for later, earlier in found.list_pairs()
            for pair in zip(later.tolist(), earlier.tolist(), strict=True)
        ]
        wanted = [
            (i, j) for i in range(count) for j in range(i) if keys[i] == keys[j] and request[i] != request[j]
        ]
        assert sorted(listed) == wanted
        assert found.pairs == len(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 16, 17, 30])
def test_keys_are_the_sides_of_the_centred_directions(
    dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ratedist.kernels.search import signatures

    monkeypatch.setattr(signatures, "_CHUNK", 1000)
    monkeypatch.setattr(signatures, "_MOST_AT_ONCE", 2)
    generator = torch.Generator().manual_seed(4)
    pool = (torch.randn(50, 2, 3, 4, generator=generator) + 0.5).to(dtype)
    rows = pool.flatten(1).double()
    norm = rows.norm(dim=1)
    ids = torch.randperm(50, generator=generator)[:40]
    mean = mean_direction(pool, norm.float(), ids)
    torch.testing.assert_close(mean.double(), (rows / norm[:, None])[ids].mean(0), atol=1e-6, rtol=0)
    keys = torch.cat([k.clone() for k in hash_keys(pool, norm.float(), ids, mean, Hashing(3, bits, 9))])
    drawn = torch.Generator().manual_seed(9)
    for table in keys:
        planes = torch.randn(24, bits, generator=drawn).double()
        product = (rows[ids] / norm[ids, None] - mean.double()) @ planes
        clear = (product.abs() > 1e-5).all(1)
        wanted = ((product > 0) * 2 ** torch.arange(bits)).sum(1)
        assert torch.equal(table.long()[clear], wanted[clear])


def test_a_block_of_zeros_is_kept() -> None:
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(5))
    rows[3], rows[17], rows[12] = 0.0, 0.0, rows[4] * 2
    rows[17, 0] = -0.0  # not byte-equal to the other
    fusion = fuse_hashed(layer_of(rows, 10), threshold=0.99, hashing=Hashing(2, 20))
    assert fusion.kept == 19
    # Nor does it spoil the mean, which would give every block the same key.
    assert fusion.compared <= 4
    assert fusion.representative.flatten()[12] == 4


def test_an_empty_layer_and_a_single_request() -> None:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(6))
    rows[3] = rows[2]
    assert fuse_hashed(layer_of(rows, 1), threshold=0.5).kept == 6
    none = PagedLayer(
        rows[:0, None, None],
        rows[:0, None, None],
        BlockTable(torch.zeros(0, 3).int(), torch.zeros(0).long(), torch.zeros(0).long(), 1),
    )
    assert fuse_hashed(none, threshold=0.5).candidates == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hashing": (4, 8)}, r"hashing = \(4, 8\): must be a Hashing, or None"),
        ({"budget": 0}, "budget = 0: must be a whole number of pairs, at least 1"),
        ({"budget": True}, "budget = True: must be a whole number"),
        ({"threshold": 0.0}, "threshold = 0.0: has no hashing chosen for it at or below 0"),
        ({"threshold": math.nan}, r"threshold = nan: must lie within \[-1, 1\]"),
        ({"criterion": "values"}, "criterion = 'values': must be one of keys, both"),
        ({"scale": "none"}, "scale = 'none': must be one of"),
        ({"backend": "reference"}, "backend = 'reference': must be one of auto, cpu, triton"),
        ({"layer": 3}, "layer = 'int': must be a PagedLayer or a FusedLayer"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(7))
    given_ = {"layer": layer_of(rows, 2), "threshold": 0.9, **arguments}
    with pytest.raises(InputError, match=message):
        fuse_hashed(given_.pop("layer"), **given_)


def test_a_block_that_is_not_finite_is_named() -> None:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(8))
    rows[4, 2] = math.inf
    with pytest.raises(InputError, match=r"k = inf: layer 5, request 1, block 1 holds NaN or infinity"):
        fuse_hashed(layer_of(rows, 2), threshold=0.9, layer_name=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "tables = 0: must be a whole number from 1 to 4096"),
        ((5000, 8), "tables = 5000: must be a whole number from 1 to 4096"),
        ((4, 31), "bits = 31: must be a whole number from 1 to 30"),
        ((4, 2.0), "bits = 2.0: must be a whole number"),
        ((4, 2, -1), "seed = -1: must be a whole number"),
        ((4, 2, 0, "yes"), "centre = 'yes': must be True or False"),
    ],
)
def test_hashings_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Hashing(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recall": 1.0}, "recall = 1.0: must be a number above 0 and below 1"),
        ({"recall": "high"}, "recall = 'high': must be a number above 0"),
        ({"similarity": 0.0}, "similarity = 0.0: must be a number above 0 and below 1"),
        ({"blocks": 0}, "blocks = 0: must be a whole number from 1"),
        ({"dim": 1.5}, "dim = 1.5: must be a whole number"),
        ({"common": 0.95}, "common = 0.95: must be below similarity = 0.9"),
    ],
)
def test_choices_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_hashing(**{"recall": 0.9, "similarity": 0.9, "blocks": 1000, **arguments})
    with pytest.raises(InputError, match=r"similarity = 1.5: must be a number from -1 to 1"):
        Hashing(2, 2).recall(1.5)
