"""The error that each scale rule leaves is the formula's (ratedist.kernels.fusion.scales.SCALES)."""

from __future__ import annotations

import pytest
import torch
from caches import generator
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, full_blocks, layers, scales, similarities, vectors

from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.fusion.scales import SCALES, member_scales, row_products
from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.restore import block_errors


def formula(rule: str, similarity: float, norm: float, representative_norm: float) -> float:
    """Squared relative error of the rules, as docs/theory.md derives them."""
    ratio = representative_norm / norm
    return {
        "own-norm": 2 - 2 * similarity,
        "raw": 1 + ratio**2 - 2 * ratio * similarity,
        "projection": 1 - similarity**2,
    }[rule]


@given(layers(ties=False), st.floats(0.3, 0.95), st.sampled_from(["leader", "tree"]), scales)
def test_error_of_each_rule(layer: PagedLayer, threshold: float, variant: str, scale: str) -> None:
    """Holds for keys and values alike: the similarity of the values is whatever the keys' match makes it."""
    fusion = fuse(layer, threshold=threshold, variant=variant, scale=scale, backend="cpu")
    errors = block_errors(layer, fusion.layer)
    logical = full_blocks(layer)
    for pool, error in zip((layer.k, layer.v), errors, strict=True):
        similarity = similarities(pool, layer.table.entries, logical)
        norm = vectors(pool, layer.table.entries, logical).norm(dim=1)
        for n, a in enumerate(logical):
            root = int(fusion.representative.flatten()[a])
            m = logical.index(root)
            expected = (
                0.0 if root == a else formula(scale, float(similarity[n, m]), float(norm[n]), float(norm[m]))
            )
            assert float(error.flatten()[a]) == pytest.approx(expected, abs=2e-5 * max(1.0, expected))


@pytest.mark.parametrize("rule", SCALES)
def test_projection_leaves_the_least_error(rule: str) -> None:
    pool = torch.randn(40, 2, 2, 4, generator=generator(0))
    members, representatives = torch.arange(20), torch.arange(20, 40)
    norm = pool.flatten(1).norm(dim=1)

    def error(scale: torch.Tensor) -> torch.Tensor:
        back = scale[:, None] * pool[representatives].flatten(1)
        return (back - pool[members].flatten(1)).square().sum(1)

    best = error(member_scales(pool, norm, members, representatives, "projection"))
    scale = member_scales(pool, norm, members, representatives, rule)
    assert bool((error(scale) >= best - 1e-5).all())
    for change in (0.99, 1.01):
        moved = error(change * member_scales(pool, norm, members, representatives, "projection"))
        assert bool((moved >= best - 1e-6).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_products_in_chunks(dtype: torch.dtype) -> None:
    pool = torch.randn(300, 3, 2, 5, generator=generator(1)).to(dtype)
    left = torch.randint(300, (500,), generator=generator(2))
    right = torch.randint(300, (500,), generator=generator(3))
    expected = (pool.double()[left] * pool.double()[right]).flatten(1).sum(1)
    torch.testing.assert_close(row_products(pool, left, right).double(), expected, rtol=0, atol=2e-5)


def test_representatives_of_zeros() -> None:
    pool = torch.zeros(2, 1, 1, 3)
    pool[1] = 1.0
    norm = pool.flatten(1).norm(dim=1)
    for rule, expected in (("own-norm", 0.0), ("projection", 0.0), ("raw", 1.0)):
        assert member_scales(pool, norm, torch.tensor([1]), torch.tensor([0]), rule).tolist() == [expected]


def test_large_and_small_norms_keep_their_scale() -> None:
    """The square of a norm may leave float32's range where the scale does not."""
    pool = torch.ones(3, 1, 1, 4)
    pool[1] *= 1e-15
    pool[2] *= 4e18
    norm = pool.flatten(1).norm(dim=1)
    for rule in ("own-norm", "projection"):
        found = member_scales(pool, norm, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), rule)
        torch.testing.assert_close(found, torch.tensor([1e15, 0.25e-18, 0.25e-33]), rtol=1e-5, atol=0)
