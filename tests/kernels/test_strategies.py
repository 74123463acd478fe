"""The layers of the property tests fuse, repeat themselves, and hold the hard cases they promise."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from strategies import byte_groups, decided, full_blocks, layers, score_matrix

from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import PagedLayer

DRAWN = 240


def drawn(**options: bool) -> list[PagedLayer]:
    found: list[PagedLayer] = []

    @settings(max_examples=DRAWN)
    @given(layers(**options))
    def collect(layer: PagedLayer) -> None:
        found.append(layer)

    collect()
    return found


def test_layers_fuse_and_are_hard() -> None:
    found = drawn()
    fusions = {
        variant: [fuse(layer, threshold=0.6, variant=variant, backend="cpu") for layer in found]
        for variant in ("leader", "tree")
    }
    share = {
        "similar blocks are absorbed": [f.absorbed > f.exact for f in fusions["leader"]],
        "half of the blocks are absorbed": [2 * f.absorbed > f.candidates for f in fusions["leader"]],
        "blocks are kept though others fuse": [f.absorbed > 0 and f.kept > 1 for f in fusions["leader"]],
        "exact duplicates": [f.exact > 0 for f in fusions["leader"]],
        "a tree's absorber is absorbed": [
            not torch.equal(f.absorber, f.representative) for f in fusions["tree"]
        ],
        "leader and tree differ": [
            not torch.equal(a.representative, b.representative)
            for a, b in zip(fusions["leader"], fusions["tree"], strict=True)
        ],
        "a tree's member ends below": [
            bool((f.score[f.representative >= 0] < 0.6).any()) for f in fusions["tree"]
        ],
        "sign flips": [bool((score_matrix(layer, "keys") < -0.99).any()) for layer in found],
        "criteria differ": [
            fuse(layer, threshold=0.6, criterion="both", backend="cpu").kept != f.kept
            for layer, f in zip(found, fusions["leader"], strict=True)
        ],
        "partly filled blocks": [
            bool((layer.table.lengths % layer.table.block_size > 0).any()) for layer in found
        ],
        "empty requests": [bool((layer.table.lengths == 0).any()) for layer in found],
        "two domains": [len(layer.table.domains.unique()) > 1 for layer in found],
        "no candidates": [not full_blocks(layer) for layer in found],
        "an aliased table": [
            len(set(used := layer.table.entries.flatten()[full_blocks(layer)].tolist())) < len(used)
            for layer in found
        ],
        "blocks of zeros": [bool((layer.k.flatten(1) == 0).all(1).any()) for layer in found],
    }
    rare = {
        "no candidates",
        "a tree's member ends below",
        "sign flips",
        "a tree's absorber is absorbed",
        "leader and tree differ",
    }
    counts = {what: sum(map(bool, hits)) / len(hits) for what, hits in share.items()}
    scarce = {what: n for what, n in counts.items() if n < (0.02 if what in rare else 0.1)}
    assert not scarce, scarce


def test_layers_without_ties_are_mostly_decided() -> None:
    found = drawn(ties=False)
    assert sum(decided(layer, 0.6, "keys") for layer in found) > 0.7 * len(found)
    assert sum(bool(byte_groups(layer)) for layer in found) > 0.15 * len(found)
