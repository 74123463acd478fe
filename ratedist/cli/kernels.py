"""``ratedist kernels``: compile every kernel ahead of time and show what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ratedist.cli.options import Json, messages, print_json

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
    json: Json = False,
) -> None:
    """Compile every Triton kernel in every form that its launcher can pick; no GPU is needed.

    Prints registers and spills (bytes of stack) per thread, bytes of shared memory, bytes of the narrowest
    load from a pool of keys or values, and matrix instructions; then, for a problem of ordinary size, useful
    operations per byte, what bounds the kernel, and the time that published peaks allow: an estimate, which
    no GPU has confirmed. --json names problem, GPU and attainable share as well.

    Example: `ratedist kernels --target cuda:90 --json`
    """
    # Compiling and interpreting exclude each other, and Triton has not been imported yet.
    os.environ.pop("TRITON_INTERPRET", None)

    from rich.progress import Progress

    from ratedist.kernels.compile import TARGETS, compile_kernel, specialisations

    # A target may be named twice; one that is unknown is refused before anything is compiled.
    wanted = list(dict.fromkeys(target or TARGETS))
    _refuse_unknown(wanted, tuple(TARGETS))
    work = [(name, specialisation) for name in wanted for specialisation in specialisations()]
    reports = []
    with Progress(console=messages(), transient=True) as progress:
        task = progress.add_task("compiling", total=len(work))
        for name, specialisation in work:
            progress.update(task, description=f"{name} {specialisation.name}")
            reports.append(compile_kernel(specialisation, name))
            progress.advance(task)
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


def _refuse_unknown(wanted: list[str], known: tuple[str, ...]) -> None:
    from ratedist.errors import InputError

    for name in wanted:
        if name not in known:
            raise InputError("target", name, f"must be one of {', '.join(known)}")
