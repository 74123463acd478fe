"""The typer application that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

import ratedist
from ratedist.cli import (
    adapt,
    bench,
    bench_kernels,
    bench_search,
    bench_theory,
    capacity,
    capture,
    curve,
    demo,
    gallery,
    generate,
    inspect,
    kernels,
    plan,
    plan_check,
    quality,
    report,
    serve,
    simulate,
    train,
    transfer,
    validate,
)
from ratedist.cli.variadic import ManyValuesCommand

__all__ = ["app"]

app = typer.Typer(
    name="ratedist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Predict, measure and plot what fusing similar KV-cache blocks saves and costs.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(ratedist.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


app.command("capture")(capture.capture)
app.command("kernels")(kernels.kernels)
app.command("validate", cls=ManyValuesCommand)(validate.validate)
app.command("quality", cls=ManyValuesCommand)(quality.quality)
app.command("plan", cls=ManyValuesCommand)(plan.plan)
app.command("plan-check", cls=ManyValuesCommand)(plan_check.plan_check)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("gallery")(gallery.gallery)
app.command("capacity")(capacity.capacity)
app.command("simulate", cls=ManyValuesCommand)(simulate.simulate)
app.command("demo")(demo.demo)
app.command("adapt", cls=ManyValuesCommand)(adapt.adapt)
app.command("train")(train.train)
app.command("transfer", cls=ManyValuesCommand)(transfer.transfer)
app.command("generate")(generate.generate)
app.command("serve", cls=ManyValuesCommand)(serve.serve)
app.add_typer(bench.app)
app.command("curve", cls=ManyValuesCommand)(curve.curve)
bench.app.command("theory")(bench_theory.theory)
bench.app.command("search")(bench_search.search)
bench.app.command("matching", cls=ManyValuesCommand)(bench_kernels.matching)
bench.app.command("attention", cls=ManyValuesCommand)(bench_kernels.attention)
bench.app.command("decode", cls=ManyValuesCommand)(bench_kernels.decode)
bench.app.command("gpu")(bench_kernels.gpu)
