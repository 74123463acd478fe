"""Centroids: groups are matched and read by the mean direction of their members."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from by_hand import direction, one_token_layer
from closeness import TOLERANCE
from hypothesis import assume
from hypothesis import strategies as st
from strategies import CLOSE, criteria, full_blocks, joint_oracle, layers, on_every_backend, scales, sisters
from torch import Tensor
from wishes import KINDS, Wish, firsts, wish

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.fusion.group import fuse_group
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.restore import block_errors, read_blocks


def centroid(members: list[Tensor]) -> Tensor:
    """Float64: the mean direction, normalised, times the mean norm."""
    total = sum((x / x.norm() for x in members), torch.zeros_like(members[0]))
    return total / total.norm() * torch.stack([x.norm() for x in members]).mean()


def grouped(
    layer: PagedLayer,
    first: dict[int, int],
    matched: list[list[Tensor]],
    threshold: float,
    criterion: str,
) -> tuple[dict[int, list[int]], float]:
    """Members of every group by its first block, level by level in float64, and the narrowest decision.

    Args:
        layer: for its requests and domains.
        first: of every candidate the one whose block it takes.
        matched: of every layer the candidates' keys and values as they are matched.
        threshold, criterion: of the fusion.
    """
    logical, max_blocks = full_blocks(layer), layer.table.entries.shape[1]
    index = {a: n for n, a in enumerate(logical)}
    domain = layer.table.domains.tolist()
    members: dict[int, list[int]] = {}
    for a in logical:
        members.setdefault(first[a], []).append(a)
    margin = math.inf

    def middle(part: Tensor, a: int) -> Tensor:
        return centroid([part[index[first[b]]] for b in members[a]])

    for d in sorted(set(domain)):
        requests = sorted({a // max_blocks for a in logical if domain[a // max_blocks] == d})
        units = [[a for a in logical if first[a] == a and a // max_blocks == i] for i in requests]
        while len(units) > 1:
            merged = []
            for left, *rest in (units[n : n + 2] for n in range(0, len(units), 2)):
                right = rest[0] if rest else []
                found: list[tuple[int, int]] = []
                if left and right:
                    centres = [
                        (
                            torch.stack([middle(k, a) for a in left + right]),
                            torch.stack([middle(v, a) for a in left + right]),
                        )
                        for k, v in matched
                    ]
                    rows, cols = torch.arange(len(right)) + len(left), torch.arange(len(left))
                    score = joint_oracle(centres, rows, cols, criterion)
                    margin = min(margin, float((score - threshold).abs().min()))
                    for a, row in zip(right, score, strict=True):
                        top = row.sort(descending=True).values
                        if float(top[0]) > threshold:
                            found.append((a, left[int(row.argmax())]))
                            margin = min(margin, float(top[0] - top[1]) if len(top) > 1 else math.inf)
                for a, b in found:
                    members[b] = sorted(members[b] + members.pop(a))
                merged.append(left + [a for a in right if a in members])
            units = merged
    return members, margin


@on_every_backend(
    layers(ties=False),
    st.floats(0.3, 0.95),
    criteria,
    scales,
    st.sampled_from(["plain", "plain", *KINDS]),
    st.sampled_from([1, 1, 2, 3]),
    st.integers(0, 99),
    share=0.7,
)
def test_groups_read_their_centroid(
    backend: str,
    layer: PagedLayer,
    threshold: float,
    criterion: str,
    scale: str,
    kind: str,
    count: int,
    seed: int,
) -> None:
    """Against float64: who joins whom, the mean direction and norm, scales, scores, and what is read.

    Of one layer, or of several that are fused together. Of the invariants of a fusion, three do not hold: the
    pool is another one, whoever is kept may read a centroid with a scale, and fusing again is refused.
    """
    together = sisters(layer, count, seed)
    wishes = [Wish(one, {}) if kind == "plain" else wish(one, kind, seed) for one in together]
    matched = [asked.matched()[0] for asked in wishes]
    # Without a direction there is nothing to take the mean of.
    assume(all(bool((part.flatten(1).norm(dim=1) > 1e-2).all()) for pair in matched for part in pair))
    # Byte-equal in every layer is byte-equal in one that has the heads of all of them.
    wide_k = torch.cat([one.k[: len(layer.k)] for one in together], dim=2)
    wide_v = torch.cat([one.v[: len(layer.k)] for one in together], dim=2)
    first = firsts(PagedLayer(wide_k, wide_v, layer.table))
    members, margin = grouped(layer, first, matched, threshold, criterion)
    assume(margin > 2 * CLOSE)
    before = [(one.k.clone(), one.v.clone()) for one in together]
    options = FuseOptions(threshold, "centroid", criterion, scale, **wishes[0].options)
    if count == 1:
        fusions = [fuse(layer, **vars(options), backend=backend)]
    else:
        fusions = fuse_group(together, options, backend=backend)
    several = [b for b, group in members.items() if len({first[a] for a in group}) > 1]
    pairs: dict[int, list[tuple[Tensor, Tensor]]] = {a: [] for b in several for a in members[b]}
    ratio = 1.0
    for asked, fusion, old in zip(wishes, fusions, before, strict=True):
        for a, pair, means in read_as_centroids(asked, fusion, old, first, members, several, scale):
            pairs[a].append(pair)
            ratio = max(
                ratio,
                *(float((m[0].norm() + m[1].norm()) / x[0].norm()) for m, x in zip(means, pair, strict=True)),
            )
    row, col = torch.tensor([0]), torch.tensor([1])
    for a, pair_of in pairs.items():
        wanted = float(joint_oracle(pair_of, row, col, criterion).clamp(max=1.0))
        for fusion in fusions:
            assert float(fusion.score.flatten()[a]) == pytest.approx(
                wanted, abs=4 * TOLERANCE[layer.k.dtype] * (1 + abs(wanted)) * ratio
            )


def read_as_centroids(
    asked: Wish,
    fusion: Fusion,
    before: tuple[Tensor, Tensor],
    first: dict[int, int],
    members: dict[int, list[int]],
    several: list[int],
    scale: str,
) -> Iterator[tuple[int, tuple[Tensor, Tensor], list[Tensor]]]:
    """Hold one layer's fusion against its groups.

    Yields:
        Every member of a group of ``several`` blocks; of keys and of values what it is matched as and its
        centroid, (2, ...); and two means of each part.
    """
    layer, logical = asked.layer, full_blocks(asked.layer)
    matched, means = asked.matched()
    representative = fusion.representative.flatten()
    assert {a: int(representative[a]) for a in logical} == {
        a: b for b, group in members.items() for a in group
    }
    assert fusion.kept == len(members)
    assert len(fusion.layer.k) == len(layer.k) + len(several)
    for pool, new, old in zip((layer.k, layer.v), (fusion.layer.k, fusion.layer.v), before, strict=True):
        for same in (pool, new[: len(old)]):
            assert torch.equal(same.contiguous().view(torch.uint8), old.view(torch.uint8))
    domain = layer.table.domains.tolist()
    in_use = {
        (domain[a // layer.table.entries.shape[1]], int(fusion.layer.table.entries.flatten()[a]))
        for a in logical
    }
    assert len(in_use) == fusion.kept

    index = {a: n for n, a in enumerate(logical)}
    read = {part: read_blocks(fusion.layer, part, torch.tensor(logical).long()) for part in ("k", "v")}
    tolerance = TOLERANCE[layer.k.dtype]
    for b, group in members.items():
        for a in group:
            if b not in several:
                for part, pool in (("k", layer.k), ("v", layer.v)):
                    stored = pool[int(layer.table.entries.flatten()[b])].float()
                    assert torch.equal(read[part][index[a]], stored)
                assert float(fusion.score.flatten()[a]) == 1.0
                continue
            pair = []
            for p, (part, values) in enumerate(zip(("k", "v"), matched, strict=True)):
                x = values[index[first[a]]]
                y = centroid([values[index[first[c]]] for c in group])
                pair.append(torch.stack([x, y]))
                factor = {
                    "own-norm": x.norm() / y.norm(),
                    "raw": torch.tensor(1.0),
                    "projection": (x * y).sum() / y.square().sum(),
                }[scale]
                expected = means[p][index[first[a]]] + factor * y
                if part == "k":
                    expected = asked.turn(expected, asked.position(first[a]))
                # Rounded with the mean of the group's first block on it, and scaled after that is off again.
                size = float((means[p][index[b]].abs().max() + y.abs().max()) * factor.abs().clamp(min=1.0))
                difference = (read[part][index[a]].double() - expected).abs().max()
                assert float(difference) <= 2 * tolerance * (size + float(expected.abs().max()))
            yield a, (pair[0], pair[1]), [mean[:2] for mean in means]


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_the_error_of_two_is_the_theorys(backend: str) -> None:
    """Own norm, each member against the centroid of two: e² = 2 - √(2 (1 + s)), whatever the norms."""
    for degrees in (10, 40, 60):
        layer = one_token_layer(
            [[direction(0, 2.0)], [direction(degrees, 0.7)]], [[direction(5)], [direction(5 + degrees, 3.0)]]
        )
        fusion = fuse(layer, threshold=0.2, variant="centroid", backend=backend)
        s = math.cos(math.radians(degrees))
        for error in block_errors(layer, fusion.layer):
            expected = 2 - math.sqrt(2 * (1 + s))
            assert error.flatten().tolist() == pytest.approx([expected] * 2, abs=1e-6)
        # Half way between, at the mean norm.
        stored = fusion.layer.k[-1].flatten()
        wanted = torch.tensor(direction(degrees / 2, 1.35))
        torch.testing.assert_close(stored, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_centroids_by_hand(backend: str) -> None:
    # 0° and 40° meet at 20°, and 35° + 45° at 40°: then 20° and 40° are nearer than 0° and 35° were.
    layer = one_token_layer([[direction(0)], [direction(40)], [direction(35)], [direction(45)]])
    near = math.cos(math.radians(41))
    fusion = fuse(layer, threshold=near, variant="centroid", backend=backend)
    assert fusion.representative.flatten().tolist() == [0, 0, 0, 0]
    assert fusion.absorber.flatten().tolist() == [0, 0, 0, 2]
    # Duplicates count as often as they stand: two at 0°, one at 30°.
    values = [[[1.0, 0.0, 0.0, 0.0]]] * 3
    layer = one_token_layer([[direction(0)], [direction(0)], [direction(30)]], values)
    fusion = fuse(layer, threshold=0.5, variant="centroid", backend=backend)
    angle = math.degrees(
        math.atan2(float(fusion.layer.k[-1].flatten()[1]), float(fusion.layer.k[-1].flatten()[0]))
    )
    assert angle == pytest.approx(math.degrees(math.atan2(0.5, 2 + math.cos(math.radians(30)))), abs=1e-3)
    assert fusion.exact == 1
    # Alone with its duplicate, a block stays as it is; a cap keeps the third one out.
    fusion = fuse(layer, threshold=0.5, variant="centroid", max_sharers=2, backend=backend)
    assert fusion.representative.flatten().tolist() == [0, 0, 2]
    assert fusion.layer.table.entries.flatten().tolist() == [0, 0, 2]
    assert len(fusion.layer.k) == len(layer.k)
    assert fusion.layer.k_scale.flatten().tolist() == [1.0] * 3


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_blocks_without_a_direction_and_with_opposite_ones(backend: str) -> None:
    zero = [0.0, 0.0, 0.0, 0.0]
    layer = one_token_layer([[zero], [direction(0)], [direction(180)], [direction(90)]])
    for scale in ("own-norm", "raw", "projection"):
        fusion = fuse(layer, threshold=-1.0, variant="centroid", scale=scale, backend=backend)
        assert fusion.kept < 4
        assert bool(torch.isfinite(fusion.layer.k_scale).all())
        assert bool(torch.isfinite(read_blocks(fusion.layer, "k", torch.arange(4))).all())


def test_what_centroids_refuse() -> None:
    layer = one_token_layer([[direction(0)], [direction(10)]])
    fused = fuse(layer, threshold=0.5).layer
    assert isinstance(fused, FusedLayer)
    with pytest.raises(InputError, match="use another variant than centroid"):
        fuse(fused, threshold=0.5, variant="centroid")
