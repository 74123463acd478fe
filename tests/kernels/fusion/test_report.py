"""Reports of a fusion, against loops over what is read back."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from by_hand import COS40, direction, one_token_layer
from hypothesis import given
from hypothesis import strategies as st
from strategies import criteria, full_blocks, layers, scales, thresholds

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.fusion.report import Errors, report
from ratedist.kernels.layout import PagedLayer
from ratedist.kernels.restore import read_blocks


@given(layers(), thresholds, st.sampled_from(["leader", "tree", "centroid"]), criteria, scales)
def test_numbers_are_those_of_a_loop_over_the_blocks(
    layer: PagedLayer, threshold: float, variant: str, criterion: str, scale: str
) -> None:
    """ratedist.kernels.fusion.report.report."""
    fusion = fuse(
        layer, threshold=threshold, variant=variant, criterion=criterion, scale=scale, backend="cpu"
    )
    found = report(layer, fusion)
    logical, max_blocks = full_blocks(layer), layer.table.entries.shape[1]
    representative = fusion.representative.flatten().tolist()
    errors: dict[int, list[float]] = {}
    for a in logical:
        errors[a] = []
        for part in ("k", "v"):
            before = read_blocks(layer, part, torch.tensor([a])).double()
            after = read_blocks(fusion.layer, part, torch.tensor([a])).double()
            lost, power = float((after - before).norm()), float(before.norm())
            errors[a].append(lost / power if power else (math.inf if lost else 0.0))
    absorbed = [a for a in logical if representative[a] != a]
    for blocks, pair in (
        (absorbed, (found.k_absorbed, found.v_absorbed)),
        (logical, (found.k_all, found.v_all)),
    ):
        for part, numbers in enumerate(pair):
            values = [errors[a][part] for a in blocks] or [0.0]
            expected = [
                sum(values) / len(values),
                math.sqrt(sum(e * e for e in values) / len(values)),
                max(values),
            ]
            assert [numbers.mean, numbers.rms, numbers.largest] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scores = [float(fusion.score.flatten()[a]) for a in absorbed] or [1.0]
    assert found.score_mean == pytest.approx(sum(scores) / len(scores), rel=1e-5, abs=1e-6)
    assert found.score_least == min(scores)
    readers = Counter(representative[a] for a in logical)
    assert found.sharers == dict(Counter(readers.values()))
    if logical:
        most = min(a for a in readers if readers[a] == max(readers.values()))
        assert found.most_shared == divmod(most, max_blocks)
    if found.worst is None:
        assert all(e == [0.0, 0.0] for e in errors.values())
    else:
        a = found.worst.request * max_blocks + found.worst.block
        assert found.worst.representative == divmod(representative[a], max_blocks)
        assert found.worst.score == float(fusion.score.flatten()[a])
        assert [found.worst.k_error, found.worst.v_error] == pytest.approx(errors[a], rel=1e-4, abs=1e-5)
        largest = max(e[0] ** 2 + e[1] ** 2 for e in errors.values())
        assert errors[a][0] ** 2 + errors[a][1] ** 2 == pytest.approx(largest, rel=1e-4, abs=1e-6)
    assert (found.candidates, found.kept, found.exact) == (fusion.candidates, fusion.kept, fusion.exact)
    assert found.absorbed == len(absorbed)


def test_a_report_by_hand() -> None:
    layer = one_token_layer(
        [[direction(0), direction(90)], [direction(30)], [direction(10)], [direction(10)]],
        [[direction(0), direction(0)], [direction(0)], [direction(60)], [direction(60)]],
    )
    found = report(layer, fuse(layer, threshold=COS40))

    def lost(degrees: float) -> float:
        return math.sqrt(2 - 2 * math.cos(math.radians(degrees)))

    assert (found.absorbed, found.exact, found.sharers) == (3, 1, {1: 1, 4: 1})
    assert found.most_shared == (0, 0)
    assert found.worst is not None
    assert (found.worst.request, found.worst.block, found.worst.representative) == (2, 0, (0, 0))
    assert [found.worst.k_error, found.worst.v_error] == pytest.approx([lost(10), lost(60)], abs=1e-6)
    assert found.worst.score == pytest.approx(math.cos(math.radians(10)), abs=1e-6)
    assert found.score_least == pytest.approx(math.cos(math.radians(30)), abs=1e-6)
    assert found.v_absorbed.mean == pytest.approx(2 * lost(60) / 3, abs=1e-6)
    assert found.v_all.rms == pytest.approx(math.sqrt(2 / 5) * lost(60), abs=1e-6)
    assert found.k_all.largest == pytest.approx(lost(30), abs=1e-6)
    assert json.loads(json.dumps(found.to_dict()))["worst"]["request"] == 2


def test_where_nothing_was_fused() -> None:
    layer = one_token_layer([[direction(0)], [direction(90)]])
    found = report(layer, fuse(layer, threshold=0.5))
    assert found.worst is None
    assert found.k_absorbed == Errors(0.0, 0.0, 0.0)
    assert (found.score_mean, found.sharers, found.most_shared) == (1.0, {1: 2}, (0, 0))


def test_a_report_of_another_layer() -> None:
    layer = one_token_layer([[direction(0)], [direction(90)]])
    longer = one_token_layer([[direction(0), direction(5)], [direction(90)]])
    with pytest.raises(InputError, match="must be the fused form of original"):
        report(longer, fuse(layer, threshold=0.5))
