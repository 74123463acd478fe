"""The ladder: rungs that must agree do, and gaps appear where an assumption fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ratedist.errors import InputError
from ratedist.records import Record
from ratedist.sim.blocks import generate, synthesise
from ratedist.sim.model import BlockModel
from ratedist.sim.parameters import BlockParameters
from ratedist.similarity import Spherical
from ratedist.validate.captured_ladder import captured_ladder
from ratedist.validate.captures.store import Capture
from ratedist.validate.ladder import law_ladder, model_ladder
from ratedist.validate.rungs import ASSUMPTIONS
from ratedist.validate.synthetic import blocks_of, paged, write_synthetic

SMALL: dict[str, Any] = {"block_size": 4, "kv_heads": 2, "head_dim": 32, "rotary_base": 500.0}
SETTINGS: dict[str, Any] = {"requests": 10, "blocks": 8, "runs": 4, "process_runs": 400, "seed": 0}


def rung(record: Record, number: int, field: str = "kept") -> np.ndarray:
    return np.array([row[field] for row in record.rows if row["rung"] == number])


def gaps(record: Record, low: int) -> np.ndarray:
    return np.array(
        [row["log_ratio"] for row in record.summary if row["kind"] == "gap" and row["from"] == low]
    )


def small_capture(folder: Path, requests: int = 14, **parameters: Any) -> Capture:
    chosen = BlockParameters(
        **{**SMALL, "dimension_k": 60, "common_k": 0.6, "prefix_blocks": 2, **parameters}
    )
    return write_synthetic(
        folder,
        lambda layer: synthesise(chosen, requests, 6, seed=3, layer=layer),
        [0, 1],
        model_layers=6,
        model="synthetic",
        workload="synthetic",
        dtype="float32",
        rotary={"rope_theta": 500.0, "rope_type": "default"},
        seed=3,
        origin={},
    )


@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_rungs_agree_on_sparse_uniform_directions(variant: str) -> None:
    """Where few blocks match, the Poisson claim holds, and all three rungs agree."""
    record = law_ladder(
        Spherical(40),
        BlockModel.from_parameters(BlockParameters.uniform(40), 8, seed=0),
        thresholds=[0.4, 0.5],
        variant=variant,
        **{**SETTINGS, "runs": 12},
    )
    for row in record.summary:
        assert abs(row["z"]) < 4.5
        assert abs(row["log_ratio"]) < 0.03


def test_dense_fusion_opens_the_gap_that_the_hard_core_closes() -> None:
    record = law_ladder(
        Spherical(8),
        BlockModel.from_parameters(BlockParameters.uniform(8), 12, seed=0),
        thresholds=[0.6],
        variant="leader",
        **{**SETTINGS, "requests": 24, "blocks": 12, "runs": 10},
    )
    assert abs(gaps(record, 1)[0]) < 0.02
    assert gaps(record, 2)[0] > 0.08
    corrected = record.rows[0]["kept_with_hard_core"]
    assert abs(np.log(corrected / rung(record, 3)[0])) < 0.04


def test_a_generator_with_positions_and_duplicates() -> None:
    parameters = BlockParameters(**SMALL, dimension_k=60, common_k=0.6, prefix_blocks=3)
    model = BlockModel.from_parameters(parameters, 8, seed=1)
    record = model_ladder(model, thresholds=[0.5, 0.75, 0.95, 1.0], variant="leader", **SETTINGS)
    # At 0.95 and at 1 only the prefix is shared, on every rung.
    for number in (1, 2, 3):
        np.testing.assert_allclose(rung(record, number)[2:], 3 + 10 * 5)
    assert np.all(np.abs(gaps(record, 1)) < 0.02)
    assert rung(record, 1, "kept_se")[0] > 0
    assert {row["assumption"] for row in record.summary} == {ASSUMPTIONS[1, 2], ASSUMPTIONS[2, 3]}


def test_a_capture_gives_the_fourth_rung(tmp_path: Path) -> None:
    capture = small_capture(tmp_path / "capture")
    ladder = captured_ladder(
        capture, 1, thresholds=[0.6, 0.7, 0.95], variant="leader", splits=3, process_runs=100, seed=0
    )
    record = ladder.record
    assert [row["rung"] for row in record.rows] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert record.rows[0]["requests"] == 7
    assert rung(record, 4)[2] == 2 + 7 * 4
    assert abs(gaps(record, 3)[2]) < 0.05
    assert np.all(np.abs(gaps(record, 3)) < 0.25)
    distances = [row for row in record.summary if row["kind"] == "law distance"]
    assert {row["side"] for row in distances} == {"keys", "values"}
    overall = [row["wasserstein"] for row in distances if row["position_difference"] is None]
    assert max(overall) < 0.05
    assert len(ladder.calibrations) == 3
    assert ladder.calibrations[0].distinct < ladder.calibrations[0].blocks


def test_written_blocks_are_read_back(tmp_path: Path) -> None:
    capture = small_capture(tmp_path / "capture", requests=3)
    chosen = BlockParameters(**SMALL, dimension_k=60, common_k=0.6, prefix_blocks=2)
    made = synthesise(chosen, 3, 6, seed=3, layer=1)
    k, v, full = blocks_of(capture.layer(1))
    assert torch.equal(k, made.k)
    assert torch.equal(v, made.v)
    assert full.tolist() == [6, 6, 6]
    assert capture.manifest.rotary == {"rope_theta": 500.0, "rope_type": "default"}
    assert capture.manifest.model_layers == 6


def test_paged_layers_leave_out_what_is_beyond_the_end() -> None:
    layer = synthesise(BlockParameters(**SMALL, domains=2), 3, [3, 1, 2], seed=0)
    pages = paged(layer)
    assert pages.table.entries.tolist() == [[0, 1, 2], [3, -1, -1], [6, 7, -1]]
    assert pages.table.full_blocks.tolist() == [3, 1, 2]
    assert pages.table.domains.tolist() == [0, 1, 0]
    k, _, full = blocks_of(pages)
    assert torch.equal(k[0], layer.k[0])
    assert full.tolist() == [3, 1, 2]


def test_generated_layers_of_a_model_differ_by_seed() -> None:
    model = BlockModel.from_parameters(BlockParameters(**SMALL), 4, seed=0)
    one, other = (generate(model, 2, 4, seed=seed).k for seed in (1, 2))
    assert not torch.equal(one, other)


def test_bad_input(tmp_path: Path) -> None:
    capture = small_capture(tmp_path / "capture", requests=5)
    settings: dict[str, Any] = {
        "thresholds": [0.7],
        "variant": "leader",
        "splits": 2,
        "process_runs": 10,
        "seed": 0,
    }
    for changes, message in (
        ({"calibrate_on": 4}, r"calibrate_on = 4: must leave two of 5 requests to fuse"),
        ({"calibrate_on": 1}, r"calibrate_on = 1: must be a whole number of at least 2"),
        ({"requests": 4}, r"requests = 4: must be at most 3: 5 were captured and 2 calibrate"),
        ({"splits": 1}, r"runs = 1: must be at least 2"),
        ({"thresholds": [0.8, 0.7]}, r"thresholds = \[0.8, 0.7\]: must be sorted"),
        ({"variant": "ring"}, r"variant = 'ring': must be leader or tree"),
        ({"process_runs": 1}, r"process_runs = 1: must be a whole number of at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            captured_ladder(capture, 0, **{**settings, **changes})
    few = small_capture(tmp_path / "few", requests=3)
    with pytest.raises(InputError, match=r"capture = 3: has too few requests with a full block"):
        captured_ladder(few, 0, **settings)
    with pytest.raises(InputError, match=r"layer"):
        captured_ladder(capture, 5, **settings)
