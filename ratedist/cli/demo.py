"""``ratedist demo``: the whole path on the embedded model, from capture to pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import Json, Seed, messages, print_json
from ratedist.cli.validate import load_figures, print_tables, progress_bar

if TYPE_CHECKING:
    from ratedist.validate.agreement import Agreement

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder of the demonstration: it owns it, and uses its captures again."),
    ] = Path("out/demo"),
    model: Annotated[
        str | None,
        typer.Option("--model", help="Hugging Face id, folder or GGUF file. [default: the embedded model]"),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="Requests per workload.", min=4)] = 24,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens per request.", min=32)] = 384,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Capture a model on four built-in workloads, predict what fusion saves and costs, measure it, show both.

    Then runs the Triton kernels (in Triton's interpreter where there is no GPU) on a layer of every workload
    and exits with 1 if they do not fuse and attend as the CPU path does.

    Example: `ratedist demo --out out/demo`
    """
    from ratedist.validate.measure import runtime_for

    # Before a model is loaded, which imports Triton: then it is too late to switch the interpreter on.
    kernels = runtime_for("triton")

    import torch

    from ratedist.validate.compare import Plan, compare
    from ratedist.validate.demo import RECORD, agreements, capture_workloads, claim_demo_folder
    from ratedist.validate.models import load_model

    load_figures()
    console = messages()
    claim_demo_folder(out)
    start = time.monotonic()

    def note(text: str) -> None:
        console.print(f"{time.monotonic() - start:5.0f} s  {text}", highlight=False, soft_wrap=True)

    loaded = load_model(model)
    with progress_bar("capturing") as progress:
        captures = capture_workloads(
            loaded, out, requests=requests, tokens=tokens, seed=seed, progress=progress
        )
    # The weights are not needed any more, and the comparison may have the memory.
    del loaded
    note(f"captured {len(captures)} workloads of {requests} requests with {tokens} tokens")
    # The products of one such layer are small: a second thread would wait more than it computes.
    torch.set_num_threads(1)
    with progress_bar("comparing") as progress:
        record = compare(
            captures,
            Plan(variants=("leader", "tree"), seed=seed),
            progress=progress,
            jobs=os.cpu_count() or 1,
        )
    note(f"compared predictions with fusion of {record.rows[0]['requests']} unseen requests per workload")
    with progress_bar("checking kernels") as progress:
        checks = agreements(captures, kernels, seed=seed, progress=progress)
    how = "interpreted" if kernels.interpreted else f"on {kernels.device_name}"
    note(f"ran the Triton kernels ({how}) beside the CPU path")
    record.provenance["kernels"] = {
        "backend": kernels.backend,
        "device": kernels.device_name,
        "interpreted": kernels.interpreted,
        "checks": [_as_json(*check) for check in checks],
    }

    from ratedist.figures.report.build import build_report
    from ratedist.figures.validation import save_validation_figures
    from ratedist.records import write_record

    write_record(record, out / RECORD, force=True)
    pictures = save_validation_figures(record, out)
    (page,) = build_report([out / RECORD], out / "report.html", force=True)
    note(f"wrote {out / RECORD} and the pictures")
    if json:
        print_json(asdict(record))
    else:
        print_tables(record)
        _print_checks(checks, how)
        for picture in pictures:
            print(f"picture: {picture}")
        print(f"\nreport, for a browser: {page}")
    if not all(agreement.holds for _, _, agreement in checks):
        console.print("[bold red]the Triton kernels and the CPU path differ[/bold red], see the table above")
        raise typer.Exit(1)


def _as_json(workload: str, layer: int, agreement: Agreement) -> dict[str, Any]:
    return {"workload": workload, "layer": layer, **asdict(agreement), "holds": agreement.holds}


def _print_checks(checks: Sequence[tuple[str, int, Agreement]], how: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Triton kernels ({how}) against the CPU path", box=SIMPLE_HEAD)
    for heading in ("workload", "layer", "variant", "τ", "blocks", "kept", "mapping", "attention"):
        table.add_column(heading, justify="left" if heading in ("workload", "variant") else "right")
    for workload, layer, agreement in checks:
        mapping = "same" if agreement.same_mapping else f"{agreement.different} differ"
        if agreement.near_ties:
            mapping += f" ({agreement.near_ties} near ties)"
        attention = f"within {max(agreement.output_difference, agreement.lse_difference):.1e}"
        table.add_row(
            workload,
            str(layer),
            agreement.variant,
            f"{agreement.threshold:g}",
            str(agreement.blocks),
            " / ".join(map(str, agreement.kept)),
            mapping,
            attention if agreement.holds else f"{attention}: DIFFERS",
        )
    Console(width=None if Console().is_terminal else 124).print(table)
