"""Suites: what a validation covers, as data that can be written to a file, read back and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ratedist.errors import InputError
from ratedist.kernels.fusion.options import MODES
from ratedist.predictors import CRITERIA, PREDICTORS
from ratedist.validate.compare import THRESHOLDS, Plan
from ratedist.validate.quality.methods import BASELINES, Method, fusion_methods

__all__ = [
    "ALL",
    "CHUNK_BLOCKS",
    "PARTS",
    "SUITES",
    "CellSize",
    "QualityTask",
    "Suite",
    "Task",
    "full_suite",
    "load_suite",
    "standard_suite",
    "suite_from_json",
]

PARTS = ("prediction", "transfer", "quality")
"""Parts that a suite may have: a workload's own predictions; predictions from another workload; and what
fusion, beside its rivals at equal bytes, does to the model's output."""

ALL = "all"
"""Stands for every workload in a task, and for every fused layer."""

CHUNK_BLOCKS = 4
"""Blocks per chunk by default, where requests are fused with themselves."""

_EXAMPLE = '{"name": "mine", "tasks": [{"workloads": ["documents"], "splits": [[16, 16]], "layers": [12]}]}'


@dataclass(frozen=True)
class Task:
    """Splits of some workloads in some layers.

    Attributes:
        workloads: names, or ``("all",)`` for every workload there is.
        splits: pairs (n, m): calibrate on n requests, measure m others.
        layers: indices; a number, for so many fused layers spread evenly over the depth; or ``"all"``. Fused
            layers are all but the model's first and last two.
        calibrate_on: workloads whose requests calibrate, ``("all",)`` for every one; each workload's own
            where empty.
        mode: ``"bff"``, blocks are shared across requests, or ``"cff"``, across the chunks of each.
    """

    workloads: tuple[str, ...]
    splits: tuple[tuple[int, int], ...]
    layers: tuple[int, ...] | int | str = ALL
    calibrate_on: tuple[str, ...] = ()
    mode: str = "bff"

    def sources(self, workload: str, known: Sequence[str]) -> tuple[str, ...]:
        """Workloads, of those known, that calibrate for ``workload``; none where the task leaves it out."""
        if ALL not in self.workloads and workload not in self.workloads:
            return ()
        if not self.calibrate_on:
            return (workload,)
        return tuple(name for name in known if ALL in self.calibrate_on or name in self.calibrate_on)

    def __post_init__(self) -> None:
        for name, value in (("workloads", self.workloads), ("splits", self.splits)):
            if not value:
                raise InputError(f"tasks.{name}", list(value), "must name at least one")
        if self.mode not in MODES:
            raise InputError("tasks.mode", self.mode, f"unknown; choose one of {', '.join(MODES)}")
        for n, m in self.splits:
            if n < 2 or m < 2:
                raise InputError(
                    "tasks.splits",
                    [n, m],
                    "is too small: two requests are needed to calibrate on, and two that can fuse",
                )
        if isinstance(self.layers, str) and self.layers != ALL:
            raise InputError("tasks.layers", self.layers, 'must be "all", a number of layers, or a list')
        if isinstance(self.layers, int) and self.layers < 1:
            raise InputError("tasks.layers", self.layers, "must be at least 1")
        if isinstance(self.layers, tuple) and (not self.layers or min(self.layers) < 0):
            raise InputError("tasks.layers", list(self.layers), "must name layers from 0 on")


class CellSize(NamedTuple):
    """What is compared: ``n`` requests of workload ``source`` calibrate, ``m`` others are fused in a mode."""

    n: int
    m: int
    source: str
    mode: str = "bff"


@dataclass(frozen=True)
class QualityTask:
    """What fusion and its rivals do to the model's output, see ``ratedist quality``.

    Attributes:
        workloads: names, or ``("all",)`` for every workload there is.
        requests: per workload.
        tokens: of each prefix, whose cache is compressed.
        continuation: tokens fed after it.
        thresholds, variants, criteria: of fusion.
        baselines: what stands beside fusion, as ``ratedist.validate.quality.methods.fusion_methods`` names
            it; the defaults of ``ratedist quality`` where empty.
        dtype: type to compute in, as in ``ratedist.validate.models.load_model``. Rounding to bfloat16 alone
            is a divergence of about 0.002, of the size of what int8 costs.
    """

    workloads: tuple[str, ...] = (ALL,)
    requests: int = 16
    tokens: int = 384
    continuation: int = 32
    thresholds: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 0.95)
    variants: tuple[str, ...] = ("leader",)
    criteria: tuple[str, ...] = ("keys", "both")
    baselines: tuple[str, ...] = (
        "nothing",
        "exact",
        "int8",
        "kivi4",
        "kivi2",
        "evict0.5",
        "exact+kivi4",
        "fusion+kivi4",
    )
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("requests", 2), ("tokens", 1), ("continuation", 1)):
            if getattr(self, name) < least:
                raise InputError(f"quality.{name}", getattr(self, name), f"must be at least {least}")
        if not self.workloads:
            raise InputError("quality.workloads", [], "must name at least one")
        self.methods()

    def methods(self) -> list[Method]:
        """Fusion and its rivals; raises InputError for names and thresholds that are not known."""
        names = [*(self.baselines or BASELINES)]
        if "fusion" not in names:
            names.append("fusion")
        return fusion_methods(names, self.thresholds, self.variants, self.criteria, "own-norm")


@dataclass(frozen=True)
class Suite:
    """What a validation covers, and how.

    Attributes:
        name: of the suite.
        tasks: what is calibrated on what and measured where; a cell named by several counts once.
        seeds: one random split of the requests each.
        thresholds, variants, criteria, scale, predictors: as in ``ratedist.validate.compare.Plan``; every
            predictor there is where ``predictors`` is empty.
        model: Hugging Face id, folder or GGUF file to capture; the embedded model where None.
        tokens: per request, when capturing.
        capture_seed: of the prompts.
        quality: what is done to the model's output is measured too, where there is this.
        noise_draws: pairs of drawings of 64 requests that their noise is estimated from; more of fewer
            requests and fewer of more, see ``noise_pairs``.
        chunk_blocks: blocks per chunk in tasks with mode ``"cff"``.
    """

    name: str
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    thresholds: tuple[float, ...] = THRESHOLDS
    variants: tuple[str, ...] = ("leader", "tree")
    criteria: tuple[str, ...] = ("keys", "both")
    scale: str = "own-norm"
    predictors: tuple[str, ...] = field(default_factory=lambda: tuple(PREDICTORS))
    model: str | None = None
    tokens: int = 384
    capture_seed: int = 0
    noise_draws: int = 4
    quality: QualityTask | None = None
    chunk_blocks: int = CHUNK_BLOCKS

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InputError("tasks", [], f"must hold at least one; for example {_EXAMPLE}")
        if not self.seeds:
            raise InputError("seeds", [], "must name at least one")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError("seeds", list(self.seeds), "names one twice; name each once")
        for name, least in (("tokens", 1), ("noise_draws", 1), ("capture_seed", 0), ("chunk_blocks", 1)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"must be at least {least}")
        if not self.predictors:
            object.__setattr__(self, "predictors", tuple(PREDICTORS))
        for criterion in self.criteria:
            if criterion not in CRITERIA:
                raise InputError(
                    "criterion", criterion, f"cannot be predicted; choose one of {', '.join(CRITERIA)}"
                )
        for seed in self.seeds:
            self.plan(seed)  # checks the rest

    def noise_pairs(self, m: int) -> int:
        """Pairs of drawings of m requests: about as much work whatever m is, at least 3."""
        return max(3, round(self.noise_draws * min(4.0, 64 / m)))

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that the suite has, of ``PARTS``."""
        has = {
            "prediction": any(not task.calibrate_on for task in self.tasks),
            "transfer": any(task.calibrate_on for task in self.tasks),
            "quality": self.quality is not None,
        }
        return tuple(part for part in PARTS if has[part])

    def only(self, parts: Sequence[str]) -> Suite:
        """The suite without its other parts; raises InputError for a part that it does not have."""
        for part in parts:
            if part not in self.parts:
                raise InputError(
                    "parts", part, f"is not in suite {self.name!r}; choose among {', '.join(self.parts)}"
                )
        tasks = tuple(
            task for task in self.tasks if ("transfer" if task.calibrate_on else "prediction") in parts
        )
        if not tasks:
            raise InputError("parts", list(parts), "quality alone is a command of its own: ratedist quality")
        return replace(self, tasks=tasks, quality=self.quality if "quality" in parts else None)

    def plan(self, seed: int) -> Plan:
        """The comparison of one split."""
        return Plan(
            thresholds=self.thresholds,
            variants=self.variants,
            criteria=self.criteria,
            scale=self.scale,
            predictors=self.predictors,
            seed=seed,
        )

    def workloads(self, known: Sequence[str]) -> tuple[str, ...]:
        """Workloads of the suite, in the order of ``known``.

        Args:
            known: workloads that can be had: the built-in ones, or those of the captures given.

        Raises InputError for a workload that is not known, naming what is.
        """
        named: set[str] = set()
        lists = [("tasks.workloads", (*task.workloads, *task.calibrate_on)) for task in self.tasks]
        if self.quality is not None:
            lists.append(("quality.workloads", self.quality.workloads))
        for argument, names in lists:
            for name in names:
                if name != ALL and name not in known:
                    raise InputError(argument, name, f"unknown; choose all, or some of {', '.join(known)}")
            if argument == "tasks.workloads":
                named.update(known if ALL in names else names)
        return tuple(name for name in known if name in named)

    def cells(
        self, workload: str, known: Sequence[str], fused: Sequence[int], captured: Sequence[int]
    ) -> dict[int, list[CellSize]]:
        """What is compared of one workload by layer, ascending.

        Args:
            workload: its name.
            known: workloads that can be had.
            fused: the layers that are fused by default, ascending.
            captured: all layers of the capture.

        Raises InputError for a layer that was not captured.
        """
        found: dict[int, set[CellSize]] = {}
        for task in self.tasks:
            sources = task.sources(workload, known)
            for layer in _layers(task.layers, fused) if sources else ():
                if layer not in captured:
                    raise InputError(
                        "tasks.layers",
                        layer,
                        f"is not in the capture of {workload!r}; it holds {list(captured)}",
                    )
                found.setdefault(layer, set()).update(
                    CellSize(n, m, source, task.mode) for n, m in task.splits for source in sources
                )
        return {layer: sorted(found[layer]) for layer in sorted(found)}

    def requests(self, workload: str) -> int:
        """Requests of a workload that the largest split takes; 0 where no task names it."""
        needed = [0]
        for task in self.tasks:
            if ALL in task.workloads or workload in task.workloads:
                needed += [n + m for n, m in task.splits]
            elif ALL in task.calibrate_on or workload in task.calibrate_on:
                needed += [n for n, _ in task.splits]
        return max(needed)

    def to_json(self) -> dict[str, Any]:
        """JSON data from which ``load_suite`` makes the same suite."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


def standard_suite() -> Suite:
    """Prediction against measurement on every workload: with the embedded model 45 minutes on two cores.

    16 → 16 and 16 → 64 on every workload, in layers spread over the depth; in every fused layer of two
    workloads; 16 → 256 on two workloads; and fusion across the chunks of each request on every workload.
    """
    small = ((16, 16), (16, 64))
    return Suite(
        name="standard",
        tasks=(
            Task((ALL,), small, 6),
            Task(("documents", "templates"), small, ALL),
            Task(("documents", "unrelated"), ((16, 256),), 3),
            Task((ALL,), small, 6, mode="cff"),
        ),
    )


def full_suite() -> Suite:
    """The standard suite, transfer between all pairs of workloads, and quality with its baselines.

    Transfer: 16 requests of one workload calibrate, 16 of another are measured, in three layers.
    """
    standard = standard_suite()
    transfer = Task((ALL,), ((16, 16),), 3, calibrate_on=(ALL,))
    return replace(standard, name="full", tasks=(*standard.tasks, transfer), quality=QualityTask())


def splits_suite() -> Suite:
    """Many random splits of every workload, in few layers: how far luck in the split decides the figures.

    The standard suite's three splits per workload are 39 in all, whatever the number of its rows.
    """
    return Suite(
        name="splits",
        tasks=(Task((ALL,), ((16, 16), (16, 64)), 3),),
        seeds=tuple(range(20)),
        criteria=("keys",),
    )


SUITES = {"standard": standard_suite, "full": full_suite, "splits": splits_suite}
"""The built-in suites by name."""


def load_suite(source: str | Path) -> Suite:
    """A built-in suite by name, or one from a JSON file.

    A file holds an object with the fields of ``Suite``, of which ``tasks`` is required; a task is an object
    with the fields of ``Task``. For example::

        {"tasks": [{"workloads": "all", "splits": [[16, 16]], "layers": 4}], "seeds": [0, 1]}

    Raises InputError for a name that is neither, a file that is no such object, and for names and values that
    are not known, each with what would do.
    """
    if str(source) in SUITES:
        return SUITES[str(source)]()
    path = Path(source)
    if not path.is_file():
        raise InputError(
            "suite",
            str(source),
            f"no such suite or file; choose one of {', '.join(SUITES)}, or name a JSON file",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError("suite", str(path), f"is not JSON ({error}); for example {_EXAMPLE}") from error
    return suite_from_json(data, default_name=path.stem)


def suite_from_json(data: Any, default_name: str = "suite") -> Suite:
    """A suite from JSON data; raises InputError as ``load_suite`` does."""
    if not isinstance(data, dict):
        raise InputError("suite", type(data).__name__, f"must be an object; for example {_EXAMPLE}")
    _check_fields("suite", data, [item.name for item in fields(Suite)])
    if "tasks" not in data:
        raise InputError("suite", sorted(data), f"has no tasks; for example {_EXAMPLE}")
    if not isinstance(data["tasks"], list):
        raise InputError("tasks", data["tasks"], f"must be a list of objects; for example {_EXAMPLE}")
    if data.get("quality") is not None:
        data = {**data, "quality": _quality(data["quality"])}
    values: dict[str, Any] = {"name": default_name, **data, "tasks": tuple(map(_task, data["tasks"]))}
    for name in ("name", "scale", "model"):
        if values.get(name) is not None:
            _expect(name, values[name], str, "text")
    for name in ("tokens", "capture_seed", "noise_draws", "chunk_blocks"):
        if name in values:
            _expect(name, values[name], int, "a whole number")
    for name, kind, what in (
        ("seeds", int, "whole numbers"),
        ("thresholds", (int, float), "numbers"),
        ("variants", str, "names"),
        ("criteria", str, "names"),
        ("predictors", str, "names"),
    ):
        if name in values:
            values[name] = _list(name, values[name], kind, what)
    return Suite(**values)


def _task(data: Any) -> Task:
    if not isinstance(data, dict):
        raise InputError("tasks", data, f"must hold objects; for example {_EXAMPLE}")
    _check_fields("tasks", data, [item.name for item in fields(Task)])
    for name in ("workloads", "splits"):
        if name not in data:
            raise InputError("tasks", data, f"has no {name}; for example {_EXAMPLE}")
    workloads = [data["workloads"]] if isinstance(data["workloads"], str) else data["workloads"]
    splits = data["splits"]
    pairs = isinstance(splits, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(_whole(number) for number in pair)
        for pair in splits
    )
    if not pairs:
        raise InputError("tasks.splits", splits, "must be pairs of whole numbers: [[16, 16], [16, 64]]")
    layers = data.get("layers", ALL)
    if isinstance(layers, list):
        layers = _list("tasks.layers", layers, int, "whole numbers")
    elif not isinstance(layers, str) and not _whole(layers):
        raise InputError("tasks.layers", layers, 'must be "all", a number of layers, or a list')
    sources = data.get("calibrate_on", [])
    sources = [sources] if isinstance(sources, str) else sources
    mode = data.get("mode", "bff")
    _expect("tasks.mode", mode, str, "text")
    return Task(
        _list("tasks.workloads", workloads, str, "names"),
        tuple((n, m) for n, m in splits),
        layers,
        _list("tasks.calibrate_on", sources, str, "names"),
        mode,
    )


def _quality(data: Any) -> QualityTask:
    if not isinstance(data, dict):
        raise InputError("quality", data, "must be an object, {} for the defaults")
    _check_fields("quality", data, [item.name for item in fields(QualityTask)])
    values = dict(data)
    for name in ("requests", "tokens", "continuation"):
        if name in values:
            _expect(f"quality.{name}", values[name], int, "a whole number")
    if isinstance(values.get("workloads"), str):
        values["workloads"] = [values["workloads"]]
    for name in ("workloads", "variants", "criteria", "baselines"):
        if name in values:
            values[name] = _list(f"quality.{name}", values[name], str, "names")
    if "dtype" in values:
        _expect("quality.dtype", values["dtype"], str, "text")
    if "thresholds" in values:
        values["thresholds"] = _list("quality.thresholds", values["thresholds"], (int, float), "numbers")
    return QualityTask(**values)


def _layers(wanted: tuple[int, ...] | int | str, fused: Sequence[int]) -> Sequence[int]:
    if isinstance(wanted, str):
        return fused
    if isinstance(wanted, tuple):
        return wanted
    if wanted >= len(fused):
        return fused
    if wanted == 1:
        return [fused[len(fused) // 2]]
    return [fused[round(index * (len(fused) - 1) / (wanted - 1))] for index in range(wanted)]


def _check_fields(where: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in data:
        if name not in known:
            raise InputError(where, name, f"unknown; choose among {', '.join(known)}")


def _expect(name: str, value: Any, kind: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InputError(name, value, f"must be {what}")


def _list(name: str, value: Any, kind: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InputError(name, value, f"must be a list of {what}")
    for item in value:
        _expect(name, item, kind, what)
    return tuple(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
