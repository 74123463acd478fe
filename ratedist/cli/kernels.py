"""``ratedist kernels``: compile every kernel ahead of time and show what became of it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ratedist.cli.options import Json, messages, print_json

__all__ = ["kernels"]


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
    load from a pool of keys or values, and matrix instructions.

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
    from rich.table import Table

    for name in wanted:
        table = Table(title=f"{name} (shared memory: {TARGETS[name].shared_limit} bytes)")
        table.add_column("kernel", no_wrap=True)
        table.add_column("dtype", no_wrap=True)
        for heading in ("regs", "spills", "shared", "load", "matrix"):
            table.add_column(heading, justify="right", no_wrap=True)
        for report in reports:
            if report.target == name:
                numbers = (
                    report.registers,
                    report.spills,
                    report.shared_bytes,
                    report.load_bytes,
                    report.matrix_instructions,
                )
                # Brackets are markup to rich.
                table.add_row(report.name.replace("[", r"\["), report.dtype, *(str(x) for x in numbers))
        Console().print(table)


def _refuse_unknown(wanted: list[str], known: tuple[str, ...]) -> None:
    from ratedist.errors import InputError

    for name in wanted:
        if name not in known:
            raise InputError("target", name, f"must be one of {', '.join(known)}")
