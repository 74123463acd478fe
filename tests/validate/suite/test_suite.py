"""validate.suite: what suites cover, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ratedist.errors import InputError
from ratedist.predictors import PREDICTORS
from ratedist.validate.suite.tasks import (
    CellSize,
    QualityTask,
    Suite,
    Task,
    full_suite,
    load_suite,
    standard_suite,
    suite_from_json,
)
from ratedist.validate.workloads import WORKLOADS

TASK = {"workloads": ["documents"], "splits": [[16, 16]]}
FUSED = tuple(range(2, 28))


def test_standard_covers_what_the_protocol_asks() -> None:
    suite = standard_suite()
    names = tuple(WORKLOADS)
    assert suite.workloads(names) == names
    assert len(names) >= 12
    large = []
    for name in names:
        cells = suite.cells(name, names, FUSED, range(30))
        small, large_split = {(16, m, name, "bff") for m in (16, 64)}, (16, 256, name, "bff")
        assert all(small <= set(sizes) or sizes == [large_split] for sizes in cells.values())
        chunks = {(16, m, name, "cff") for m in (16, 64)}
        assert sum(chunks <= set(sizes) for sizes in cells.values()) == 6
        assert min(cells) == 2
        assert max(cells) == 27
        if any(large_split in sizes for sizes in cells.values()):
            large.append(name)
            assert suite.requests(name) == 272
        else:
            assert suite.requests(name) == 80
    assert len(large) == 2
    assert suite.thresholds == (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert set(suite.variants) == {"leader", "tree"}
    assert set(suite.criteria) == {"keys", "both"}
    assert set(suite.predictors) == set(PREDICTORS)
    assert len(suite.seeds) >= 3


def test_layers_by_number_are_spread_over_the_depth() -> None:
    def layers(wanted: object) -> list[int]:
        suite = Suite("s", (Task(("w",), ((2, 2),), wanted),))
        return list(suite.cells("w", ("w",), FUSED, range(30)))

    assert layers(3) == [2, 14, 27]
    assert layers(1) == [15]
    assert layers(99) == list(FUSED)
    assert layers("all") == list(FUSED)
    assert layers((0, 29)) == [0, 29]
    with pytest.raises(InputError, match=r"tasks.layers = 30: is not in the capture of 'w'"):
        layers((30,))


def test_tasks_add_up() -> None:
    suite = Suite(
        "s",
        (
            Task(("all",), ((4, 4),), (5, 9)),
            Task(("b",), ((4, 16), (4, 4)), (9,)),
        ),
    )
    both = ("a", "b")
    assert suite.cells("a", both, FUSED, range(30)) == {5: [(4, 4, "a", "bff")], 9: [(4, 4, "a", "bff")]}
    assert suite.cells("b", both, FUSED, range(30)) == {
        5: [(4, 4, "b", "bff")],
        9: [(4, 4, "b", "bff"), (4, 16, "b", "bff")],
    }
    assert (suite.requests("a"), suite.requests("b")) == (8, 20)
    with pytest.raises(InputError, match=r"tasks.workloads = 'b': unknown; choose all, or some of a, c"):
        suite.workloads(("a", "c"))
    only = Suite("s", (Task(("b",), ((4, 4),)),))
    assert only.workloads(("a", "b", "c")) == ("b",)
    assert only.cells("a", both, FUSED, range(30)) == {}


def test_a_task_may_calibrate_on_other_workloads() -> None:
    task = Task(("a", "b"), ((4, 8),), (5,), calibrate_on=("b", "c"))
    suite = Suite("s", (task,))
    known = ("a", "b", "c", "d")
    assert suite.workloads(known) == ("a", "b", "c")
    assert suite.cells("a", known, FUSED, range(30)) == {5: [(4, 8, "b", "bff"), (4, 8, "c", "bff")]}
    assert suite.cells("b", known, FUSED, range(30)) == {5: [(4, 8, "b", "bff"), (4, 8, "c", "bff")]}
    assert suite.cells("c", known, FUSED, range(30)) == {}
    assert [suite.requests(name) for name in known] == [12, 12, 4, 0]
    with pytest.raises(InputError, match=r"tasks.workloads = 'c': unknown; choose all, or some of a, b"):
        suite.workloads(("a", "b"))


def test_noise_is_drawn_more_often_of_fewer_requests() -> None:
    suite = standard_suite()
    assert [suite.noise_pairs(m) for m in (4, 16, 32, 64, 128, 256)] == [16, 16, 8, 4, 3, 3]


def test_parts_can_be_left_out() -> None:
    full = full_suite()
    assert full.parts == ("prediction", "transfer", "quality")
    assert standard_suite().parts == ("prediction",)
    assert full.only(["prediction"]).tasks == standard_suite().tasks
    assert full.only(["prediction"]).quality is None
    assert [bool(task.calibrate_on) for task in full.only(["transfer", "quality"]).tasks] == [True]
    with pytest.raises(
        InputError, match="parts = 'transfer': is not in suite 'standard'; choose among prediction"
    ):
        standard_suite().only(["transfer"])
    with pytest.raises(InputError, match="quality alone is a command of its own: ratedist quality"):
        full.only(["quality"])


def test_quality_names_its_methods() -> None:
    methods = {method.name for method in QualityTask(baselines=("kivi4",)).methods()}
    assert methods == {"kivi4", "fusion"}
    assert {"exact", "kivi4", "int8", "nothing"} <= {method.name for method in full_suite().quality.methods()}
    assert full_suite().quality.dtype == "float32"  # rounding to bfloat16 costs as much as int8 does
    suite = Suite("s", (Task(("a",), ((2, 2),)),), quality=QualityTask(("b",)))
    with pytest.raises(InputError, match=r"quality.workloads = 'b': unknown; choose all, or some of a"):
        suite.workloads(("a",))


def test_full_is_standard_and_the_transfer_between_all_workloads() -> None:
    full, standard, names = full_suite(), standard_suite(), tuple(WORKLOADS)
    for name in names:
        cells, own = (s.cells(name, names, FUSED, range(30)) for s in (full, standard))
        moved = {layer: {cell for cell in sizes if cell[2] != name} for layer, sizes in cells.items()}
        assert {layer: [c for c in sizes if c[2] == name] for layer, sizes in cells.items()} == {
            layer: sorted({*own.get(layer, []), *({CellSize(16, 16, name)} if moved[layer] else ())})
            for layer in cells
        }
        transferred = [layer for layer, sizes in moved.items() if sizes]
        assert len(transferred) == 3
        assert all({size.source for size in moved[layer]} == {*names} - {name} for layer in transferred)
        assert full.requests(name) == standard.requests(name)


def test_a_file_gives_the_suite_that_was_written(tmp_path: Path) -> None:
    suite = standard_suite()
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(suite.to_json()), encoding="utf-8")
    assert load_suite(path) == suite
    path.write_text(json.dumps({"tasks": [{"workloads": "all", "splits": [[4, 8]], "layers": 2}]}))
    mine = load_suite(path)
    assert mine.name == "mine"
    assert mine.tasks == (Task(("all",), ((4, 8),), 2),)
    assert mine.predictors == tuple(PREDICTORS)
    assert load_suite("standard") == suite
    path.write_text(json.dumps(full_suite().to_json()), encoding="utf-8")
    assert load_suite(path) == load_suite("full") == full_suite()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "suite = 'list': must be an object"),
        ({}, r"suite = \[\]: has no tasks; for example"),
        ({"tasks": []}, r"tasks = \[\]: must hold at least one"),
        ({"tasks": {}}, r"tasks = \{\}: must be a list of objects"),
        ({"tasks": [3]}, "tasks = 3: must hold objects"),
        ({"tasks": [TASK], "layer": 3}, "suite = 'layer': unknown; choose among name, tasks, seeds"),
        (
            {"tasks": [{**TASK, "layer": 3}]},
            "tasks = 'layer': unknown; choose among workloads, splits",
        ),
        ({"tasks": [{"splits": [[2, 2]]}]}, "tasks = .*has no workloads"),
        ({"tasks": [{"workloads": ["a"]}]}, "tasks = .*has no splits"),
        ({"tasks": [{**TASK, "workloads": [3]}]}, "tasks.workloads = 3: must be names"),
        ({"tasks": [{**TASK, "workloads": []}]}, r"tasks.workloads = \[\]: must name at least one"),
        ({"tasks": [{**TASK, "splits": [16, 16]}]}, "tasks.splits = .*must be pairs of whole numbers"),
        ({"tasks": [{**TASK, "splits": [[16, 16.5]]}]}, "tasks.splits = .*must be pairs of whole numbers"),
        ({"tasks": [{**TASK, "splits": [[1, 16]]}]}, r"tasks.splits = \[1, 16\]: is too small"),
        ({"tasks": [{**TASK, "layers": "some"}]}, "tasks.layers = 'some': must be"),
        ({"tasks": [{**TASK, "layers": 0}]}, "tasks.layers = 0: must be at least 1"),
        ({"tasks": [{**TASK, "layers": [2, -1]}]}, r"tasks.layers = \[2, -1\]: must name layers from 0"),
        ({"tasks": [{**TASK, "calibrate_on": 3}]}, "tasks.calibrate_on = 3: must be a list of names"),
        ({"tasks": [{**TASK, "layers": 2.5}]}, "tasks.layers = 2.5: must be"),
        ({"tasks": [TASK], "seeds": 3}, "seeds = 3: must be a list of whole numbers"),
        ({"tasks": [TASK], "seeds": [0, 0]}, r"seeds = \[0, 0\]: names one twice"),
        ({"tasks": [TASK], "seeds": [-1]}, "seed = -1: must not be negative"),
        ({"tasks": [TASK], "seeds": []}, r"seeds = \[\]: must name at least one"),
        ({"tasks": [TASK], "thresholds": ["high"]}, "thresholds = 'high': must be numbers"),
        ({"tasks": [TASK], "thresholds": [1.5]}, r"threshold = 1.5: must lie in \[-1, 1\]"),
        (
            {"tasks": [TASK], "variants": ["forest"]},
            "variant = 'forest': unknown; choose one of leader",
        ),
        (
            {"tasks": [TASK], "criteria": ["x"]},
            "criterion = 'x': cannot be predicted; choose one of keys",
        ),
        (
            {"tasks": [TASK], "predictors": ["oracle"]},
            "predictor = 'oracle': unknown; choose one of",
        ),
        ({"tasks": [TASK], "scale": 3}, "scale = 3: must be text"),
        ({"tasks": [TASK], "tokens": True}, "tokens = True: must be a whole number"),
        ({"tasks": [TASK], "quality": 3}, r"quality = 3: must be an object, \{\} for the defaults"),
        ({"tasks": [TASK], "quality": {"token": 3}}, "quality = 'token': unknown; choose among workloads"),
        ({"tasks": [TASK], "quality": {"requests": 1}}, "quality.requests = 1: must be at least 2"),
        ({"tasks": [TASK], "quality": {"tokens": "x"}}, "quality.tokens = 'x': must be a whole number"),
        ({"tasks": [TASK], "quality": {"baselines": ["gzip"]}}, "gzip"),
        ({"tasks": [TASK], "quality": {"thresholds": [2]}}, r"threshold = 2.*\[-1, 1\]"),
        ({"tasks": [TASK], "noise_draws": 0}, "noise_draws = 0: must be at least 1"),
    ],
)
def test_suites_that_are_refused(data: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        suite_from_json(data)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suite = 'nowhere': no such suite or file; choose one of standard"):
        load_suite("nowhere")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"suite = .*is not JSON"):
        load_suite(tmp_path / "x.json")
