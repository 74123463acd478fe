"""Small fusions worked out by hand, on every implementation."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import ASIDE, COS40, direction, one_token_layer
from caches import generator
from strategies import EXAMPLES

from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.restore import block_errors
from ratedist.kernels.rotary import Rotary

COS70 = math.cos(math.radians(70))


@pytest.fixture(params=EXAMPLES)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_leader_takes_the_best_kept_block(backend: str) -> None:
    layer = one_token_layer([[direction(0), direction(50)], [direction(30)], [direction(24)]])
    fusion = fuse(layer, threshold=COS40, backend=backend)
    # 30° is 20° from the second block, 24° is 24° from the first; block 2 (30°) is gone by then.
    assert fusion.representative.tolist() == [[0, 1], [1, -1], [0, -1]]
    assert fusion.layer.table.entries.tolist() == [[0, 1], [1, -1], [0, -1]]
    expected = [[1, 1], [math.cos(math.radians(20)), 0], [math.cos(math.radians(24)), 0]]
    torch.testing.assert_close(fusion.score, torch.tensor(expected))
    assert (fusion.candidates, fusion.kept, fusion.absorbed, fusion.exact) == (4, 2, 2, 0)
    assert fusion.compression == 2.0


def test_a_kept_block_is_only_met_by_later_requests(backend: str) -> None:
    layer = one_token_layer([[direction(0), direction(1)], [direction(2)]])
    assert fuse(layer, threshold=COS40, backend=backend).representative.tolist() == [[0, 1], [1, -1]]


def test_chain_in_leader_and_tree(backend: str) -> None:
    # 0°, one aside, 35°, 70°: 35° is near both ends, which are not near each other.
    layer = one_token_layer([[direction(0)], [ASIDE], [direction(35)], [direction(70)]])
    leader = fuse(layer, threshold=COS40, variant="leader", backend=backend)
    assert leader.representative.flatten().tolist() == [0, 1, 0, 3]
    # In the tree 70° joins 35° in their own half, and is taken along to 0°: below the threshold.
    tree = fuse(layer, threshold=COS40, variant="tree", backend=backend)
    assert tree.absorber.flatten().tolist() == [0, 1, 0, 2]
    assert tree.representative.flatten().tolist() == [0, 1, 0, 0]
    assert float(tree.score[3, 0]) == pytest.approx(COS70, abs=1e-6)
    assert float(tree.score[3, 0]) < COS40
    assert (tree.kept, leader.kept) == (2, 3)
    # What is read back is the final representative: e² = 2 - 2 cos 70°.
    assert float(block_errors(layer, tree.layer)[0][3, 0]) == pytest.approx(2 - 2 * COS70, abs=1e-5)


def test_an_odd_unit_of_the_tree_passes_up_unchanged(backend: str) -> None:
    # (0 1) (2 3) 4: the fifth unit meets all four at the root; 35° went to 0° before it came.
    layer = one_token_layer(
        [[direction(0)], [ASIDE], [direction(35)], [[0.0, 0.0, 0.0, 1.0]], [direction(70)]]
    )
    tree = fuse(layer, threshold=COS40, variant="tree", backend=backend)
    assert tree.representative.flatten().tolist() == [0, 1, 0, 3, 4]


def test_requests_without_a_full_block_do_not_shift_the_pairs(backend: str) -> None:
    layer = one_token_layer([[direction(0)], [], [ASIDE], [], [], [direction(35)], [direction(70)]])
    tree = fuse(layer, threshold=COS40, variant="tree", backend=backend)
    assert tree.absorber.flatten().tolist() == [0, -1, 2, -1, -1, 0, 5]


def test_ties_go_to_the_lowest_logical_index(backend: str) -> None:
    # Scaled by powers of two, so that the scores are equal to the last bit.
    layer = one_token_layer([[direction(10, 2.0), direction(10, 0.5), direction(10)], [direction(20)]])
    assert fuse(layer, threshold=COS40, backend=backend).representative[1, 0] == 0


@pytest.mark.parametrize("place", [1, 2, 3, 4, 6])
def test_ties_between_requests_go_to_the_earlier_one(backend: str, place: int) -> None:
    # 20° to either side of the last block, and 40° from each other.
    units = [[[0.0, 0.0, 1.0, float(n)]] for n in range(8)]
    units[0], units[place], units[7] = [direction(20)], [direction(-20)], [direction(0)]
    fusion = fuse(one_token_layer(units), threshold=math.cos(math.radians(30)), backend=backend)
    assert int(fusion.representative[7, 0]) == 0


def test_no_score_exceeds_one(backend: str) -> None:
    vectors = torch.randn(8 if backend == "triton" else 64, 4, generator=generator(0))
    copies = [[[x * scale for x in vector] for vector in vectors.tolist()] for scale in (3.0, 0.7)]
    fusion = fuse(one_token_layer(copies), threshold=0.99, backend=backend)
    assert fusion.kept <= len(vectors)
    assert bool((fusion.score <= 1).all())
    torch.testing.assert_close(fusion.score, torch.ones_like(fusion.score))


def test_a_score_must_exceed_the_threshold(backend: str) -> None:
    # The similarity is exactly one half.
    layer = one_token_layer([[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]])
    for variant in ("leader", "tree"):
        assert fuse(layer, threshold=0.5, variant=variant, backend=backend).kept == 2
        assert fuse(layer, threshold=0.4999, variant=variant, backend=backend).kept == 1


def test_threshold_one_shares_nothing_that_is_only_parallel(backend: str) -> None:
    layer = one_token_layer([[direction(10)], [direction(10, 2.0)]])
    for variant in ("leader", "tree"):
        assert fuse(layer, threshold=1.0, variant=variant, backend=backend).kept == 2
        assert fuse(layer, threshold=0.999, variant=variant, backend=backend).kept == 1


def test_both_is_the_lower_of_the_two_similarities(backend: str) -> None:
    layer = one_token_layer(
        [[direction(0), direction(30)], [direction(10)]], [[direction(50), direction(0)], [direction(5)]]
    )
    keys = fuse(layer, threshold=COS40, criterion="keys", backend=backend)
    both = fuse(layer, threshold=COS40, criterion="both", backend=backend)
    assert int(keys.representative[1, 0]) == 0
    assert int(both.representative[1, 0]) == 1  # 20° and 5°, against 10° and 45°
    assert float(both.score[1, 0]) == pytest.approx(math.cos(math.radians(20)), abs=1e-6)
    # The values can be the lower ones too.
    turned = PagedLayer(layer.v, layer.k, layer.table)
    both = fuse(turned, threshold=COS40, criterion="both", backend=backend)
    assert float(both.score[1, 0]) == pytest.approx(math.cos(math.radians(20)), abs=1e-6)


def test_blocks_of_zeros_are_similar_to_nothing(backend: str) -> None:
    zero = [0.0, 0.0, 0.0, 0.0]
    layer = one_token_layer([[zero], [direction(0)], [zero]])
    fusion = fuse(layer, threshold=0.5, backend=backend)
    assert fusion.kept == 3
    # Below 0 they fuse by the letter: the score 0 exceeds the threshold, and no scale is infinite.
    for scale in ("own-norm", "raw", "projection"):
        fusion = fuse(layer, threshold=-0.5, scale=scale, backend=backend)
        assert fusion.representative.flatten().tolist() == [0, 0, 0]
        assert fusion.score.flatten().tolist() == [1.0, 0.0, 0.0]
        assert bool(torch.isfinite(fusion.layer.k_scale).all())


def test_scales_of_the_three_rules(backend: str) -> None:
    layer = one_token_layer(
        [[direction(0, 2.0)], [direction(30, 3.0)]], [[direction(0, 4.0)], [direction(120, 1.0)]]
    )
    cos30 = math.cos(math.radians(30))
    for scale, k_expected, v_expected in (
        ("own-norm", 1.5, 0.25),
        ("raw", 1.0, 1.0),
        ("projection", 1.5 * cos30, -0.125),
    ):
        fused = fuse(layer, threshold=COS40, scale=scale, backend=backend).layer
        assert fused.k_scale.flatten().tolist() == pytest.approx([1.0, k_expected], rel=1e-6)
        assert fused.v_scale.flatten().tolist() == pytest.approx([1.0, v_expected], rel=1e-6)


def test_duplicates_follow_the_block_they_equal(backend: str) -> None:
    # Blocks 1 and 3 are equal; 1 is absorbed by 0, and 3 with it, with the same scale.
    same = [5.0, 6.0, 7.0, 8.0]
    layer = one_token_layer(
        [[direction(0, 2.0)], [direction(20)], [ASIDE], [direction(20)]],
        [[[1.0, 2.0, 3.0, 4.0]], [same], [[9.0, 1.0, 1.0, 1.0]], [same]],
    )
    fusion = fuse(layer, threshold=COS40, backend=backend)
    assert fusion.representative.flatten().tolist() == [0, 0, 2, 0]
    assert fusion.absorber.flatten().tolist() == [0, 0, 2, 1]
    assert (fusion.kept, fusion.exact) == (2, 1)
    assert fusion.layer.k_scale.flatten().tolist() == pytest.approx([1.0, 0.5, 1.0, 0.5])
    # At threshold 1 block 3 shares with block 1, scale exactly 1, score 1.
    fusion = fuse(layer, threshold=1.0, backend=backend)
    assert fusion.representative.flatten().tolist() == [0, 1, 2, 1]
    assert fusion.layer.k_scale.flatten().tolist() == [1.0] * 4
    assert fusion.score.flatten().tolist() == [1.0] * 4


def test_duplicates_within_one_request_stay_apart(backend: str) -> None:
    one, two = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    layer = one_token_layer([[direction(0), direction(0)], [ASIDE]], [[one, one], [two]])
    fusion = fuse(layer, threshold=1.0, backend=backend)
    assert fusion.representative.tolist() == [[0, 1], [2, -1]]
    # One more of another request, and the whole group shares.
    layer = one_token_layer([[direction(0), direction(0)], [direction(0)]], [[one, one], [one]])
    fusion = fuse(layer, threshold=1.0, backend=backend)
    assert fusion.representative.tolist() == [[0, 0], [0, -1]]
    assert (fusion.kept, fusion.exact) == (1, 2)


def test_equal_keys_with_other_values_are_no_duplicates(backend: str) -> None:
    one, two = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 5.0]
    layer = one_token_layer([[direction(0)], [direction(0)]], [[one], [two]])
    assert fuse(layer, threshold=1.0, backend=backend).kept == 2


def test_duplicates_of_another_domain_stay_apart(backend: str) -> None:
    one = [1.0, 2.0, 3.0, 4.0]
    layer = one_token_layer([[direction(0)], [direction(0)]], [[one], [one]], domains=[3, 7])
    for variant in ("leader", "tree"):
        assert fuse(layer, threshold=-1.0, variant=variant, backend=backend).kept == 2


def test_scales_multiply_when_a_fused_layer_is_fused(backend: str) -> None:
    layer = one_token_layer([[direction(0, 2.0)], [direction(20, 3.0)], [direction(20, 3.0)]])
    table = BlockTable(
        torch.tensor([[0], [1], [1]], dtype=torch.int32), layer.table.lengths, layer.table.domains, 1
    )
    scale = torch.tensor([[1.0], [1.0], [0.5]])
    fusion = fuse(FusedLayer(layer.k, layer.v, table, scale, 2 * scale), threshold=COS40, backend=backend)
    assert fusion.representative.flatten().tolist() == [0, 0, 0]
    assert fusion.layer.k_scale.flatten().tolist() == pytest.approx([1.0, 1.5, 0.75])
    v_factor = float(layer.v[1].norm() / layer.v[0].norm())
    assert fusion.layer.v_scale.flatten().tolist() == pytest.approx([2.0, 2 * v_factor, v_factor])


def test_empty_batches(backend: str) -> None:
    for requests, max_blocks in ((0, 0), (0, 3), (2, 0), (2, 3)):
        table = BlockTable(
            torch.full((requests, max_blocks), -1, dtype=torch.int32),
            torch.zeros(requests, dtype=torch.int64),
            torch.zeros(requests, dtype=torch.int64),
            2,
        )
        for blocks in (0, 4):
            pool = torch.full((blocks, 2, 1, 3), float("nan"))
            for options in (
                {"variant": "leader"},
                {"variant": "tree", "criterion": "distance"},
                {"variant": "components", "criterion": "both"},
                {"variant": "centroid"},
                {"mode": "cff", "chunk_blocks": 2},
                {"max_sharers": 2, "max_absorbed_share": 0.5},
                {"centre": "position"},
                {"centre": "layer", "rotary": Rotary.from_base(10.0, 2)},
            ):
                layer = PagedLayer(pool, pool.clone(), table)
                fusion = fuse(layer, threshold=0.5, backend=backend, **options)  # type: ignore[arg-type]
                assert (fusion.candidates, fusion.kept, fusion.exact) == (0, 0, 0)
                assert fusion.compression == 1.0
                assert fusion.representative.shape == (requests, max_blocks)
