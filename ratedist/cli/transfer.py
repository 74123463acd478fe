"""``ratedist transfer``: what is calibrated on one model or workload, applied to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import Dask, Force, Jobs, Json, print_json
from ratedist.cli.variadic import split_numbers
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.records import Record
    from ratedist.validate.transfer.run import TransferPlan

__all__ = ["RECORD", "SUMMARY", "transfer"]

RECORD = "transfer.json"
SUMMARY = "transfer-summary.json"
"""The record without its rows, which are megabytes, and with the matrix of the chosen predictor alone."""

_LEFT_OUT = "rows, and matrix entries of predictors that were not chosen"


def transfer(
    out: Annotated[Path, typer.Option("--out", help="Folder of the record; the same command goes on there.")],
    capture: Annotated[
        list[Path] | None,
        typer.Option("--capture", help="Folders of captures, at least two: of one or of several models."),
    ] = None,
    calibrate: Annotated[int, typer.Option("--calibrate", help="Requests of the source.")] = 16,
    measure: Annotated[int, typer.Option("--measure", help="Requests of the target.")] = 16,
    layers: Annotated[
        int, typer.Option("--layers", help="Layers of each model, spread evenly over its depth.")
    ] = 3,
    seeds: Annotated[
        list[str] | None, typer.Option("--seeds", help="One split of the requests each. [default: 0 1]")
    ] = None,
    goal: Annotated[
        list[str] | None,
        typer.Option(
            "--goal",
            help="What thresholds are chosen for: k_error=0.1, v_error=0.2, compression=1.5; one or several. "
            "[default: k_error=0.1 k_error=0.2 v_error=0.2 compression=1.5]",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option("--threshold", help="Thresholds of predictions. [default: 0.60 to 0.95 by 0.05]"),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="leader, tree, or both. [default: leader]")
    ] = None,
    criterion: Annotated[
        list[str] | None, typer.Option("--criterion", help="keys, both, or each. [default: keys]")
    ] = None,
    predictor: Annotated[
        list[str] | None, typer.Option("--predictor", help="Predictors by name. [default: all]")
    ] = None,
    jobs: Jobs = 1,
    dask: Dask = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Calibrate on one capture, predict and fuse another: of another model, or of another workload.

    Captures are compared that share their model or the name of their workload; layers of models are matched
    by depth. Beside predictions it transfers thresholds: the one that keeps a goal in the source, and what it
    gives in the target. It keeps every finished cell in `--out`: after Ctrl-C the same command goes on there.

    Example: `ratedist transfer --capture captures/documents captures/qwen2-documents --out out/transfer`
    """
    from ratedist.cli.suite import time_left
    from ratedist.cli.validate import load_figures
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.transfer.run import TransferPlan, run_transfer
    from ratedist.validate.transfer.thresholds import parse_goal

    plan = TransferPlan(calibrate=calibrate, measure=measure, layers=layers)
    options: dict[str, Any] = {
        "seeds": tuple(_whole("seeds", number) for number in split_numbers("seeds", seeds or [])),
        "goals": tuple(map(parse_goal, goal or ())),
        "thresholds": tuple(split_numbers("threshold", threshold or [])),
        "variants": tuple(variant or ()),
        "criteria": tuple(criterion or ()),
        "predictors": tuple(predictor or ()),
    }
    plan = replace(plan, **{name: value for name, value in options.items() if value})
    load_figures()
    captures = [Capture.open(folder) for folder in capture or ()]
    with time_left("transferring") as progress:
        record = run_transfer(captures, plan, out, jobs=jobs, dask=dask, force=force, progress=progress)
    picture = _write(record, out)
    if json:
        print_json(asdict(record))
        return
    _print(record, plan)
    for path in (out / RECORD, out / SUMMARY, picture):
        typer.echo(path)


def _write(record: Record, out: Path) -> Path:
    from ratedist.figures.transfer import save_transfer_figure
    from ratedist.records import write_record

    # The folder is the transfer's own: what it holds was claimed, or made by an earlier run of this command.
    write_record(record, out / RECORD, force=True)
    write_record(_shortened(record), out / SUMMARY, force=True)
    return save_transfer_figure(record, out)


def _shortened(record: Record) -> Record:
    if not any(entry.get("chosen") for entry in record.summary):
        return replace(record, rows=[], provenance={**record.provenance, "left_out": "rows"})
    summary = [entry for entry in record.summary if entry["kind"] != "matrix" or entry["chosen"]]
    return replace(record, rows=[], summary=summary, provenance={**record.provenance, "left_out": _LEFT_OUT})


def _print(record: Record, plan: TransferPlan) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 124)
    for sentence in record.provenance["words"]:
        console.print(sentence, highlight=False)
    table = Table(
        box=SIMPLE_HEAD,
        title=f"|ln(predicted / measured compression)|, {plan.calibrate} → {plan.measure} requests",
    )
    for heading in ("calibrated on", "predictor"):
        table.add_column(heading)
    for heading in ("median", "90 %", "noise", "nothing fuses", "bands hold", "rows", "refused"):
        table.add_column(heading, justify="right")
    for entry in record.summary:
        if entry["kind"] == "relation":
            table.add_row(*_cells(entry))
    console.print(table)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    numbers = [
        entry[name]
        for name in ("median_abs_log_ratio", "p90_abs_log_ratio", "noise_median", "unfused_median")
    ]
    held = entry["band_coverage"]
    return [
        {"own": "the same"}.get(entry["relation"], f"an{entry['relation']}"),
        entry["predictor"] + (" *" if entry["chosen"] else ""),
        *("–" if number is None else f"{number:.3f}" for number in numbers),
        "–" if held is None else f"{held:.0%}",
        str(entry["rows"]),
        str(entry["refused"] or ""),
    ]


def _whole(argument: str, number: float) -> int:
    if number != int(number) or number < 0:
        raise InputError(argument, number, "must be a whole number from 0 on")
    return int(number)
