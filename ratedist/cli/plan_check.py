"""``ratedist plan-check``: whether plans keep their promises on requests that they were not made on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import Dask, Device, Dtype, Force, Jobs, Json, Model, messages, print_json
from ratedist.cli.plan_options import (
    Bits,
    ChunkBlocks,
    Continuation,
    Criteria,
    Modes,
    Scales,
    Thresholds,
    Tolerance,
    Variants,
    given_settings,
)
from ratedist.cli.suite import time_left

if TYPE_CHECKING:
    from ratedist.records import Record

__all__ = ["plan_check"]

RECORD = "plan-check.json"
WORKLOADS = ("templates", "system-prompt", "documents", "few-shot", "tool-calls", "edited")


def plan_check(
    out: Annotated[
        Path, typer.Option(help="Folder for cells, record and picture; run again, it goes on there.")
    ],
    workload: Annotated[
        list[str] | None, typer.Option(help="Built-in workloads.", show_default=" ".join(WORKLOADS))
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Of both draws.", show_default="0 1 2")] = None,
    model: Model = None,
    max_kl: Annotated[float, typer.Option(help="The goal whose promise is tested, in nats.")] = 0.02,
    tolerance: Tolerance = 1.5,
    goals: Annotated[
        list[float] | None,
        typer.Option(help="Further --max-kl, for the curve of bytes.", show_default="0.005 0.05"),
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests to plan on, and as many held out.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of each whose cache is planned.")] = 256,
    continuation: Continuation = 32,
    threshold: Thresholds = None,
    criterion: Criteria = None,
    variant: Variants = None,
    scale: Scales = None,
    mode: Modes = None,
    chunk_blocks: ChunkBlocks = 4,
    bits: Bits = None,
    drift_to: Annotated[
        list[str] | None,
        typer.Option(help="Workloads that every plan also meets.", show_default="unrelated near-duplicates"),
    ] = None,
    stop_after: Annotated[
        float | None, typer.Option(help="Begin no cell after so many minutes; run again to go on.")
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Exit with 1 where a promise is missed.")] = False,
    jobs: Jobs = 1,
    dask: Dask = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Make plans on some requests and measure them on others, for many workloads and seeds.

    For every workload and seed a plan is made on calibration requests and fused for real on held-out ones:
    does the divergence stay within the tolerance, does the plan save what the best single threshold would
    have saved that was chosen there, in hindsight, and are its bytes fewer at equal divergence (BD-rate)?
    Then the plan meets other traffic. Finished cells are kept, so a run that was stopped goes on.

    Example: `ratedist plan-check --workload templates documents --seeds 0 1 --out out/plan-check`
    """
    from ratedist.errors import InputError
    from ratedist.figures.planning import save_planning_figure
    from ratedist.records import write_record
    from ratedist.validate.models import load_model
    from ratedist.validate.planning.promise import PromiseSettings
    from ratedist.validate.planning.promise_run import run_promise

    if out.exists() and not out.is_dir():
        raise InputError("out", str(out), "is a file; name a folder")
    given: dict[str, Any] = {"goals": goals, "drift": drift_to}
    settings = PromiseSettings(
        max_kl=max_kl,
        tolerance=tolerance,
        requests=requests,
        tokens=tokens,
        continuation=continuation,
        settings=tuple(
            given_settings(
                threshold=threshold,
                criterion=criterion,
                variant=variant,
                scale=scale,
                mode=mode,
                chunk_blocks=chunk_blocks,
                bits=bits,
            )
        ),
        **{name: tuple(values) for name, values in given.items() if values},
    )
    loaded = load_model(model, dtype=dtype, device=device)
    with time_left("checking plans") as progress:
        record = run_promise(
            loaded,
            workload or WORKLOADS,
            (0, 1, 2) if seeds is None else seeds,
            settings,
            out,
            force=force,
            stop_after=None if stop_after is None else 60 * stop_after,
            jobs=jobs,
            dask=dask,
            progress=progress,
        )
    if record is None or record.provenance["missing"]:
        messages().print("stopped in between; run the same command again, it goes on", highlight=False)
    if record is None:
        return
    write_record(record, out / RECORD, force=True)
    picture = save_planning_figure(record, out)
    if json:
        print_json(asdict(record))
    else:
        _print(record)
        print(out / RECORD, picture, sep="\n")
    if judge and not all(entry["met"] for entry in record.summary if entry["kind"] == "goal"):
        raise typer.Exit(1)


def _print(record: Record) -> None:
    """The words, failures first, then a line per workload and seed."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 124)
    for entry in record.summary:
        if entry["kind"] == "words":
            console.print(entry["text"], highlight=False)
    table = Table(box=SIMPLE_HEAD, title="saved: by the plan, and by the best single threshold in hindsight")
    for heading in ("workload", "seed"):
        table.add_column(heading)
    for heading in ("KL predicted", "band", "KL measured", "saved", "hindsight", "BD-rate"):
        table.add_column(heading, justify="right")
    for row in record.rows:
        plan, delta = row["plan"], row["bd_rate"]["percent"]
        table.add_row(
            row["workload"],
            str(row["seed"]),
            f"{plan['kl_predicted']:.4f}",
            f"{plan['kl_low']:.4f} to {plan['kl_high']:.4f}",
            f"{plan['kl_measured']:.4f}" + ("" if row["kl_kept"] else " !"),
            f"{plan['saving_measured']:.1%}" + ("" if row["hindsight"]["kept"] else " !"),
            f"{row['hindsight']['saving']:.1%}",
            "–" if delta is None else f"{delta:+.1f} %",
        )
    console.print(table)
