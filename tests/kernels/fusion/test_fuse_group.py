"""Groups of layers: one mapping by all of them, and each layer's own scales."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from by_hand import direction, one_token_layer
from hypothesis import assume
from hypothesis import strategies as st
from strategies import CLOSE, criteria, full_blocks, joint_oracle, layers, on_every_backend, scales, sisters
from wishes import KINDS, wish

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.fusion.group import fuse_group
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.kernels.restore import block_errors, read_blocks

variants = st.sampled_from(["leader", "tree", "components"])


@on_every_backend(
    layers(ties=False),
    st.floats(0.2, 0.9),
    variants,
    criteria,
    scales,
    st.integers(1, 3),
    st.sampled_from([None, None, *KINDS]),
    st.integers(0, 99),
    share=0.6,
)
def test_one_mapping_by_all_layers(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    scale: str,
    count: int,
    kind: str | None,
    seed: int,
) -> None:
    assume((variant, criterion) != ("components", "distance"))
    group = sisters(layer, count, seed)
    transform: dict[str, Any] = {} if kind is None else wish(layer, kind, seed).options
    options = FuseOptions(threshold, variant, criterion, scale, **transform)
    fusions = fuse_group(group, options, backend=backend)
    assert len(fusions) == count
    for fusion, one in zip(fusions, group, strict=True):
        assert fusion.layer.k is one.k
        assert torch.equal(fusion.layer.table.entries, fusions[0].layer.table.entries)
        for name in ("representative", "absorber", "score"):
            assert torch.equal(getattr(fusion, name), getattr(fusions[0], name))
        assert (fusion.kept, fusion.exact) == (fusions[0].kept, fusions[0].exact)
    logical = full_blocks(layer)
    flat = fusions[0].representative.flatten()
    if kind is None:
        ids = layer.table.entries.flatten()[logical].long()
        score = joint_oracle([(one.k, one.v) for one in group], ids, ids, criterion)
        absorbed = [a for a in logical if float(fusions[0].score.flatten()[a]) != 1.0]
        for a in absorbed:
            wanted = float(score[logical.index(a), logical.index(int(flat[a]))])
            assert float(fusions[0].score.flatten()[a]) == pytest.approx(wanted, abs=CLOSE, rel=CLOSE)
            if variant == "leader":
                assert wanted > threshold - CLOSE
        above = score.flatten()[(score.flatten() - threshold).abs() < CLOSE]
        rivals = [
            b - a
            for row in score
            for a, b in pairwise(sorted(float(s) for s in row if threshold < s < 1 - CLOSE))
        ]
        assume(len(above) == 0 and all(gap > CLOSE or gap == 0 for gap in rivals))
    elif count > 1:
        return
    for fusion, expected in zip(fusions, fuse_group(group, options, backend="reference"), strict=True):
        if kind is None:
            assert torch.equal(fusion.representative, expected.representative)
            torch.testing.assert_close(fusion.layer.k_scale, expected.layer.k_scale, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(fusion.layer.v_scale, expected.layer.v_scale, rtol=1e-4, atol=1e-5)
    if count == 1:
        alone = fuse(
            layer,
            threshold=threshold,
            variant=variant,
            criterion=criterion,
            scale=scale,
            backend=backend,
            **transform,
        )
        assert torch.equal(alone.representative, fusions[0].representative)
        here = torch.tensor(logical, dtype=torch.int64)
        assert torch.equal(read_blocks(alone.layer, "k", here), read_blocks(fusions[0].layer, "k", here))


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_chains_and_centroids_of_a_group_by_hand(backend: str) -> None:
    """A chain of links by the mean over two layers, in neither of which it is one; and its centroids."""
    layers = [
        one_token_layer([[direction(0)], [direction(20)], [direction(70)]]),
        one_token_layer([[direction(0)], [direction(50, 3.0)], [direction(60)]]),
    ]
    cosine = {degrees: math.cos(math.radians(degrees)) for degrees in (10, 20, 50, 60, 70)}
    links = [(cosine[20] + cosine[50]) / 2, (cosine[50] + cosine[10]) / 2]
    assert min(links) > 0.75 > (cosine[70] + cosine[60]) / 2
    for layer in layers:
        assert fuse(layer, threshold=0.75, variant="components", backend=backend).kept == 2
    fusions = fuse_group(layers, FuseOptions(0.75, "components"), backend=backend)
    assert [fusion.representative.flatten().tolist() for fusion in fusions] == [[0, 0, 0]] * 2
    assert float(fusions[0].score[2, 0]) == pytest.approx((cosine[70] + cosine[60]) / 2, abs=1e-6)

    # The first two meet; of each layer half way between them, at the mean of their norms there.
    fusions = fuse_group(layers, FuseOptions(0.75, "centroid"), backend=backend)
    for fusion, degrees, norm in zip(fusions, (10, 25), (1.0, 2.0), strict=True):
        assert fusion.representative.flatten().tolist() == [0, 0, 2]
        stored = fusion.layer.k[-1].flatten()
        torch.testing.assert_close(stored, torch.tensor(direction(degrees, norm)), rtol=1e-5, atol=1e-6)
        wanted = (math.cos(math.radians(10)) + math.cos(math.radians(25))) / 2
        assert float(fusion.score[1, 0]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_group_by_hand(backend: str) -> None:
    # 60° apart in one layer and equal in the other: mean 0.75. Alone the first would not fuse at 0.6.
    layers = [
        one_token_layer([[direction(0, 2.0)], [direction(60)]]),
        one_token_layer([[direction(20)], [direction(20, 3.0)]]),
    ]
    assert fuse(layers[0], threshold=0.6, backend=backend).kept == 2
    fusions = fuse_group(layers, FuseOptions(0.6), backend=backend)
    assert [fusion.kept for fusion in fusions] == [1, 1]
    assert float(fusions[0].score[1, 0]) == pytest.approx(0.75, abs=1e-6)
    # Scales and errors are each layer's own.
    assert [float(fusion.layer.k_scale[1, 0]) for fusion in fusions] == pytest.approx([0.5, 3.0])
    errors = [
        float(block_errors(layer, fusion.layer)[0][1, 0])
        for layer, fusion in zip(layers, fusions, strict=True)
    ]
    assert errors == pytest.approx([1.0, 0.0], abs=1e-6)
    # Byte-equal in one layer alone is no duplicate, in both it is.
    same = one_token_layer([[direction(0)], [direction(0)]], [[direction(5)], [direction(5)]])
    other = one_token_layer([[direction(0)], [direction(90)]], [[direction(5)], [direction(5)]])
    assert [f.kept for f in fuse_group([same, other], FuseOptions(1.0), backend=backend)] == [2, 2]
    assert [f.exact for f in fuse_group([same, same], FuseOptions(1.0), backend=backend)] == [1, 1]


def test_bad_groups() -> None:
    layer = one_token_layer([[direction(0)], [direction(60)]])
    options = FuseOptions(0.5)
    longer = one_token_layer([[direction(0), direction(1)], [direction(60)]])
    table = layer.table
    swapped = BlockTable(table.entries.flip(0), table.lengths, table.domains, 1)
    domains = BlockTable(table.entries, table.lengths, table.domains + torch.tensor([0, 1]), 1)
    for layers_, message in (
        ([], "must be at least one"),
        ([layer, longer], "other lengths in layer 1"),
        ([layer, PagedLayer(layer.k, layer.v, domains)], "other domains in layer 1"),
        ([layer, PagedLayer(layer.k, layer.v, swapped)], "another block table in layer 1"),
        ([layer, PagedLayer(layer.k.half(), layer.v.half(), table)], "torch.float16 on cpu in layer 1"),
        ([layer, fuse(layer, threshold=0.5).layer], "must be PagedLayers"),
    ):
        with pytest.raises(InputError, match=message):
            fuse_group(layers_, options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="options = 'float': must be a FuseOptions"):
        fuse_group([layer], 0.5)  # type: ignore[arg-type]
    broken = one_token_layer([[direction(0)], [[float("nan")] * 4]])
    with pytest.raises(InputError, match="k = nan: layer last, request 1, block 0 holds NaN"):
        fuse_group([layer, broken], options, layer_names=["first", "last"])
    with pytest.raises(InputError, match="2 layers, 1 names"):
        fuse_group([layer, broken], options, layer_names=["first"])
