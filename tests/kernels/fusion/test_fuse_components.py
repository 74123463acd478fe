"""Components: chains of scores above the threshold share one block."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import COS40, direction, one_token_layer
from caches import generator
from hypothesis import assume
from hypothesis import strategies as st
from strategies import (
    CLOSE,
    byte_groups,
    full_blocks,
    layers,
    on_every_backend,
    scales,
    score_matrix,
    thresholds,
)

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import PagedLayer

symmetric = st.sampled_from(["keys", "both", "mean"])


def components(layer: PagedLayer, threshold: float, criterion: str) -> dict[int, int]:
    """Lowest block of the component of each candidate, by walking the graph in float64."""
    logical, score = full_blocks(layer), score_matrix(layer, criterion)
    max_blocks = layer.table.entries.shape[1]
    domain = layer.table.domains.tolist()
    first = {a: group[0] for group in byte_groups(layer) for a in group}
    index = {a: n for n, a in enumerate(logical)}
    distinct = [a for a in logical if first.get(a, a) == a]
    lowest: dict[int, int] = {}
    for start in distinct:
        waiting = [] if start in lowest else [start]
        while waiting:
            a = waiting.pop()
            lowest[a] = start
            waiting += [
                b
                for b in distinct
                if b not in lowest
                and a // max_blocks != b // max_blocks
                and domain[a // max_blocks] == domain[b // max_blocks]
                and float(score[index[a], index[b]]) > threshold
            ]
    return {a: lowest[first.get(a, a)] for a in logical}


@on_every_backend(layers(), thresholds, symmetric, scales)
def test_components_are_those_of_the_graph(
    backend: str, layer: PagedLayer, threshold: float, criterion: str, scale: str
) -> None:
    """Of the invariants of a fusion, two do not hold: members need not be within the threshold, and blocks
    of one request can share. Those of the partition and of reading are held here."""
    score, logical = score_matrix(layer, criterion), full_blocks(layer)
    assume(threshold == 1.0 or bool(((score - threshold).abs() > CLOSE).all()))
    fusion = fuse(
        layer, threshold=threshold, variant="components", criterion=criterion, scale=scale, backend=backend
    )
    expected = components(layer, threshold, criterion)
    assert {a: int(fusion.representative.flatten()[a]) for a in logical} == expected
    first = {a: group[0] for group in byte_groups(layer) for a in group}
    for n, a in enumerate(logical):
        root, m = expected[a], logical.index(expected[a])
        alone = root == first.get(a, a)
        wanted = 1.0 if alone else float(score[n, m])
        assert float(fusion.score.flatten()[a]) == pytest.approx(wanted, abs=CLOSE)
        assert int(fusion.layer.table.entries.flatten()[a]) == int(layer.table.entries.flatten()[root])
        if alone or scale == "raw":
            assert float(fusion.layer.k_scale.flatten()[a]) == 1.0
    assert fusion.kept == len(set(expected.values()))
    assert fusion.kept + fusion.absorbed == fusion.candidates
    assert fusion.exact == sum(first.get(a, a) != a for a in logical)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_chain_is_one_component(backend: str) -> None:
    # 30° apart each; the ends of the chain are of one request, and at right angles.
    layer = one_token_layer([[direction(0), direction(90)], [direction(30)], [direction(60)]])
    fusion = fuse(layer, threshold=COS40, variant="components", backend=backend)
    assert fusion.representative.tolist() == [[0, 0], [0, -1], [0, -1]]
    assert float(fusion.score[0, 1]) == pytest.approx(0.0, abs=1e-6)
    # Within a request nothing links.
    layer = one_token_layer([[direction(0), direction(10)]])
    assert fuse(layer, threshold=COS40, variant="components", backend=backend).kept == 2


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_long_chains_in_any_order(backend: str) -> None:
    steps = 40 if backend == "triton" else 300
    order = torch.randperm(steps, generator=generator(1)).tolist()
    degrees = 160 / steps
    layer = one_token_layer([[direction(degrees * n)] for n in order])
    near = math.cos(math.radians(1.5 * degrees))
    assert fuse(layer, threshold=near, variant="components", backend=backend).kept == 1
    # One link taken out.
    cut = [n for n in order if n != steps // 3]
    layer = one_token_layer([[direction(degrees * n)] for n in cut])
    fusion = fuse(layer, threshold=near, variant="components", backend=backend)
    sides = [n < steps // 3 for n in cut]
    assert fusion.representative.flatten().tolist() == [sides.index(side) for side in sides]


def test_what_components_refuse() -> None:
    layer = one_token_layer([[direction(0)]])
    with pytest.raises(InputError, match="criterion = 'distance': asks what a member loses and is not symm"):
        fuse(layer, threshold=0.5, variant="components", criterion="distance")
    for cap in ({"max_sharers": 2}, {"max_absorbed_share": 0.5}):
        with pytest.raises(InputError, match=f"{next(iter(cap))} = .*does not go with variant='components'"):
            fuse(layer, threshold=0.5, variant="components", **cap)  # type: ignore[arg-type]
