"""Fusion as its definition reads: plain loops and whole similarity matrices in float32, slow on purpose.

The other implementations are tested against this one, so it shares nothing with them but the layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.fusion.options import FuseOptions
from ratedist.kernels.fusion.result import Fusion
from ratedist.kernels.layout import UNUSED, BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.reading import Means, Reading
from ratedist.kernels.rotary import Rotary

__all__ = ["fuse_reference"]


def fuse_reference(
    layer: PagedLayer | FusedLayer,
    options: FuseOptions,
    layer_name: str | int | None = None,
    group: Sequence[PagedLayer] = (),
) -> Fusion:
    """``ratedist.kernels.fusion.fuse.fuse`` with options that have been checked.

    With a ``group`` of layers, ``ratedist.kernels.fusion.group.fuse_group`` for one of them.

    Raises:
        InputError: a block holds NaN or infinity, or its norm is beyond float32.
    """
    table = layer.table
    requests, max_blocks = table.entries.shape
    entries = table.entries.tolist()
    full = table.full_blocks.tolist()
    used = table.used_blocks.tolist()
    domains = table.domains.tolist()
    _check(layer, entries, layer_name)

    # A block is named by its flat logical index; candidates are in logical order.
    candidates = [i * max_blocks + b for i in range(requests) for b in range(full[i])]
    request = {a: a // max_blocks for a in candidates}
    unit = dict(request)
    domain = {a: domains[request[a]] for a in candidates}
    if options.mode == "cff":
        assert options.chunk_blocks is not None
        unit = {a: a % max_blocks // options.chunk_blocks for a in candidates}
        domain = dict(request)
    physical = {a: entries[a // max_blocks][a % max_blocks] for a in candidates}
    together: Sequence[PagedLayer | FusedLayer] = [*group] or [layer]

    # Step 1: byte-equal blocks of one domain, where they span two units, share the first of them.
    content = {
        a: b"".join(_bytes(pool[physical[a]]) for one in together for pool in (one.k, one.v))
        for a in candidates
    }
    # Blocks that read one physical block share already; in a fused layer, only the first one counts.
    holder: dict[tuple[int, int], int] = {}
    equals: dict[tuple[int, bytes], list[int]] = {}
    for a in candidates:
        if holder.setdefault((domain[a], physical[a]), a) == a or isinstance(layer, PagedLayer):
            equals.setdefault((domain[a], content[a]), []).append(a)
    first = {}
    for same in equals.values():
        for a in same:
            first[a] = same[0] if len({unit[b] for b in same}) > 1 else a
    first = {a: first[holder[domain[a], physical[a]]] for a in candidates}

    # What blocks are matched without: rotary positions, and the mean of their group.
    size = layer.table.block_size
    starts = [0] * requests if options.starts is None else options.starts.tolist()
    position = {a: starts[request[a]] + a % max_blocks * size for a in candidates}
    family = {a: (domain[a], a % max_blocks if options.centre == "position" else 0) for a in candidates}
    shape = layer.k.shape[1:]

    def matched(
        one: PagedLayer | FusedLayer,
    ) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[tuple[int, int], tuple[Tensor, Tensor]]]:
        """Keys and values of the candidates as they are matched, and the means that are missing there."""
        k = {a: one.k[physical[a]].flatten().float() for a in candidates}
        v = {a: one.v[physical[a]].flatten().float() for a in candidates}
        mean: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        if options.rotary is not None:
            k = {a: _turn(k[a].view(shape), -position[a], options.rotary).flatten() for a in candidates}
        if options.centre is not None:
            for name in set(family.values()):
                alike = [a for a in candidates if family[a] == name]
                mean_k, mean_v = (torch.stack([part[a] for a in alike]).double().mean(0) for part in (k, v))
                mean[name] = mean_k.to(one.k.dtype), mean_v.to(one.k.dtype)
            k = {a: k[a] - mean[family[a]][0].float() for a in candidates}
            v = {a: v[a] - mean[family[a]][1].float() for a in candidates}
        return k, v, mean

    as_matched = [matched(one) for one in together]
    this = next(n for n, one in enumerate(together) if one is layer)
    k, v, mean = as_matched[this]

    # Step 2: the distinct blocks, unit by unit.
    matrix = _score_matrix(candidates, [one[:2] for one in as_matched], options.criterion)
    index = {a: n for n, a in enumerate(candidates)}

    # Of every layer. Centroids move, and are scored anew; elsewhere a group is scored by its representative.
    own = [{a: (part_k[a], part_v[a]) for a in candidates} for part_k, part_v, _ in as_matched]
    centre = [dict(blocks) for blocks in own]

    def score(a: int, b: int) -> float:
        if options.variant == "centroid":
            return _pair_score([c[a] for c in centre], [c[b] for c in centre], options.criterion)
        return min(float(matrix[index[a], index[b]]), 1.0)

    limit = float(torch.tensor(options.threshold, dtype=torch.float32))
    absorber = dict(first)
    # Under the caps: who reads a block now, and how many more of a request may be absorbed.
    readers = {a: [b for b in candidates if first[b] == a] for a in candidates}
    room: dict[int, float] = {}
    for i in range(requests):
        allowed = [n for n in range(full[i] + 1) if n <= (options.max_absorbed_share or 0) * full[i] + 1e-9]
        room[i] = math.inf if options.max_absorbed_share is None else max(allowed)

    def survivors(unit_blocks: list[int], kept: list[int]) -> list[int]:
        """The blocks of ``unit_blocks`` that nobody in ``kept`` absorbs; notes who absorbs the others."""
        best: dict[int, int] = {}
        for a in unit_blocks:
            highest = limit
            for b in kept:
                # Strictly higher: of equal scores the lowest logical index wins.
                if score(a, b) > highest:
                    best[a], highest = b, score(a, b)
        for a in sorted(best, key=lambda a: (-score(a, best[a]), a)):
            crowd = readers[a] + readers[best[a]]
            full_up = options.max_sharers is not None and len(crowd) > options.max_sharers
            if not full_up and room[request[a]] > 0:
                absorber[a] = best[a]
                readers[best[a]] = crowd
                room[request[a]] -= 1
        grown = {best[a] for a in best if absorber[a] != a} if options.variant == "centroid" else set()
        for b in grown:
            # A duplicate goes by its first copy.
            twins = [first[a] for a in readers[b]]
            for blocks, centres in zip(own, centre, strict=True):
                keys, values = zip(*(blocks[a] for a in twins), strict=True)
                centres[b] = _centroid(keys), _centroid(values)
        return [a for a in unit_blocks if absorber[a] == a]

    for d in sorted(set(domain.values())):
        here = [a for a in candidates if domain[a] == d]
        units = [[a for a in here if unit[a] == u and first[a] == a] for u in sorted({unit[a] for a in here})]
        if options.variant == "leader":
            kept: list[int] = []
            for members in units:
                kept = kept + survivors(members, kept)
        elif options.variant == "components":
            for one in range(len(units)):
                for a, b in ((a, b) for other in units[:one] for a in other for b in units[one]):
                    if score(b, a) > limit and absorber[a] != absorber[b]:
                        low, high = sorted((absorber[a], absorber[b]))
                        absorber |= {c: low for c in here if first[c] == c and absorber[c] == high}
        else:
            while len(units) > 1:
                pairs = [units[n : n + 2] for n in range(0, len(units), 2)]
                units = [
                    pair[0] + survivors(pair[1], pair[0]) if len(pair) == 2 else pair[0] for pair in pairs
                ]

    representative = {}
    for a in candidates:
        root = a
        while absorber[root] != root:
            root = absorber[root]
        representative[a] = root

    # Who reads another block than its own bytes, and the centroids, stored where a group's first block is.
    altered = {a for a in candidates if representative[a] != first[a]}
    new_k, new_v, place = [layer.k], [layer.v], dict(physical)
    if options.variant == "centroid":
        altered |= {a for a in candidates if representative[a] in {representative[b] for b in altered}}
        for root in sorted({representative[a] for a in altered}):
            for number, (whole, centres) in enumerate(zip(together, centre, strict=True)):
                taken = as_matched[number][2]
                away = tuple(m.float() for m in taken.get(family[root], (torch.zeros(()), torch.zeros(()))))
                block, block_v = (c + m for c, m in zip(centres[root], away, strict=True))
                block = block.view(shape)
                if options.rotary is not None:
                    block = _turn(block, position[root], options.rotary)
                block, block_v = block.to(whole.k.dtype), block_v.view(shape).to(whole.k.dtype)
                if number == this:
                    place[root] = len(layer.k) + len(new_k) - 1
                    new_k.append(block[None])
                    new_v.append(block_v[None])
                block = block.float()
                if options.rotary is not None:
                    block = _turn(block, -position[root], options.rotary)
                centres[root] = block.flatten() - away[0], block_v.float().flatten() - away[1]

    new_entries = torch.full_like(table.entries, UNUSED)
    representative_map = torch.full((requests, max_blocks), -1, dtype=torch.int64, device=layer.k.device)
    absorber_map = representative_map.clone()
    scores = torch.zeros(requests, max_blocks, device=layer.k.device)
    k_scale = torch.ones_like(scores)
    v_scale = torch.ones_like(scores)
    if isinstance(layer, FusedLayer):
        k_scale, v_scale = layer.k_scale.clone(), layer.v_scale.clone()
    shift = torch.zeros_like(table.entries)
    add, subtract = torch.full_like(shift, -1), torch.full_like(shift, -1)
    stored: list[tuple[Tensor, Tensor]] = []
    for i in range(requests):
        for b in range(used[i]):
            a = i * max_blocks + b
            root = representative.get(a, a)
            representative_map[i, b] = root
            absorber_map[i, b] = absorber.get(a, a)
            new_entries[i, b] = place.get(root, entries[i][b])
            scores[i, b] = 1.0
            if a in altered:
                # Duplicates as their first copy: its bytes, at its position.
                scores[i, b] = score(first[a], root)
                if options.variant == "centroid":
                    stands = [c[root] for c in centre]
                    scores[i, b] = _pair_score([c[first[a]] for c in own], stands, options.criterion)
                shared = centre[this][root]
                k_scale[i, b] *= _scale(k[first[a]], shared[0], options.scale)
                v_scale[i, b] *= _scale(v[first[a]], shared[1], options.scale)
                shift[i, b] = position[first[a]] - position[root]
                if mean:
                    for table_of, c in ((add, first[a]), (subtract, root)):
                        turned, mean_v = mean[family[c]]
                        if options.rotary is not None:
                            where = position[first[a]]
                            turned = _turn(turned.view(shape).float(), where, options.rotary).to(mean_v)
                        table_of[i, b] = len(stored)
                        stored.append((turned.view(layer.k.shape[1:]), mean_v.view(layer.k.shape[1:])))

    stored_means = None
    if stored:
        stored_means = Means(
            torch.stack([m[0] for m in stored]), torch.stack([m[1] for m in stored]), add, subtract
        )
    reading = None
    if altered and (options.rotary or stored_means):
        reading = Reading(shift if options.rotary else None, options.rotary, stored_means)
    return Fusion(
        layer=FusedLayer(
            k=layer.k if len(new_k) == 1 else torch.cat(new_k),
            v=layer.v if len(new_v) == 1 else torch.cat(new_v),
            table=BlockTable(new_entries, table.lengths, table.domains, table.block_size),
            k_scale=k_scale,
            v_scale=v_scale,
            reading=reading,
        ),
        representative=representative_map,
        absorber=absorber_map,
        score=scores,
        candidates=len(candidates),
        kept=sum(representative[a] == a for a in candidates),
        exact=sum(first[a] != a for a in candidates),
    )


def _score_matrix(
    candidates: list[int], layers: list[tuple[dict[int, Tensor], dict[int, Tensor]]], criterion: str
) -> Tensor:
    """(n, n) scores of every candidate as a member of every other; keys and values are means over layers."""
    if not candidates:
        return torch.zeros(0, 0)
    part = _nearness_matrix if criterion == "distance" else _similarity_matrix
    keys, values = (
        torch.stack([part(candidates, layer[which]) for layer in layers]).mean(0) for which in (0, 1)
    )
    if criterion == "keys":
        return keys
    return torch.minimum(keys, values) if criterion == "both" else (keys + values) / 2


def _pair_score(
    member: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]], criterion: str
) -> float:
    """The score of one block's keys and values in every layer as a member of another's, at most 1."""
    layers = [
        ({0: k, 1: other_k}, {0: v, 1: other_v})
        for (k, v), (other_k, other_v) in zip(member, other, strict=True)
    ]
    return min(float(_score_matrix([0, 1], layers, criterion)[0, 1]), 1.0)


def _centroid(members: Sequence[Tensor]) -> Tensor:
    """The mean direction, normalised, times the mean norm."""
    total = torch.stack([x / x.norm() if x.any() else x for x in members]).sum(0)
    length = torch.stack([x.norm() for x in members]).mean()
    return total / total.norm() * length if total.any() else total


def _similarity_matrix(candidates: list[int], vector: dict[int, Tensor]) -> Tensor:
    """(n, n) cosine similarities; 0 where a vector is zero."""
    rows = torch.stack([vector[a] for a in candidates])
    norm = rows.norm(dim=1)
    similarity = (rows @ rows.T) / norm[:, None] / norm[None, :]
    similarity[norm == 0, :] = 0.0
    similarity[:, norm == 0] = 0.0
    return similarity.cpu()


def _nearness_matrix(candidates: list[int], vector: dict[int, Tensor]) -> Tensor:
    """(n, n): 1 - ½ ‖x - y‖² / ‖x‖² of row x and column y; 0 where x is zero."""
    rows = torch.stack([vector[a] for a in candidates])
    nearness = torch.zeros(len(rows), len(rows))
    for n, x in enumerate(rows):
        if x.any():
            nearness[n] = (1 - (x - rows).norm(dim=1).div(x.norm()).square() / 2).cpu()
    return nearness


def _turn(block: Tensor, tokens: int, rotary: Rotary) -> Tensor:
    """(block_size, kv_heads, head_dim) float32: every pair of channels as a complex number, turned."""
    turned = block.double().clone()
    half = rotary.rotary_dim // 2
    for i, frequency in enumerate(rotary.inverse_frequencies.double().tolist()):
        left, right = (i, i + half) if rotary.style == "half" else (2 * i, 2 * i + 1)
        pair = torch.complex(block[..., left].double(), block[..., right].double())
        pair = pair * complex(math.cos(frequency * tokens), math.sin(frequency * tokens))
        turned[..., left], turned[..., right] = pair.real, pair.imag
    return turned.float()


def _scale(member: Tensor, representative: Tensor, rule: str) -> float:
    """What the representative is multiplied with to stand for the member."""
    if rule == "raw":
        return 1.0
    if not representative.any():
        return 0.0
    if rule == "own-norm":
        return float(member.norm() / representative.norm())
    return float(member @ representative / representative.norm() / representative.norm())


def _bytes(block: Tensor) -> bytes:
    return block.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _check(layer: PagedLayer | FusedLayer, entries: list[list[int]], layer_name: str | int | None) -> None:
    """Raises InputError where a token within its request's length, a norm or a scale is not finite."""
    size = layer.table.block_size
    prefix = "" if layer_name is None else f"layer {layer_name}, "
    for i, length in enumerate(layer.table.lengths.tolist()):
        for start in range(0, length, size):
            b, tokens = start // size, min(size, length - start)
            where = f"{prefix}request {i}, block {b}"
            for name, pool in (("k", layer.k), ("v", layer.v)):
                block = pool[entries[i][b], :tokens].float()
                if not torch.isfinite(block).all():
                    bad = float(block[~torch.isfinite(block)][0])
                    raise InputError(name, bad, f"{where} holds NaN or infinity; every value must be finite")
                if tokens == size and not torch.isfinite(block.norm()):
                    raise InputError(
                        name,
                        float(block.double().norm()),
                        f"{where} has a norm whose square float32 cannot hold",
                    )
            if isinstance(layer, FusedLayer):
                for name, scale in (("k_scale", layer.k_scale), ("v_scale", layer.v_scale)):
                    if not torch.isfinite(scale[i, b]):
                        raise InputError(name, float(scale[i, b]), f"{where} must have a finite scale")
