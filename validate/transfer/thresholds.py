"""Transfer of thresholds: what a threshold chosen for one capture gives in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ratedist.errors import InputError
from ratedist.validate.captures.manifest import Manifest
from ratedist.validate.suite.folder import CellKey
from ratedist.validate.suite.scored_layer import ScoredLayer
from ratedist.validate.suite.splits import draw_split
from ratedist.validate.suite.tasks import Suite

__all__ = ["GRID", "CurveKey", "Goal", "curve_cell", "parse_goal", "pick"]

GRID = tuple(round(0.02 * step, 2) for step in range(50))
"""Thresholds among which one is chosen: 0 to 0.98."""

QUANTITIES = ("k_error", "v_error", "compression")

Json = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for.

    Attributes:
        quantity: ``"k_error"`` or ``"v_error"``, the relative error of keys or values that must not be
            exceeded (root mean square over all blocks, ``ratedist.validate.measure.Measurement``); or
            ``"compression"``, which must be reached.
        value: the limit.
    """

    quantity: str
    value: float

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise InputError("goal", self.quantity, f"unknown; choose one of {', '.join(QUANTITIES)}")
        least = 1.0 if self.quantity == "compression" else 0.0
        if not self.value > least:
            raise InputError("goal", f"{self.quantity}={self.value:g}", f"must be above {least:g}")


@dataclass(frozen=True)
class CurveKey(CellKey):
    """Names the cell of ``curve_cell``: errors and compression over ``GRID`` of one split's both sides."""

    @property
    def path(self) -> str:
        """Of the cell's file."""
        plain = CellKey(self.workload, self.layer, self.m, self.n, self.seed, self.source, self.mode).path
        return plain.replace("/split-", "/curve-")


def parse_goal(text: str) -> Goal:
    """A goal of text as in ``k_error=0.1`` or ``compression=1.5``; raises InputError where it is none."""
    quantity, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        raise InputError(
            "goal", text, "write a quantity and a number, as in k_error=0.1, v_error=0.2 or compression=1.5"
        ) from None
    return Goal(quantity.strip(), value)


def curve_cell(manifest: Manifest, scored: ScoredLayer, index: int, key: CurveKey, suite: Suite) -> Json:
    """Fuse both sides of a split at every threshold of ``GRID``, apart from each other.

    Args:
        manifest: of the capture.
        scored: the layer, all of its requests.
        index: of the layer.
        key: n, m and seed of the split.
        suite: variants, criteria and scale.
    """
    assert key.n is not None
    assert key.seed is not None
    split = draw_split(manifest, key.n, key.m, key.seed)
    sides = {"calibration": scored.draw(split.calibration), "held_out": scored.draw(split.held_out)}
    results = []
    for variant in suite.variants:
        for criterion in suite.criteria:
            result: Json = {"variant": variant, "criterion": criterion}
            for side, draw in sides.items():
                measured = draw.measure(GRID, variant=variant, criterion=criterion, scale=suite.scale)
                result[side] = {
                    quantity: [round(float(getattr(m, quantity)), 6) for m in measured]
                    for quantity in QUANTITIES
                }
            results.append(result)
    return {"kind": "curve", "workload": manifest.workload, "layer": index, "results": results}


def pick(curve: Mapping[str, Sequence[float]], goal: Goal) -> int | None:
    """Place in ``GRID`` of the threshold that a goal asks for; None where no threshold does it.

    For an error, the lowest threshold from which on the error stays within the limit: it is what saves most.
    For a compression, the highest threshold that reaches it. None also where the choice would say nothing:
    no threshold exceeds the limit of an error, or the highest of all reaches a compression, as exact
    duplicates alone do.

    Test: tests/validate/transfer/test_transfer_thresholds.py::test_pick_by_hand.
    """
    values = curve[goal.quantity]
    if goal.quantity == "compression":
        reached = [place for place, value in enumerate(values) if value >= goal.value]
        return reached[-1] if reached and reached[-1] + 1 < len(values) else None
    beyond = [place for place, value in enumerate(values) if value > goal.value]
    if not beyond or beyond[-1] + 1 == len(values):
        return None
    return beyond[-1] + 1
