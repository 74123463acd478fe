"""``ratedist validate``: predicted beside measured on captured caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ratedist.cli.options import (
    Dask,
    Force,
    FusedLayers,
    Jobs,
    Json,
    Out,
    Scale,
    Seed,
    claim_folder,
    messages,
    print_json,
)
from ratedist.cli.variadic import split_numbers
from ratedist.errors import InputError, RatedistError

if TYPE_CHECKING:
    from ratedist.records import Record

__all__ = ["load_figures", "print_tables", "progress_bar", "validate"]

RECORD = "validation.json"


def validate(
    capture: Annotated[
        list[Path] | None,
        typer.Option("--capture", help="Folder of a capture; several, one per workload of one model."),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="What fuses: reference, cpu, triton, or auto (a GPU if there is one)."
        ),
    ] = "auto",
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", help="leader, tree, or both of them. [default: leader]"),
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            "--criterion", help="Match by keys, or by both keys and values; one or several. [default: keys]"
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", help="Thresholds, e.g. 0.7 0.8. [default: 0.60 to 0.95 by 0.05]"),
    ] = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option("--predictor", help="Predictors by name. [default: all]"),
    ] = None,
    layers: FusedLayers = None,
    scale: Scale = "own-norm",
    jobs: Jobs = 1,
    dask: Dask = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="What ratedist plan wrote: every layer at its own setting, predicted beside fused. Variant, "
            "criterion, threshold, layers and scale are the plan's, so leave them out.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            help="Run the protocol instead: standard, full, splits (many more of them, few layers), or a "
            "JSON file; captures what it needs.",
        ),
    ] = None,
    workloads: Annotated[
        list[str] | None, typer.Option("--workloads", help="With --suite: only these of its workloads.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="With --suite: id, folder or GGUF file to capture. [default: the embedded model]"
        ),
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--parts", help="With --suite: only these: prediction, transfer, quality."),
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="With --suite: exit with 1 where a goal is missed.")
    ] = False,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fit predictors on half of each capture's requests, fuse the other half, and show both.

    Prints a table; with `--out` writes the record (validation.json), a picture per workload and an overview.
    Without a GPU, `--backend triton` runs the kernels in Triton's interpreter: correct, and slow.

    With `--suite` it runs the protocol: random splits of many workloads, repeated over seeds, each predicted
    and measured beside the noise of measuring. It keeps every finished cell in `--out`: after Ctrl-C or a
    crash the same command goes on there. `--force` computes the cells anew, captures are kept.

    With `--plan` every layer is fused at the plan's own setting, and predicted at it: a table per layer and
    for all of them together; `--out` takes the record (plan-unseen.json).

    Example: `ratedist validate --capture out/demo/captures/documents --variant leader tree --out out/mine`

    Example: `ratedist validate --suite standard --jobs 2 --out out/standard`

    Example: `ratedist validate --plan plan.json --capture captures/mine`
    """
    settings = {
        "variant": (variant, None),
        "criterion": (criterion, None),
        "threshold": (threshold, None),
        "layers": (layers, None),
        "scale": (scale, "own-norm"),
    }
    further = {"backend": (backend, "auto"), "predictor": (predictor, None), "seed": (seed, 0)}
    if suite is not None:
        if plan is not None:
            raise InputError("plan", str(plan), "is for captures; leave out --suite, or the plan")
        for option, (value, default) in (settings | further).items():
            if value not in (default, []):
                raise InputError(option, value, "is the suite's to say; write it into a suite file")
        from ratedist.cli.suite import run_suite

        run_suite(
            suite,
            out=out,
            captures=capture or [],
            workloads=workloads or [],
            parts=parts or [],
            model=model,
            jobs=jobs,
            dask=dask,
            judge=judge,
            force=force,
            json=json,
        )
        return
    for option, given in (("workloads", workloads), ("parts", parts), ("model", model), ("judge", judge)):
        if given:
            raise InputError(option, given, "goes with --suite")
    if plan is not None:
        for option, (value, default) in settings.items():
            if value not in (default, []):
                raise InputError(option, value, "is the plan's to say; leave it out, or --plan")
        from ratedist.cli.validate_plan import validate_plan

        validate_plan(
            plan,
            capture or [],
            predictors=predictor or [],
            backend=backend,
            jobs=jobs,
            dask=dask,
            seed=seed,
            out=out,
            force=force,
            json=json,
        )
        return
    if not capture:
        raise InputError(
            "capture", None, "name at least one capture's folder; make one with ratedist capture"
        )
    from ratedist.cli.capture import parse_layers
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.compare import Plan, compare
    from ratedist.validate.measure import runtime_for

    defaults = Plan()
    compared = Plan(
        thresholds=tuple(split_numbers("threshold", threshold)) if threshold else defaults.thresholds,
        variants=tuple(variant) if variant else defaults.variants,
        criteria=tuple(criterion) if criterion else defaults.criteria,
        scale=scale,
        predictors=tuple(predictor) if predictor else defaults.predictors,
        seed=seed,
    )
    runtime = runtime_for(backend)
    if out is not None:
        load_figures()
    captures = [Capture.open(folder) for folder in capture]
    if layers is not None:
        chosen = parse_layers(layers, captures[0].manifest.model_layers)
        compared = replace(compared, layers=tuple(chosen or captures[0].manifest.layers))
    if out is not None:
        claim_folder(out, force=force)
    with progress_bar("validating") as progress:
        record = compare(captures, compared, runtime=runtime, progress=progress, jobs=jobs, dask=dask)
    if out is not None:
        _write(record, out)
    if json:
        print_json(asdict(record))
        return
    print_tables(record)
    if out is not None:
        messages().print(f"record and pictures: {out}", highlight=False, soft_wrap=True)


def load_figures() -> None:
    """Raise RatedistError, with the command to run, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RatedistError(
            "pictures need matplotlib, which is not installed: pip install 'ratedist[plots]'"
        ) from error


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error; what it gives is called with steps done, steps in all, and the step's name.

    Where standard error is no terminal, a line is printed every ten seconds instead.
    """
    from rich.progress import Progress

    console = messages()
    if not console.is_terminal:
        last = time.monotonic()

        def line(done: int, total: int, name: str) -> None:
            nonlocal last
            if done == total or time.monotonic() - last >= 10:
                last = time.monotonic()
                console.print(f"{what}: {done} of {total} ({name})", highlight=False)

        yield line
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, name: str) -> None:
            bar.update(task, total=total, completed=done, description=f"{what}: {name}")

        yield advance


def print_tables(record: Record) -> None:
    """Print a record on standard output: all fused layers together by threshold, then the summary."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ratedist.validate.summary import HIGHEST_SHARE, LOWEST_COMPRESSION
    from ratedist.validate.table import over_layers

    console = Console(width=None if Console().is_terminal else 124)
    entries = over_layers(record.rows)
    predictors = list(dict.fromkeys(entry["predictor"] for entry in entries))
    modes = dict.fromkeys((e["workload"], e["variant"], e["criterion"]) for e in entries)
    for workload, variant, criterion in modes:
        here = [
            e
            for e in entries
            if (e["workload"], e["variant"], e["criterion"]) == (workload, variant, criterion)
        ]
        table = Table(
            title=f"{workload}: {variant}, criterion {criterion}, {here[0]['layers']} layers",
            box=SIMPLE_HEAD,
            padding=0,
        )
        table.add_column("τ", justify="right")
        for quantity in ("fused layers", "whole cache", "K error", "V error"):
            table.add_column(f"{quantity}\nmeasured", justify="right")
            for name in predictors:
                table.add_column(name.replace("-", "-\n"), justify="right", vertical="bottom")
        for threshold in dict.fromkeys(e["threshold"] for e in here):
            cells = [e for e in here if e["threshold"] == threshold]
            numbers = [f"{threshold:g}"]
            for field in ("compression", "cache_compression"):
                numbers += [f"{e:.2f}×" for e in _measured_then_predicted(cells, field)]
            for field in ("k_error", "v_error"):
                numbers += [f"{e:.3f}" for e in _measured_then_predicted(cells, field)]
            table.add_row(*numbers)
        console.print(table)
    table = Table(
        box=SIMPLE_HEAD,
        title="|ln(predicted / measured compression)|, rows of one layer and threshold measured between "
        f"{LOWEST_COMPRESSION:g} and {HIGHEST_SHARE:g} × requests",
    )
    for heading in ("workload", "predictor", "median", "90 % quantile", "rows"):
        table.add_column(heading, justify="left" if heading in ("workload", "predictor") else "right")
    for entry in record.summary:
        figures = [entry["median_abs_log_ratio"], entry["p90_abs_log_ratio"]]
        shown = ["–" if figure is None else f"{figure:.3f}" for figure in figures]
        table.add_row(entry["workload"], entry["predictor"], *shown, str(entry["rows"]))
    console.print(table)
    for sentence in _unseen(record):
        console.print(sentence, highlight=False)


def _unseen(record: Record) -> list[str]:
    """Where no pair of calibration blocks exceeded the threshold, and what to do about it."""
    layers: dict[tuple[str, str, float], set[int]] = {}
    for row in record.rows:
        if row["calibration_exceedances"] == 0:
            place = (row["workload"], row["criterion"], row["threshold"])
            layers.setdefault(place, set()).add(row["layer"])
    lowest: dict[tuple[str, str], tuple[float, int]] = {}
    for (workload, criterion, threshold), found in sorted(layers.items()):
        lowest.setdefault((workload, criterion), (threshold, len(found)))
    return [
        f"{workload}, criterion {criterion}: from τ = {threshold:g} on, in {count} layers or more, no pair "
        "of calibration blocks exceeds the threshold, so predictions there rest on what lies below; "
        "calibrate on more requests, or take lower thresholds."
        for (workload, criterion), (threshold, count) in lowest.items()
    ]


def _measured_then_predicted(cells: list[dict[str, float]], field: str) -> list[float]:
    return [cells[0][f"{field}_measured"], *(cell[f"{field}_predicted"] for cell in cells)]


def _write(record: Record, folder: Path) -> None:
    from ratedist.figures.validation import save_validation_figures
    from ratedist.records import write_record

    write_record(record, folder / RECORD, force=True)
    save_validation_figures(record, folder)
