"""Invariants of fusion under the options that the other files look into one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from strategies import decided, full_blocks, layers, on_every_backend, rearranged

from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import UNUSED, PagedLayer
from ratedist.kernels.restore import read_blocks
from ratedist.kernels.rotary import Rotary

ROTARY = Rotary.from_base(100.0, 2)
OPTIONS: dict[str, dict[str, Any]] = {
    "chunks": {"mode": "cff", "chunk_blocks": 2},
    "chunks without their mean": {"mode": "cff", "chunk_blocks": 1, "centre": "layer"},
    "capped": {"max_sharers": 3, "max_absorbed_share": 0.5},
    "unturned": {"rotary": ROTARY},
    "without a mean per position": {"centre": "position", "variant": "tree"},
    "unturned without a mean": {"rotary": ROTARY, "centre": "layer", "criterion": "both"},
    "components": {"variant": "components", "criterion": "mean"},
    "centroids": {"variant": "centroid"},
    "unturned centroids without a mean": {"variant": "centroid", "rotary": ROTARY, "centre": "layer"},
}
options = st.sampled_from(sorted(OPTIONS))


@on_every_backend(layers(), st.floats(-0.5, 0.95), options, share=0.8)
def test_partly_filled_blocks_and_what_is_stored_are_left_alone(
    backend: str, layer: PagedLayer, threshold: float, name: str
) -> None:
    before = [tensor.clone() for tensor in (layer.k, layer.v, layer.table.entries)]
    fusion = fuse(layer, threshold=threshold, backend=backend, **OPTIONS[name])
    for tensor, copy in zip((layer.k, layer.v, layer.table.entries), before, strict=True):
        assert torch.equal(tensor.contiguous().view(torch.uint8), copy.contiguous().view(torch.uint8))
    max_blocks = layer.table.entries.shape[1]
    flat, entries = fusion.representative.flatten(), fusion.layer.table.entries
    for request, length in enumerate(layer.table.lengths.tolist()):
        used = -(-length // layer.table.block_size)
        assert bool((entries[request, used:] == UNUSED).all())
        assert bool((fusion.representative[request, used:] == -1).all())
        if length % layer.table.block_size:
            a = request * max_blocks + used - 1
            assert (flat == a).nonzero().flatten().tolist() == [a]
            for part, pool in (("k", layer.k), ("v", layer.v)):
                stored = pool[int(layer.table.entries.flatten()[a])].float()
                read = read_blocks(fusion.layer, part, torch.tensor([a]))[0]
                torch.testing.assert_close(read, stored, rtol=0, atol=0, equal_nan=True)
    # Kept and absorbed make the total, and no block is shared across domains.
    logical = full_blocks(layer)
    roots = {a: int(flat[a]) for a in logical}
    assert fusion.kept == len(set(roots.values())) == sum(a == b for a, b in roots.items())
    assert fusion.kept + fusion.absorbed == fusion.candidates == len(logical)
    domains = layer.table.domains.tolist()
    for a, b in roots.items():
        assert domains[a // max_blocks] == domains[b // max_blocks]
        assert "mode" not in OPTIONS[name] or a // max_blocks == b // max_blocks
    # Nothing that is not finite is read.
    for part in ("k", "v"):
        assert bool(torch.isfinite(read_blocks(fusion.layer, part, torch.tensor(logical).long())).all())


@on_every_backend(layers(ties=False), st.floats(0.3, 0.95), options, st.integers(0, 99), share=0.5)
def test_padding_and_the_order_of_the_pool_do_not_matter_either(
    backend: str, layer: PagedLayer, threshold: float, name: str, seed: int
) -> None:
    # With a margin for scores that are not those of the blocks as they are stored.
    assume(decided(layer, threshold, OPTIONS[name].get("criterion", "keys")))
    fusion = fuse(layer, threshold=threshold, backend=backend, **OPTIONS[name])
    moved = fuse(rearranged(layer, seed), threshold=threshold, backend=backend, **OPTIONS[name])
    max_blocks, wide = layer.table.entries.shape[1], moved.representative.shape[1]
    logical = full_blocks(layer)
    there = {a: (2 * (a // max_blocks) + 1) * wide + a % max_blocks for a in logical}
    for a in logical:
        b = there[a]
        assert there[int(fusion.representative.flatten()[a])] == int(moved.representative.flatten()[b])
        assert float(fusion.score.flatten()[a]) == pytest.approx(
            float(moved.score.flatten()[b]), abs=1e-5, rel=1e-5
        )
        for part in ("k", "v"):
            one, two = (
                read_blocks(fused.layer, part, torch.tensor([c])) for fused, c in ((fusion, a), (moved, b))
            )
            torch.testing.assert_close(
                one, two, rtol=1e-4, atol=1e-5 + 1e-2 * (layer.k.dtype != torch.float32)
            )
