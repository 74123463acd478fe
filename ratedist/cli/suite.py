"""``ratedist validate --suite``: the protocol over many workloads, splits and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ratedist.cli.options import messages, print_json
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.suite_record import SuiteRecord
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.suite.tasks import Suite

__all__ = ["run_suite", "time_left"]

QUALITY = "quality"
"""Subfolder of the part quality."""


def run_suite(
    source: str,
    *,
    out: Path | None,
    captures: Sequence[Path],
    workloads: Sequence[str],
    parts: Sequence[str],
    model: str | None,
    jobs: int,
    dask: str | None,
    judge: bool,
    force: bool,
    json: bool,
) -> None:
    """Run a suite (or what is left of it), write its record and pictures, and say what came of it.

    Exits with code 1 where ``judge`` is set and a goal is missed, or none can be judged.

    Raises InputError for arguments that do not fit each other or the suite.
    """
    from dataclasses import replace

    from ratedist.cli.validate import load_figures
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.suite.tasks import load_suite

    suite = load_suite(source)
    if out is None:
        raise InputError("out", None, "name the suite's folder with --out; run again, it goes on there")
    if captures and model is not None:
        raise InputError("model", model, "is not needed with --capture, whose model it is; leave one out")
    if parts:
        suite = suite.only(parts)
    if captures and suite.quality is not None:
        others = " ".join(part for part in suite.parts if part != "quality")
        raise InputError(
            "capture", str(captures[0]), f"part quality runs the model itself; add --parts {others}"
        )
    load_figures()
    if model is not None:
        suite = replace(suite, model=model)
    if captures:
        opened = [Capture.open(folder) for folder in captures]
        names = [capture.manifest.workload for capture in opened]
        chosen = _choose(suite.workloads(names), workloads)
        opened = [capture for capture in opened if capture.manifest.workload in chosen]
    else:
        opened = _captures(suite, out, workloads)
    met = _compute(suite, opened, out, jobs=jobs, dask=dask, force=force, json=json)
    if suite.quality is not None:
        names = [capture.manifest.workload for capture in opened]
        _measure_quality(suite, names, out, jobs=jobs, dask=dask, quiet=json)
    if judge and met is not True:
        if met is None:
            messages().print("nothing to judge: no predictor chosen, or no split with goals", highlight=False)
        raise typer.Exit(1)


def _measure_quality(
    suite: Suite, workloads: Sequence[str], out: Path, *, jobs: int, dask: str | None, quiet: bool
) -> None:
    """The part quality: its own record, cells and picture below ``out``; it goes on where it stopped."""
    from ratedist.figures.quality import save_quality_figure
    from ratedist.records import write_record
    from ratedist.validate.models import load_model
    from ratedist.validate.quality.run import QualityPlan, run_quality
    from ratedist.validate.suite.tasks import ALL
    from ratedist.validate.workloads import build_prompts

    task = suite.quality
    assert task is not None
    loaded = load_model(suite.model, dtype=task.dtype)
    sets = [
        build_prompts(
            name,
            loaded.tokenizer,
            requests=task.requests,
            tokens=task.tokens + task.continuation + 1,
            seed=suite.capture_seed,
        )
        for name in workloads
        if ALL in task.workloads or name in task.workloads
    ]
    if not sets:
        raise InputError("quality.workloads", list(task.workloads), f"none of them among {list(workloads)}")
    folder = out / QUALITY
    with time_left("measuring output") as progress:
        record = run_quality(
            loaded,
            sets,
            QualityPlan(methods=tuple(task.methods()), continuation=task.continuation),
            cells=folder / "cells",
            jobs=jobs,
            dask=dask,
            progress=lambda done, whole, name: progress(done / whole, name),
        )
    write_record(record, folder / "quality.json", force=True)
    save_quality_figure(record, folder)
    if not quiet:
        for entry in record.summary:
            if entry["kind"] == "verdict":
                print(entry["text"])
        print(folder / "quality.json")


def _captures(suite: Suite, out: Path, workloads: Sequence[str]) -> list[Capture]:
    """Captures of the suite's workloads, made where they are not there yet."""
    from ratedist.validate.suite.run import capture_suite
    from ratedist.validate.workloads import WORKLOADS

    chosen = _choose(suite.workloads(tuple(WORKLOADS)), workloads)

    from ratedist.validate.models import load_model

    loaded = load_model(suite.model)
    start = time.monotonic()
    with time_left("capturing") as progress:
        captures = capture_suite(
            suite,
            loaded,
            out,
            chosen,
            progress=lambda done, whole, name: progress(done / whole, name),
        )
    messages().print(
        f"captures of {len(captures)} workloads: {time.monotonic() - start:.0f} s", highlight=False
    )
    return captures


def _compute(
    suite: Suite,
    captures: Sequence[Capture],
    out: Path,
    *,
    jobs: int,
    dask: str | None,
    force: bool,
    json: bool,
) -> bool | None:
    """Run what is left of the cells, write and show the record; whether goals are met, None without any."""
    from ratedist.figures.suite import save_suite_figures
    from ratedist.suite_record import write_suite_record
    from ratedist.validate.suite.folder import RECORD, SuiteFolder
    from ratedist.validate.suite.run import fingerprint, plan_work, run_cells, suite_settings
    from ratedist.validate.suite.summary import make_record

    work = plan_work(suite, captures)
    marks = {capture.manifest.workload: fingerprint(capture.manifest) for capture in captures}
    folder = SuiteFolder.claim(out, suite_settings(suite, captures), marks, force=force)
    start = time.monotonic()
    with time_left("comparing") as progress:
        run_cells(suite, work, folder, jobs=jobs, dask=dask, progress=progress)
    messages().print(f"cells: {time.monotonic() - start:.0f} s", highlight=False)
    record = make_record(suite, work, folder)
    write_suite_record(record, out / RECORD)
    pictures = save_suite_figures(record, out)
    if json:
        print_json(record.to_json())
    else:
        print_suite(record)
        for path in (out / RECORD, *pictures):
            print(path)
    judged = [bool(goal["met"]) for goal in record.goals if goal["chosen"]]
    return all(judged) if judged else None


def _choose(there: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The wanted workloads, all where none is named; raises InputError for one that is not there."""
    for name in wanted:
        if name not in there:
            raise InputError(
                "workloads", name, f"is not a workload of the suite; choose among {', '.join(there)}"
            )
    return tuple(name for name in there if name in wanted) if wanted else tuple(there)


@contextmanager
def time_left(what: str) -> Iterator[Callable[[float, str], None]]:
    """Progress on standard error; what it gives is called with the share done and the name of what was done.

    The time left is that of the share left, at the pace since the first call. Where standard error is no
    terminal, a line is printed every ten seconds instead of a bar.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = messages()
    first: tuple[float, float] | None = None
    last = time.monotonic()

    def left(share: float) -> str:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = (now, share)
        begun, before = first
        if share <= before:
            return ""
        return f"{_minutes((now - begun) * (1 - share) / (share - before))} left"

    if not console.is_terminal:

        def line(share: float, name: str) -> None:
            nonlocal last
            text = left(share)
            if share >= 1 or time.monotonic() - last >= 10:
                last = time.monotonic()
                console.print(f"{what}: {share:.0%} ({name}) {text}".rstrip(), highlight=False)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=1.0, left="")

        def advance(share: float, name: str) -> None:
            bar.update(task, completed=share, description=f"{what}: {name}", left=left(share))

        yield advance


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def print_suite(record: SuiteRecord) -> None:
    """Print the words and the summary of a record on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 124)
    for sentence in record.words:
        console.print(sentence, highlight=False)
    table = Table(
        box=SIMPLE_HEAD,
        title="|ln(predicted / measured compression)|; best: what n requests can tell at best; noise: what "
        "knowing the workload exactly would leave",
    )
    for heading in ("workload", "n → m", "predictor"):
        table.add_column(heading)
    for heading in ("median", "best", "noise", "90 %", "best", "noise", "bands hold", "rows", "refused"):
        table.add_column(heading, justify="right")
    for entry in record.summary:
        parts = [entry[name] for name in ("mode", "variant", "criterion") if entry[name] is not None]
        mode = f" ({', '.join(parts)})" if parts else ""
        table.add_row(
            entry["workload"] + mode,
            f"{entry['n']} → {entry['m']}",
            entry["predictor"] + (" *" if entry.get("chosen") else ""),
            _number(entry["median_abs_log_ratio"]),
            _number(entry["sample_median"]),
            _number(entry["noise_median"]),
            _number(entry["p90_abs_log_ratio"]),
            _number(entry["sample_p90"]),
            _number(entry["noise_p90"]),
            "–" if entry["band_coverage"] is None else f"{entry['band_coverage']:.0%}",
            str(entry["rows"]),
            str(entry["refused"] or ""),
        )
    console.print(table)


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
