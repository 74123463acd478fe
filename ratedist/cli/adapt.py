"""``ratedist adapt``: what adaptive thresholds would have done on a stream of captured requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ratedist.cli.options import Force, Json, Out, Seed, claim_folder, messages, print_json
from ratedist.cli.validate import load_figures

if TYPE_CHECKING:
    from ratedist.records import Record

__all__ = ["adapt"]


def adapt(
    capture: Annotated[
        list[Path],
        typer.Option("--capture", help="Folders of captures, two or more, in the order of the stream."),
    ],
    target: Annotated[
        float,
        typer.Option("--target", help="Promised mean squared relative error of K and V over all blocks."),
    ] = 0.05,
    window: Annotated[
        int, typer.Option("--window", help="Requests over which the promise is kept, wherever they begin.")
    ] = 50,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Layer of the captures. [default: the middle one]")
    ] = None,
    resident: Annotated[
        int, typer.Option("--resident", help="Requests in the cache at a time; the oldest leaves.")
    ] = 32,
    probes: Annotated[
        int, typer.Option("--probes", help="Blocks per request that are looked at whatever the threshold.")
    ] = 8,
    criterion: Annotated[str, typer.Option("--criterion", help="keys or both.")] = "both",
    scale: Annotated[str, typer.Option("--scale", help="own-norm or projection.")] = "own-norm",
    alarm_rate: Annotated[
        float, typer.Option("--alarm-rate", help="False alarms per request that are allowed.")
    ] = 1e-3,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Stream captured requests through a cache whose threshold follows them and keeps a promised error.

    Beside it stand a threshold that was calibrated on the first capture, and an oracle that knows when each
    begins. `--out` names a folder for the record (adapt.json) and the figure (adapt.png).

    Example: `ratedist adapt --capture captures/unrelated captures/templates --target 0.05 --out out/adapt`
    """
    if out is not None:
        load_figures()
        claim_folder(out, force=force)
    from ratedist.validate.adaptive import adapt as run
    from ratedist.validate.captures.store import Capture

    opened = [Capture.open(folder) for folder in capture]
    if layer is None:
        layers = opened[0].manifest.layers
        layer = layers[len(layers) // 2]
    with messages().status("…") as status:
        record = run(
            opened,
            layer=layer,
            target=target,
            window=window,
            resident=resident,
            probes=probes,
            criterion=criterion,
            scale=scale,
            alarm_rate=alarm_rate,
            seed=seed,
            progress=status.update,
        )
    if out is not None:
        _write(record, out, force)
    if json:
        print_json({"rows": record.rows, "summary": record.summary})
    else:
        _print(record)


def _write(record: Record, out: Path, force: bool) -> None:
    from ratedist.figures.adaptive import plot_adaptive
    from ratedist.figures.style import style
    from ratedist.records import write_record

    write_record(record, out / "adapt.json", force=force)
    with style():
        plot_adaptive(record).savefig(out / "adapt.png")


def _print(record: Record) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = record.provenance
    table = Table(
        title=f"{' → '.join(settings['workloads'])}, layer {settings['layer']}",
        caption=f"worst: of {settings['window']} requests, promised {settings['target']:g}; "
        "at most: on any traffic",
    )
    for column in ("policy", "error", "worst", "at most", "absorbed", "compression", "alarms"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in record.summary:
        table.add_row(
            row["policy"],
            f"{row['error']:.4f}",
            f"{row['largest_window_error']:.4f}",
            "" if row["guarantee"] is None else f"{row['guarantee']:.4f}",
            f"{row['absorbed']:.3f}",
            f"{row['compression']:.3f}",
            ", ".join(map(str, row["alarms"])),
        )
    Console().print(table)
