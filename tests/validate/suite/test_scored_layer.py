"""validate.scored_layer against fusing the layer itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.validate.measure import measure
from ratedist.validate.suite.scored_layer import ScoredLayer, best_of, select_requests

THRESHOLDS = (0.25, 0.35, 0.6, 0.7, 0.75, 1.0)


@pytest.mark.parametrize("criterion", ["keys", "both"])
@pytest.mark.parametrize("variant", ["leader", "tree"])
@pytest.mark.parametrize("scale", ["own-norm", "projection", "raw"])
def test_measures_what_fusing_the_layer_measures(
    make_capture, variant: str, criterion: str, scale: str
) -> None:
    """Ragged requests of two domains in an order of their own; kept blocks exactly, errors closely."""
    capture = make_capture(lengths=(64, 40, 80, 50, 64, 64, 15, 64), domains=(0, 0, 1, 0, 1, 0, 0, 0))
    scored = ScoredLayer(capture.layer(2))
    chosen = [7, 2, 0, 6, 4, 3, 5]
    expected = list(
        measure(capture.layer(2, chosen), THRESHOLDS, variant=variant, criterion=criterion, scale=scale)
    )
    found = scored.draw(chosen).measure(THRESHOLDS, variant=variant, criterion=criterion, scale=scale)
    assert len({m.kept for m in expected}) > 2
    assert expected[0].exact > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.threshold, mine.candidates, mine.kept, mine.exact) == (
            theirs.threshold,
            theirs.candidates,
            theirs.kept,
            theirs.exact,
        )
        # Errors from similarities cancel where blocks are nearly equal: 1e-3 of a norm at the worst.
        assert mine.k_error == pytest.approx(theirs.k_error, rel=1e-4, abs=1e-3)
        assert mine.v_error == pytest.approx(theirs.v_error, rel=1e-4, abs=1e-3)
        assert scored.draw(chosen).kept(mine.threshold, variant, criterion) == theirs.kept


def test_order_of_the_requests_is_the_order_of_fusion(make_capture) -> None:
    capture = make_capture(lengths=(80,) * 8, shared_tokens=0)
    scored = ScoredLayer(capture.layer(1))
    kept = set()
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(8).tolist()
        fusion = fuse(capture.layer(1, order), threshold=0.7)
        draw = scored.draw(order)
        assert (draw.candidates, draw.kept(0.7, "leader", "keys")) == (fusion.candidates, fusion.kept)
        kept.add(fusion.kept)
    assert len(kept) > 1


def test_selected_requests_share_the_pool(make_capture) -> None:
    layer = make_capture(lengths=(64, 40, 50)).layer(2)
    chosen = select_requests(layer, [2, 0])
    assert chosen.k is layer.k
    assert chosen.table.lengths.tolist() == [50, 64]
    assert chosen.table.entries.tolist() == [layer.table.entries[r].tolist() for r in (2, 0)]


def test_equal_scores_go_to_the_lowest_position() -> None:
    scores = torch.tensor([[1.0, 0.7, 0.9, 0.9], [0.7, 1.0, 0.5, 0.2]])
    best, position = best_of(scores, torch.tensor([1, 0]), torch.tensor([3, 2, 2]))
    assert best.tolist() == [pytest.approx(0.5), pytest.approx(0.9)]
    assert position.tolist() == [1, 0]
    best, position = best_of(scores, torch.tensor([1, 0]), torch.tensor([], dtype=torch.int64))
    assert best.tolist() == [-float("inf")] * 2
    assert position.tolist() == [-1, -1]


def test_what_is_refused(make_capture) -> None:
    scored = ScoredLayer(make_capture(lengths=(64, 64, 64, 15)).layer(1))
    with pytest.raises(InputError, match=r"requests = \[3\]: none has a full block"):
        scored.draw([3])
    with pytest.raises(InputError, match="criterion = 'distance'"):
        scored.draw([0, 1]).kept(0.7, "leader", "distance")
    with pytest.raises(InputError, match="threshold = 2"):
        scored.draw([0, 1]).kept(2.0, "leader", "keys")
