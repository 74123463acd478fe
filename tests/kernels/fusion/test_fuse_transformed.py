"""Fusion without rotary positions and means: what is matched, what is read, and what is left alone."""

from __future__ import annotations

import re

import pytest
import torch
from caches import generator, make_layer
from closeness import TOLERANCE
from hypothesis import assume
from hypothesis import strategies as st
from strategies import (
    criteria,
    decided,
    full_blocks,
    layers,
    on_every_backend,
    scales,
    variants,
)
from wishes import KINDS, Wish, firsts, wish

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.restore import read_blocks
from ratedist.kernels.rotary import Rotary, rotate

kinds = st.sampled_from(KINDS)
thresholds = st.floats(0.2, 0.95)


@on_every_backend(
    layers(ties=False), thresholds, variants, criteria, scales, kinds, st.integers(0, 1000), share=0.7
)
def test_what_is_read_is_the_representative_in_the_members_place(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    scale: str,
    kind: str,
    seed: int,
) -> None:
    """Scores, scales and reading against float64, block by block; who took no part keeps every bit."""
    asked = wish(layer, kind, seed)
    fusion = fuse(
        layer,
        threshold=threshold,
        variant=variant,
        criterion=criterion,
        scale=scale,
        backend=backend,
        **asked.options,
    )
    assert fusion.layer.k is layer.k
    first, logical = firsts(layer), full_blocks(layer)
    blocks, means = asked.matched()
    score = asked.scores(criterion)
    index = {a: n for n, a in enumerate(logical)}
    flat = fusion.representative.flatten()
    read = {part: read_blocks(fusion.layer, part, torch.tensor(logical).long()) for part in ("k", "v")}
    reading = fusion.layer.reading
    for n, a in enumerate(logical):
        root, own = int(flat[a]), first[a]
        if root == own:
            for part, pool in (("k", layer.k), ("v", layer.v)):
                stored = pool[int(layer.table.entries.flatten()[own])].float()
                assert torch.equal(read[part][n], stored)
            if reading is not None:
                assert reading.shift is None or int(reading.shift.flatten()[a]) == 0
                assert reading.means is None or int(reading.means.add.flatten()[a]) == -1
            continue
        assert reading is not None
        m, r = index[own], index[root]
        assert float(fusion.score.flatten()[a]) == pytest.approx(float(score[m, r]), abs=2e-5, rel=2e-5)
        if variant == "leader":
            assert float(fusion.score.flatten()[a]) > torch.tensor(threshold, dtype=torch.float32)
        for p, (part, pool) in enumerate((("k", layer.k), ("v", layer.v))):
            x, y = blocks[p][m], blocks[p][r]
            factor = {
                "own-norm": x.norm() / y.norm(),
                "raw": torch.tensor(1.0),
                "projection": (x * y).sum() / y.square().sum(),
            }[scale]
            expected = means[p][m] + factor * y
            if part == "k":
                expected = asked.turn(expected, asked.position(own))
            size = (
                float(expected.abs().max())
                + float((factor * y).abs().max())
                + float(pool[int(layer.table.entries.flatten()[root])].abs().max()) * float(factor.abs())
            )
            difference = float((read[part][n].double() - expected).abs().max())
            assert difference <= TOLERANCE[layer.k.dtype] * size


@on_every_backend(
    layers(ties=False), thresholds, variants, criteria, scales, kinds, st.integers(0, 1000), share=0.7
)
def test_transformed_fusion_agrees_with_the_reference(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    variant: str,
    criterion: str,
    scale: str,
    kind: str,
    seed: int,
) -> None:
    asked = wish(layer, kind, seed)
    assume(decided(layer, threshold, criterion, asked.scores(criterion)))
    found = [
        fuse(
            layer,
            threshold=threshold,
            variant=variant,
            criterion=criterion,
            scale=scale,
            backend=one,
            **asked.options,
        )
        for one in (backend, "reference")
    ]
    same_reading(*found)


@on_every_backend(layers(), thresholds, variants, criteria, kinds, st.integers(0, 1000), share=0.3)
def test_domains_do_not_leak_into_each_other(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, kind: str, seed: int
) -> None:
    asked = wish(layer, kind, seed)
    options = {"threshold": threshold, "variant": variant, "criterion": criterion, "backend": backend}
    fusion = fuse(layer, **options, **asked.options)  # type: ignore[arg-type]
    max_blocks = layer.table.entries.shape[1]
    for domain in layer.table.domains.unique().tolist():
        chosen = torch.nonzero(layer.table.domains == domain).flatten()
        table = BlockTable(
            layer.table.entries[chosen],
            layer.table.lengths[chosen],
            layer.table.domains[chosen],
            layer.table.block_size,
        )
        own = dict(asked.options)
        if "starts" in own:
            own["starts"] = own["starts"][chosen]
        alone = fuse(PagedLayer(layer.k, layer.v, table), **options, **own)  # type: ignore[arg-type]
        assert torch.equal(alone.layer.table.entries, fusion.layer.table.entries[chosen])
        assert torch.equal(alone.layer.k_scale, fusion.layer.k_scale[chosen])
        here = torch.tensor(full_blocks(alone.layer), dtype=torch.int64)  # type: ignore[arg-type]
        there = chosen[here // max_blocks] * max_blocks + here % max_blocks
        for part in ("k", "v"):
            assert torch.equal(read_blocks(alone.layer, part, here), read_blocks(fusion.layer, part, there))


@on_every_backend(
    layers(ties=False),
    thresholds,
    st.sampled_from(["leader", "tree", "centroid"]),
    criteria,
    st.sampled_from(["half", "interleaved"]),
    st.integers(0, 99),
    share=0.4,
)
def test_positions_do_not_matter_once_they_are_removed(
    backend: str, layer: PagedLayer, threshold: float, variant: str, criterion: str, style: str, seed: int
) -> None:
    """Keys turned to positions fuse as they do unturned, and are read turned."""
    plain = separate_blocks(layer, seed)
    assume(decided(plain, threshold, criterion))
    head_dim = layer.k.shape[3]
    rotary = Rotary.from_base(100.0, head_dim // 2 * 2, style)
    starts = torch.randint(0, 3000, (layer.table.requests,), generator=generator(seed))
    asked = Wish(plain, {"rotary": rotary, "starts": starts})
    used = torch.nonzero(
        (torch.arange(plain.table.entries.shape[1]) < plain.table.used_blocks[:, None]).flatten()
    ).flatten()
    tokens = torch.tensor([asked.position(a) for a in used.tolist()], dtype=torch.int64)
    ids = plain.table.entries.flatten()[used].long()
    k = plain.k.clone()
    k[ids] = rotate(plain.k[ids], tokens, rotary)
    turned = PagedLayer(k, plain.v, plain.table)

    options = {"threshold": threshold, "variant": variant, "criterion": criterion, "backend": backend}
    expected = fuse(plain, **options)  # type: ignore[arg-type]
    fusion = fuse(turned, **options, rotary=rotary, starts=starts)  # type: ignore[arg-type]
    assert torch.equal(fusion.representative, expected.representative)
    assert torch.equal(fusion.layer.table.entries, expected.layer.table.entries)
    torch.testing.assert_close(fusion.score, expected.score, rtol=1e-5, atol=1e-5)
    logical = torch.tensor(full_blocks(plain), dtype=torch.int64)
    positions = torch.tensor([asked.position(a) for a in logical.tolist()], dtype=torch.int64)
    torch.testing.assert_close(
        read_blocks(fusion.layer, "k", logical),
        rotate(read_blocks(expected.layer, "k", logical), positions, rotary),
        rtol=1e-4,
        atol=2e-5,
    )
    torch.testing.assert_close(
        read_blocks(fusion.layer, "v", logical),
        read_blocks(expected.layer, "v", logical),
        rtol=1e-5,
        atol=1e-6,
    )


def same_reading(a: Fusion, b: Fusion) -> None:
    assert torch.equal(a.representative, b.representative)
    assert torch.equal(a.absorber, b.absorber)
    torch.testing.assert_close(a.score, b.score, rtol=1e-5, atol=1e-5)
    logical = torch.tensor(full_blocks(a.layer), dtype=torch.int64)  # type: ignore[arg-type]
    for part in ("k", "v"):
        one, two = read_blocks(a.layer, part, logical), read_blocks(b.layer, part, logical)
        size = float(two.abs().max()) if len(logical) else 0.0
        # A mean may round the other way, by a unit of the dtype in the last place.
        torch.testing.assert_close(one, two, rtol=0, atol=TOLERANCE[a.layer.k.dtype] * size + 1e-5)


def separate_blocks(layer: PagedLayer, seed: int) -> PagedLayer:
    """Float32, every block by itself, and no two equal: copies differ by a few percent."""
    used = torch.arange(layer.table.entries.shape[1]) < layer.table.used_blocks[:, None]
    entries = torch.full_like(layer.table.entries, UNUSED)
    entries[used] = torch.arange(int(used.sum()), dtype=torch.int32)
    ids = layer.table.entries[used].long()
    random = generator(seed)
    pools = []
    for pool in (layer.k, layer.v):
        blocks = pool[ids].float()
        size = blocks.nan_to_num().flatten(1).norm(dim=1) / blocks[:1].numel() ** 0.5
        pools.append(blocks + 0.03 * size[:, None, None, None] * torch.randn(blocks.shape, generator=random))
    table = BlockTable(entries, layer.table.lengths, layer.table.domains, layer.table.block_size)
    return PagedLayer(pools[0], pools[1], table)


def test_centring_finds_what_a_common_mean_hides() -> None:
    """Two blocks that differ from the mean in opposite ways are near by their mean alone."""
    mean = torch.tensor([10.0, 0.0, 0.0, 0.0])
    parts = torch.eye(4)[[1, 1, 2, 2]] + 0.01 * torch.randn(4, 4, generator=generator(3))
    k = (mean + parts).view(4, 1, 1, 4)
    table = BlockTable(
        torch.arange(4, dtype=torch.int32).view(4, 1), torch.ones(4).long(), torch.zeros(4).long(), 1
    )
    layer = PagedLayer(k, k.clone() + 1, table)
    assert fuse(layer, threshold=0.9).kept == 1
    for centre in ("layer", "position"):
        fusion = fuse(layer, threshold=0.9, centre=centre)
        assert fusion.representative.flatten().tolist() == [0, 0, 2, 2]
        assert fusion.layer.reading is not None
        assert fusion.layer.reading.means is not None
        # All of them are in one group, and one mean is stored.
        assert len(fusion.layer.reading.means.k) == 1


def test_means_in_use_alone_are_stored() -> None:
    made = make_layer((40, 40, 40), fused=False)
    assert isinstance(made, PagedLayer)
    assert fuse(made, threshold=1.0, centre="position").layer.reading is None
    fusion = fuse(made, threshold=-0.5, centre="position")
    reading = fusion.layer.reading
    assert reading is not None
    assert reading.means is not None
    used = torch.cat([reading.means.add.flatten(), reading.means.subtract.flatten()]).unique()
    assert used.tolist() == list(range(-1, len(reading.means.k)))


def test_bad_transformations() -> None:
    layer = make_layer((9, 0, 4), head_dim=6, fused=False)
    assert isinstance(layer, PagedLayer)
    rotary = Rotary.from_base(100.0, 6)
    starts = torch.zeros(3, dtype=torch.int64)
    for options, message in (
        ({"centre": "mean"}, "centre = 'mean': must be one of position, layer, or None"),
        ({"rotary": rotary, "centre": "position"}, "use centre='layer' with rotary"),
        ({"mode": "cff", "chunk_blocks": 1, "centre": "position"}, "would store a mean for every block"),
        (
            {"mode": "cff", "chunk_blocks": 1, "centre": "layer", "rotary": rotary},
            "would store a mean for every block",
        ),
        ({"rotary": 100.0}, "rotary = 'float': must be a ratedist.kernels.rotary.Rotary"),
        ({"rotary": Rotary.from_base(9.0, 8)}, r"rotary = 8: turns more channels than a head has \(6\)"),
        ({"starts": starts}, "starts = 'given': goes with rotary"),
        ({"rotary": rotary, "starts": [0, 0, 0]}, "starts = 'list': must be an int64 tensor"),
        ({"rotary": rotary, "starts": starts[1:]}, r"must be int64 of shape \(3,\)"),
        ({"rotary": rotary, "starts": starts.int()}, r"must be int64 of shape \(3,\)"),
        ({"rotary": rotary, "starts": starts + 2**31}, "must lie within"),
    ):
        with pytest.raises(InputError, match=message):
            fuse(layer, threshold=0.5, **options)  # type: ignore[arg-type]
    fused = fuse(layer, threshold=0.5).layer
    for options in ({"rotary": rotary}, {"centre": "layer"}):
        with pytest.raises(InputError, match=re.escape("fuse the layer before that fusion")):
            fuse(fused, threshold=0.5, **options)  # type: ignore[arg-type]
    many = make_layer((40, 40, 40), head_dim=6, fused=False)
    assert isinstance(many, PagedLayer)
    again = fuse(many, threshold=-1.0, rotary=rotary).layer
    assert isinstance(again, FusedLayer)
    with pytest.raises(InputError, match="a FusedLayer with a reading"):
        fuse(again, threshold=0.5)


def test_a_norm_that_centring_puts_beyond_float32() -> None:
    k = torch.full((3, 1, 1, 4), 8e18)
    k[1:] = -k[1:]
    table = BlockTable(
        torch.arange(3, dtype=torch.int32).view(3, 1), torch.ones(3).long(), torch.zeros(3).long(), 1
    )
    layer = PagedLayer(k, torch.randn(3, 1, 1, 4, generator=generator(0)), table)
    with pytest.raises(InputError, match=r"layer 3, request 0, block 0 has a norm that float32 cannot hold"):
        fuse(layer, threshold=0.5, centre="layer", layer_name=3)
