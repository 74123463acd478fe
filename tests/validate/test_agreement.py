"""validate.agreement and validate.demo: the kernels beside the CPU path, and what counts as a difference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.validate import agreement as module
from ratedist.validate.agreement import Agreement, check_agreement
from ratedist.validate.demo import agreements, claim_demo_folder
from ratedist.validate.measure import runtime_for

HOLDS = Agreement("leader", 0.8, 40, (20, 20), 0, 0, 1e-7, 1e-6, 1e-6, 2e-5)


def test_triton_agrees_with_the_cpu_path_on_every_capture(make_capture) -> None:
    captures = [make_capture("one", lengths=(48,) * 6), make_capture("two", lengths=(48, 40) * 3, seed=2)]
    steps = []
    found = agreements(
        captures, runtime_for("triton"), threshold=0.7, progress=lambda *s: steps.append(s[:2])
    )
    assert [(workload, layer, a.variant) for workload, layer, a in found] == [
        (name, 3, variant) for name in ("one", "two") for variant in ("leader", "tree")
    ]
    assert all(a.holds and a.kept[0] == a.kept[1] < a.blocks for _, _, a in found)
    assert steps[-1] == (4, 4)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"different": 1}, False),
        ({"near_ties": 3}, True),
        ({"scale_difference": 2e-4}, False),
        ({"lse_difference": 2e-4}, False),
        ({"output_difference": 3e-5}, False),
        ({"output_difference": float("inf")}, False),
        ({"output_difference": float("nan")}, False),
    ],
)
def test_what_counts_as_agreement(change: dict[str, float], holds: bool) -> None:
    assert dataclasses.replace(HOLDS, **change).holds == holds


def altered(monkeypatch: pytest.MonkeyPatch, alter) -> None:
    """Make the first of the two fusions come out otherwise."""
    calls = []

    def fuse_wrongly(layer, **options):
        fusion = fuse(layer, **options)
        calls.append(options["backend"])
        return alter(fusion) if len(calls) == 1 else fusion

    monkeypatch.setattr(module, "fuse", fuse_wrongly)


def check(make_capture, **options) -> Agreement:
    layer = make_capture(lengths=(48,) * 6).layer(3)
    return check_agreement(layer, runtime_for("reference"), group_size=2, threshold=0.7, **options)


def test_another_mapping_is_a_difference(make_capture, monkeypatch) -> None:
    """Also where the score reported with it is right: the position is what was wrong."""

    def alter(fusion):
        changed = fusion.absorber.clone()
        changed[-1, -1] = 0
        return dataclasses.replace(fusion, absorber=changed, representative=changed)

    altered(monkeypatch, alter)
    found = check(make_capture)
    assert (found.different, found.near_ties) == (1, 0)
    assert not found.holds


def test_another_representative_alone_is_a_difference(make_capture, monkeypatch) -> None:
    def alter(fusion):
        representative = fusion.representative.clone()
        representative[-1, -1] = 0
        return dataclasses.replace(fusion, representative=representative)

    altered(monkeypatch, alter)
    assert check(make_capture).different == 1


@pytest.mark.parametrize("distance", [0.0, 0.5])
def test_a_rival_of_equal_score_is_a_near_tie(monkeypatch, distance: float) -> None:
    """Two representatives that mirror each other around the third block, or do not quite."""
    generator = torch.Generator().manual_seed(0)
    middle, side = torch.randn(2, 16, 1, 8, generator=generator)
    side -= (side * middle).sum() / middle.square().sum() * middle
    k = torch.stack([middle + 0.8 * side, middle - (0.8 + distance) * side, middle])
    v = torch.randn(3, 16, 1, 8, generator=generator)
    table = BlockTable(
        torch.arange(3, dtype=torch.int32)[:, None],
        torch.full((3,), 16),
        torch.zeros(3, dtype=torch.int64),
        16,
    )

    def alter(fusion):
        changed = torch.tensor([[0], [1], [1 - int(fusion.absorber[2, 0])]])
        return dataclasses.replace(fusion, absorber=changed, representative=changed)

    altered(monkeypatch, alter)
    reference = runtime_for("reference")
    layer = PagedLayer(k, v, table)
    found = check_agreement(layer, reference, against=reference, group_size=1, threshold=0.7)
    assert found.kept == (2, 2)
    assert (found.different, found.near_ties) == ((0, 1) if distance == 0 else (1, 0))


def test_other_scales_are_a_difference(make_capture, monkeypatch) -> None:
    def alter(fusion):
        layer = dataclasses.replace(fusion.layer, v_scale=fusion.layer.v_scale * 1.01)
        return dataclasses.replace(fusion, layer=layer)

    altered(monkeypatch, alter)
    found = check(make_capture)
    assert found.different == 0
    assert found.scale_difference > 0.005
    assert found.output_difference > 1e-3
    assert not found.holds


def test_demo_folder_is_its_own_or_empty(tmp_path: Path) -> None:
    folder = claim_demo_folder(tmp_path / "demo")
    (folder / "validation.json").touch()
    assert claim_demo_folder(folder) == folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(InputError, match=r"out = .*mine': holds something else; name a new folder"):
        claim_demo_folder(tmp_path / "mine")
    with pytest.raises(InputError, match=r"out = .*notes': is a file; name a folder"):
        claim_demo_folder(tmp_path / "mine" / "notes")
