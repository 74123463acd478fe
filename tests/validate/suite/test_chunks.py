"""validate.suite.chunks: fusing chunks as requests is fusing requests across their chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ratedist.errors import InputError, RatedistError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.validate.suite.chunks import as_chunks, chunk_counts, chunk_table
from ratedist.validate.suite.folder import CellKey, SuiteFolder
from ratedist.validate.suite.run import fingerprint, plan_work, run_cells, suite_settings
from ratedist.validate.suite.scored_layer import ScoredLayer
from ratedist.validate.suite.summary import make_record
from ratedist.validate.suite.tasks import CellSize, Suite, Task, suite_from_json

THRESHOLDS = (0.3, 0.5, 0.65, 1.0)
LENGTHS = (80, 64, 39, 15, 112, 64, 80)


def repeating(layer, every: int = 2):
    """The layer with blocks of one request alike, so that chunks of it fuse; one of them byte-equal."""
    generator = torch.Generator().manual_seed(4)
    pools = []
    for pool in (layer.k, layer.v):
        new = pool.clone()
        for row, count in zip(layer.table.entries, layer.table.full_blocks.tolist(), strict=True):
            for block in range(every, count):
                noise = 0.5 * block * torch.randn(pool.shape[1:], generator=generator)
                new[row[block]] = (pool[row[block - every]] + noise * pool.float().std()).to(pool.dtype)
        first = layer.table.entries[0]
        new[first[4]] = new[first[0]]
        pools.append(new)
    return replace(layer, k=pools[0], v=pools[1])


def test_chunks_of_a_table_by_hand(make_capture) -> None:
    table = make_capture(lengths=(80, 15, 39)).layer(1).table
    assert chunk_counts(table, 2) == [3, 0, 1]
    chunks = chunk_table(table, 2)
    entries = table.entries
    assert chunks.entries.tolist() == [
        entries[0, :2].tolist(),
        entries[0, 2:4].tolist(),
        [int(entries[0, 4]), -1],
        entries[2, :2].tolist(),
    ]
    assert chunks.lengths.tolist() == [32, 32, 16, 32]
    assert chunks.domains.tolist() == [0, 0, 0, 2]
    with pytest.raises(InputError, match=r"chunk_blocks = 0: must be at least 1"):
        chunk_table(table, 0)


@pytest.mark.parametrize("chunk_blocks", [1, 2, 3])
@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_chunks_fuse_as_cff_does(make_capture, variant: str, chunk_blocks: int) -> None:
    layer = repeating(make_capture(lengths=LENGTHS, domains=(0, 0, 1, 0, 1, 0, 0)).layer(2))
    kept = []
    for threshold in THRESHOLDS:
        whole = fuse(layer, threshold=threshold, variant=variant, mode="cff", chunk_blocks=chunk_blocks)
        cut = fuse(as_chunks(layer, chunk_blocks), threshold=threshold, variant=variant)
        assert (whole.kept, whole.candidates, whole.exact) == (cut.kept, cut.candidates, cut.exact)
        kept.append(whole.kept)
    assert len(set(kept)) > 1


@pytest.mark.parametrize("criterion", ["keys", "both"])
def test_scored_chunks_measure_what_cff_measures(make_capture, criterion: str) -> None:
    layer = repeating(make_capture(lengths=LENGTHS).layer(2))
    chosen = [6, 0, 4, 3, 2]
    some = replace(
        layer,
        table=replace(
            layer.table,
            entries=layer.table.entries[chosen],
            lengths=layer.table.lengths[chosen],
            domains=layer.table.domains[chosen],
        ),
    )
    draw = ScoredLayer(layer, 2).draw(chosen)
    for threshold in THRESHOLDS:
        real = fuse(some, threshold=threshold, criterion=criterion, mode="cff", chunk_blocks=2)
        assert draw.candidates == real.candidates
        assert draw.kept(threshold, "leader", criterion) == real.kept


def cff_suite(**changes: object) -> Suite:
    tasks = (Task(("all",), ((3, 4),), 2), Task(("all",), ((3, 4),), 2, mode="cff"))
    suite = Suite("both", tasks, seeds=(0, 1), thresholds=(0.5, 0.7), noise_draws=1, chunk_blocks=2)
    return replace(suite, **changes)


def test_a_suite_holds_both_modes_apart(make_capture, tmp_path) -> None:
    capture = make_capture("one", lengths=(80,) * 10)
    suite = cff_suite(predictors=("empirical", "position-marked"))
    work = plan_work(suite, [capture])
    assert {size for item in work for size in item.sizes} == {
        CellSize(3, 4, "one"),
        CellSize(3, 4, "one", "cff"),
    }
    marks = {"one": fingerprint(capture.manifest)}
    folder = SuiteFolder.claim(tmp_path / "out", suite_settings(suite, [capture]), marks)
    run_cells(suite, work, folder)
    layer = work[0].layer
    cell = folder.read(CellKey("one", layer, 4, 3, 0, mode="cff"))
    assert (cell["mode"], cell["units"]) == ("cff", 3)
    # Looked-up scores and the real fusion across chunks keep the same blocks.
    assert cell["rechecked"]
    assert all(check["kept"] == check["kept_looked_up"] for check in cell["rechecked"])
    held_out = capture.layer(layer, cell["held_out"])
    for result in cell["results"]:
        assert result["held_out"] == {}
        for measured in result["measured"]:
            real = fuse(
                held_out,
                threshold=measured["threshold"],
                variant=result["variant"],
                criterion=result["criterion"],
                mode="cff",
                chunk_blocks=2,
            )
            assert measured["kept"] == real.kept
    # Noise of one mode is not taken for that of the other.
    noise = [folder.read(CellKey("one", layer, 4, mode=mode))["results"] for mode in ("bff", "cff")]
    assert noise[0] != noise[1]
    record = make_record(suite, work, folder, command=["test"])
    assert set(record.columns["mode"].tolist()) == {"bff", "cff"}
    assert {int(units) for units in record.columns["units"][record.columns["mode"] == "cff"]} == {3}
    assert {entry["mode"] for entry in record.summary} == {None, "bff", "cff"}
    assert "across requests and across chunks of 2 blocks" in record.words[-1]


def test_mode_and_chunks_are_read_and_refused() -> None:
    data = {"tasks": [{"workloads": "all", "splits": [[3, 4]], "mode": "cff"}], "chunk_blocks": 2}
    suite = suite_from_json(data)
    assert (suite.tasks[0].mode, suite.chunk_blocks) == ("cff", 2)
    assert suite_from_json(suite.to_json()) == suite
    for change, message in (
        ({"tasks": [data["tasks"][0] | {"mode": "x"}]}, r"tasks.mode = 'x': unknown; choose one of bff, cff"),
        ({"tasks": [data["tasks"][0] | {"mode": 2}]}, r"tasks.mode = 2: must be text"),
        ({"chunk_blocks": 0}, r"chunk_blocks = 0: must be at least 1"),
        ({"chunk_blocks": "a"}, r"chunk_blocks = 'a': must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            suite_from_json(data | change)


def test_requests_of_one_chunk_are_refused_by_name(make_capture, tmp_path) -> None:
    capture = make_capture("short", lengths=(32,) * 10)
    suite = cff_suite(tasks=(Task(("all",), ((3, 4),), 1, mode="cff"),))
    folder = SuiteFolder.claim(tmp_path / "out", suite_settings(suite, [capture]), {})
    with pytest.raises(RatedistError, match=r"workload 'short', layer \d+, cff: .*two requests"):
        run_cells(suite, plan_work(suite, [capture]), folder)
