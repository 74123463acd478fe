"""A threshold per call of a resident cache, and probes of what would have been absorbed."""

from __future__ import annotations

import pytest
import torch
from caches import generator
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.resident.layer import ResidentLayer
from ratedist.kernels.resident.pool import BlockPool
from ratedist.kernels.restore import restore_blocks

BLOCK, HEADS, DIM = 2, 1, 3


def resident(threshold: float, **options: str) -> ResidentLayer:
    return ResidentLayer(BlockPool(64, BLOCK, HEADS, DIM), threshold=threshold, **options)


def same(*values: float) -> Tensor:
    """One block of which all tokens hold the same vector."""
    return torch.tensor(values).expand(BLOCK, HEADS, DIM).clone()


NORTH, BETWEEN = same(1.0, 0.0, 0.0), same(0.6, 0.8, 0.0)


def test_thresholds_of_calls_are_those_of_caches() -> None:
    """Naming the cache's own threshold in every call changes nothing, and another one is what counts."""
    results = []
    for own, named in ((0.7, None), (0.7, 0.7), (-0.9, 0.7)):
        cache = resident(own)
        random = generator(1)
        absorbed = []
        for _ in range(8):
            k, v = (torch.randn(4 * BLOCK, HEADS, DIM, generator=random) for _ in range(2))
            request = cache.admit(k, v)
            absorbed.append(cache.fuse([request], threshold=named).absorbed)
        results.append((absorbed, cache.layer().table.entries.tolist()))
    assert results[0] == results[1] == results[2]
    assert sum(map(len, results[0][0])) > 3


def test_who_is_absorbed_is_within_the_threshold_of_the_call() -> None:
    cache = resident(0.5)
    random = generator(2)
    counts = []
    for threshold in (0.5, 0.95, 0.2, 0.8, 1.0):
        k, v = (torch.randn(12 * BLOCK, HEADS, DIM, generator=random) for _ in range(2))
        fusion = cache.fuse([cache.admit(k, v)], threshold=threshold)
        assert all(one.score > threshold for one in fusion.absorbed)
        counts.append(len(fusion.absorbed))
    assert counts[-1] == 0
    assert counts[2] > counts[1]


def test_a_duplicate_does_not_inherit_what_the_threshold_forbids() -> None:
    cache = resident(0.5)
    first = cache.admit(NORTH, NORTH)
    member = cache.admit(BETWEEN, 3 * BETWEEN)
    cache.fuse()
    assert cache.layer().table.entries.tolist() == [[0], [0]]
    # At the threshold under which it was absorbed its duplicate follows, above it does not.
    follower = cache.admit(BETWEEN, 3 * BETWEEN)
    fusion = cache.fuse(threshold=0.55, probes=1)
    (one,) = fusion.absorbed
    assert (one.exact, one.score) == (True, pytest.approx(0.6))
    assert [(seen.request, seen.block, seen.score) for seen in fusion.probed] == [(follower, 0, one.score)]
    other = cache.admit(BETWEEN, 3 * BETWEEN)
    fusion = cache.fuse(threshold=0.7)
    assert (fusion.absorbed, fusion.kept) == ((), 1)
    # From then on this one stands for the content, whatever the threshold, without error.
    last = cache.admit(BETWEEN, 3 * BETWEEN)
    (one,) = cache.fuse().absorbed
    assert (one.exact, one.score, one.k_error, one.v_error) == (True, 1.0, 0.0, 0.0)
    tables = cache.layer().table.entries[:, 0].tolist()
    assert tables[:3] == [0, 0, 0]
    assert tables[3] == tables[4] != 0
    # And both go when their readers go, in either order.
    assert [cache.release(request) for request in (other, last, first, member, follower)] == [0, 1, 0, 0, 1]
    assert len(cache._index) == 0
    cache.admit(BETWEEN, 3 * BETWEEN)
    assert cache.fuse().kept == 1


def test_probes_of_duplicates_tell_keys_from_values() -> None:
    cache = resident(0.5)
    for values in (NORTH, same(0.9, 0.1, 0.0), same(0.9, 0.1, 0.0)):
        cache.admit(NORTH if values is NORTH else BETWEEN, values)
    probed = cache.fuse(probes=1).probed
    assert probed[2].k_error == probed[1].k_error == pytest.approx(0.8)
    assert probed[2].v_error == probed[1].v_error == pytest.approx(2 - 2 * 0.9 / 0.82**0.5, rel=1e-4)


def test_twins_join_after_a_content_was_displaced_and_left() -> None:
    """What was absorbed by a twin and then displaced is not looked for when the twins join."""
    cache = resident(0.5)
    twice = torch.cat((NORTH, NORTH))
    cache.admit(twice, twice)
    cache.fuse()
    cache.admit(BETWEEN, BETWEEN)
    cache.fuse()
    alone = cache.admit(BETWEEN, BETWEEN)
    cache.fuse(threshold=0.9)
    cache.release(alone)
    cache.admit(NORTH, NORTH)
    fusion = cache.fuse()
    assert all(one.exact and one.k_error == 0 for one in fusion.absorbed)
    assert len(fusion.absorbed) >= 2


@pytest.mark.parametrize("scale", ["own-norm", "raw", "projection"])
def test_probes_tell_what_absorbing_would_do(scale: str) -> None:
    """At a threshold that absorbs nobody, probes say what one that absorbs everybody then does."""
    random = generator(3)
    k, v = (torch.randn(10 * BLOCK, HEADS, DIM, generator=random) for _ in range(2))
    seen = []
    for threshold in (1.0, -1.0):
        cache = resident(0.0, scale=scale)
        cache.fuse([cache.admit(k[: 5 * BLOCK], v[: 5 * BLOCK])])
        assert {one.score for one in cache.fuse(probes=9).probed} == set()
        request = cache.admit(k[5 * BLOCK :], v[5 * BLOCK :])
        fusion = cache.fuse([request], threshold=threshold, probes=99)
        assert len(fusion.probed) == 5
        assert len(fusion.absorbed) == (0 if threshold == 1 else 5)
        seen.append({one.block: (one.score, one.k_error, one.v_error) for one in fusion.probed})
    assert seen[0] == seen[1]
    layer = cache.layer([request])
    restored = restore_blocks(layer.k, layer.table.entries[0], layer.k_scale[0]).flatten(1)
    expected = k[5 * BLOCK :].reshape(5, -1)
    errors = (restored - expected).square().sum(1) / expected.square().sum(1)
    torch.testing.assert_close(torch.tensor([seen[0][b][1] for b in range(5)]), errors)


def test_probes_are_a_uniform_draw() -> None:
    random = generator(4)
    counts = torch.zeros(6)
    for _ in range(300):
        cache = resident(0.0)
        k = torch.randn(6 * BLOCK, HEADS, DIM, generator=random)
        (fusion,) = [cache.fuse([cache.admit(k, k)], probes=2, generator=random)]
        assert len({one.block for one in fusion.probed}) == 2
        assert all((one.score, one.k_error) == (-float("inf"), 0.0) for one in fusion.probed)
        for one in fusion.probed:
            counts[one.block] += 1
    assert float(((counts - 100) ** 2 / 100).sum()) < 25  # 5 degrees of freedom, shrunk by drawing two


def test_what_is_refused() -> None:
    cache = resident(0.5)
    cache.admit(NORTH, NORTH)
    with pytest.raises(InputError, match=r"threshold = 1.5"):
        cache.fuse(threshold=1.5)
    for probes in (-1, True, 1.5):
        with pytest.raises(InputError, match=r"probes = .*: must be an integer of at least 0"):
            cache.fuse(probes=probes)  # type: ignore[arg-type]
    assert cache.fuse().candidates == 1
