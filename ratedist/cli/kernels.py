"""``ratedist kernels``: compile every kernel ahead of time and show what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ratedist.cli.options import Force, Json, Out, messages, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from ratedist.kernels.compile import KernelReport

__all__ = ["kernels", "table_of"]


def kernels(
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="GPU to compile for: cuda:80, cuda:90 or hip:gfx942. Repeat it for several; all by default.",
        ),
    ] = None,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compile every Triton kernel in every form that its launcher can pick; no GPU is needed.

    Prints registers and spills (bytes of stack) per thread, bytes of shared memory, bytes of the narrowest
    load from a pool of keys or values, and matrix instructions; then, for a problem of ordinary size, useful
    operations per byte, what bounds the kernel, and the time that published peaks allow: an estimate, which
    no GPU has confirmed. --json and the record that --out names have problem, GPU and attainable share too.

    Example: `ratedist kernels --target cuda:90 --json`
    """
    # Compiling and interpreting exclude each other, and Triton has not been imported yet.
    os.environ.pop("TRITON_INTERPRET", None)

    from rich.progress import Progress

    from ratedist.errors import InputError
    from ratedist.kernels.compile import TARGETS, compile_kernel, specialisations
    from ratedist.records import Record, provenance, write_record

    # A target may be named twice; one that is unknown is refused before anything is compiled.
    wanted = list(dict.fromkeys(target or TARGETS))
    _refuse_unknown(wanted, tuple(TARGETS))
    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    work = [(name, specialisation) for name in wanted for specialisation in specialisations()]
    reports = []
    with Progress(console=messages(), transient=True) as progress:
        task = progress.add_task("compiling", total=len(work))
        for name, specialisation in work:
            progress.update(task, description=f"{name} {specialisation.name}")
            reports.append(compile_kernel(specialisation, name))
            progress.advance(task)
    if out is not None:
        rows = [report.to_dict() for report in reports]
        summary = [_extremes(name, reports) for name in wanted]
        write_record(Record("ratedist/kernels/1", provenance(), rows, summary), out, force=force)
    if json:
        print_json({"kernels": [report.to_dict() for report in reports]})
        return

    from rich.console import Console

    for name in wanted:
        title = f"{name} (shared memory: {TARGETS[name].shared_limit} bytes)"
        Console().print(table_of(title, [report for report in reports if report.target == name]))


def table_of(title: str, reports: Sequence[KernelReport]) -> Table:
    """What became of the kernels for one target, and what they can at best take there, in 110 columns."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{title}; estimated for {reports[0].roofline.gpu}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("kernel", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    for heading in ("regs", "spills", "shared", "load", "matrix", "ops/byte", "bound", "est. µs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        shown = (
            str(report.registers),
            str(report.spills),
            str(report.shared_bytes),
            str(report.load_bytes),
            str(report.matrix_instructions),
            f"{report.arithmetic_intensity:.1f}",
            report.roofline.bound,
            f"{report.roofline.seconds * 1e6:.1f}",
        )
        # Brackets are markup to rich.
        table.add_row(report.name.replace("[", r"\["), report.dtype, *shown)
    return table


def _extremes(target: str, reports: Sequence[KernelReport]) -> dict[str, str | int]:
    """The worst of every quantity over the kernels of one target."""
    here = [report for report in reports if report.target == target]
    return {
        "target": target,
        "kernels": len(here),
        "most_registers": max(report.registers for report in here),
        "most_spills": max(report.spills for report in here),
        "most_shared_bytes": max(report.shared_bytes for report in here),
        "shared_limit": here[0].shared_limit,
        "narrowest_load_bytes": min(report.load_bytes for report in here),
        "low_precision_products": sum(report.has_product and report.dtype != "float32" for report in here),
        "of_them_without_matrix_instructions": sum(
            report.has_product and report.dtype != "float32" and not report.matrix_instructions
            for report in here
        ),
    }


def _refuse_unknown(wanted: list[str], known: tuple[str, ...]) -> None:
    from ratedist.errors import InputError

    for name in wanted:
        if name not in known:
            raise InputError("target", name, f"must be one of {', '.join(known)}")
