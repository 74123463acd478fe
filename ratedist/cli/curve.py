"""``ratedist curve``: predicted rate and distortion of fusion over thresholds, without a model or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import Dask, Force, Jobs, Json, Out, Seed, messages, print_json
from ratedist.cli.variadic import split_numbers
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.fusion_curve import FusionCurve
    from ratedist.records import Record
    from ratedist.similarity import SimilarityLaw

__all__ = ["curve"]

_PLOTS = (".png", ".pdf", ".svg")
_LAW_OPTIONS = {
    "spherical": ("dim",),
    "gaussian": ("mean", "std"),
    "truncated-gaussian": ("mean", "std"),
}


def curve(
    law: Annotated[
        str | None,
        typer.Option("--law", help="spherical, gaussian or truncated-gaussian."),
    ] = None,
    dim: Annotated[float | None, typer.Option("--dim", help="Dimension of the spherical law.")] = None,
    mean: Annotated[float | None, typer.Option("--mean", help="Mean of a Gaussian law.")] = None,
    std: Annotated[float | None, typer.Option("--std", help="Standard deviation of a Gaussian law.")] = None,
    law_file: Annotated[
        Path | None,
        typer.Option("--law-file", help="A fitted law, as ratedist.similarity.save_law writes it."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="leader (default), tree, centroid or components; or several: --variant leader tree.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="Requests in the batch.")] = 64,
    blocks: Annotated[int, typer.Option("--blocks", help="Full blocks per request.")] = 32,
    thresholds: Annotated[
        list[str] | None, typer.Option("--thresholds", help="Thresholds, rising: --thresholds 0.4 0.5 0.6.")
    ] = None,
    grid: Annotated[
        tuple[float, float, int] | None,
        typer.Option("--grid", help="START STOP COUNT: evenly spaced thresholds, ends included."),
    ] = None,
    hard_core: Annotated[
        bool,
        typer.Option(
            "--hard-core/--no-hard-core",
            help="Representatives repel each other; --no-hard-core leaves it out.",
        ),
    ] = True,
    transitivity: Annotated[
        float | None,
        typer.Option(
            "--transitivity",
            help="Hard core of other laws: chance that two blocks near a third are near each other.",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Share of runs in the band.")] = 0.9,
    scalar_bits: Annotated[float, typer.Option("--scalar-bits", help="Bits of one stored scalar.")] = 16.0,
    block_scalars: Annotated[
        int | None,
        typer.Option(
            "--block-scalars",
            help="Scalars of one block's keys; adds table entries and scales to the rate.",
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", help="Layers of the model: adds whole-cache compression.")
    ] = None,
    fused_layers: Annotated[
        int | None, typer.Option("--fused-layers", help="Layers among them that are fused; all by default.")
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", help="Monte Carlo runs per threshold, drawn over the curve; 0 for none.")
    ] = 0,
    simulate: Annotated[
        str,
        typer.Option(
            "--simulate", help="process: counts and scores; directions: random vectors (spherical law)."
        ),
    ] = "process",
    jobs: Jobs = 1,
    dask: Dask = None,
    seed: Seed = 0,
    derive: Annotated[
        bool, typer.Option("--derive", help="Derive the closed forms with sympy and print them as LaTeX.")
    ] = False,
    json: Json = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Kept blocks, compression and error of fusion under a law of similarity, for every threshold.

    Prints a table, or JSON with --json. --out takes a figure (.png, .pdf, .svg), a record (.json), or with
    --derive a LaTeX document (.tex).

    Example: `ratedist curve --law spherical --dim 64 --requests 64 --blocks 32 --thresholds 0.3 0.4 0.5`

    Example: `ratedist curve --law gaussian --mean 0.6 --std 0.06 --variant leader tree --grid 0.6 0.9 31
    --runs 200 --out curve.png`

    Example: `ratedist curve --derive --out derivations.tex`
    """
    if derive:
        _derive(json, out, force)
        return
    _claim(out, (*_PLOTS, ".json"), force)
    chosen_law = _law(law, law_file, {"dim": dim, "mean": mean, "std": std})
    chosen_thresholds = _thresholds(thresholds, grid)
    variants = " ".join(variant or ["leader"]).replace(",", " ").split()
    if len(set(variants)) != len(variants):
        raise InputError("variant", variants, "names one twice")
    if runs < 0 or runs == 1:
        raise InputError("runs", runs, "must be 0 for none, or at least 2 for a standard error")
    _check_layers(layers, fused_layers, block_scalars)

    from ratedist.fusion_curve import curve_record, fusion_curve

    curves = [
        fusion_curve(
            chosen_law,
            requests=requests,
            blocks=blocks,
            thresholds=chosen_thresholds,
            variant=name,
            hard_core=hard_core,
            transitivity=transitivity,
            confidence=confidence,
            scalar_bits=scalar_bits,
            block_scalars=block_scalars,
        )
        for name in variants
    ]
    simulated = _simulate(curves, runs, seed, simulate, jobs, dask)
    record = curve_record(curves, simulated=simulated, layers=layers, fused_layers=fused_layers, seed=seed)
    if out is not None:
        _write(record, out, force)
    if json:
        print_json({"rows": record.rows, "summary": record.summary})
    else:
        _print_table(record)


def _derive(json: bool, out: Path | None, force: bool) -> None:
    _claim(out, (".tex",), force)
    import sympy
    from rich.progress import track

    from ratedist.records import write_atomic
    from ratedist.symbolic import DERIVATIONS, to_latex
    from ratedist.symbolic import derive as derive_one

    derived = [
        derive_one(name)
        for name in track(DERIVATIONS, description="deriving", console=messages(), transient=True)
    ]
    text = to_latex(derived)
    if out is not None:
        write_atomic(out, text)
    if json:
        print_json(
            {
                "rows": [
                    {
                        "name": derivation.name,
                        "title": derivation.title,
                        "steps": [
                            {"text": step.text, "latex": sympy.latex(step.expression)}
                            for step in derivation.steps
                        ],
                        "results": {key: sympy.latex(value) for key, value in derivation.results.items()},
                        "implemented_by": list(derivation.implemented_by),
                    }
                    for derivation in derived
                ]
            }
        )
    elif out is None:
        typer.echo(text, nl=False)


def _claim(out: Path | None, suffixes: tuple[str, ...], force: bool) -> None:
    """Refuse an output before the work is done for it."""
    if out is None:
        return
    if out.suffix.lower() not in suffixes:
        raise InputError("out", str(out), f"must end in {', '.join(suffixes)}")
    if out.is_dir():
        raise InputError("out", str(out), "is a folder; name a file")
    if out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")


def _law(name: str | None, file: Path | None, given: dict[str, float | None]) -> SimilarityLaw:
    from ratedist.similarity import SimilarityLaw, law_from_dict, load_law

    if (name is None) == (file is None):
        raise InputError("law", name, "give either --law NAME or --law-file FILE")
    if file is not None:
        stray = [key for key, value in given.items() if value is not None]
        if stray:
            raise InputError(stray[0], given[stray[0]], "belongs to --law; the file holds its own parameters")
        law = load_law(file).law
        if not isinstance(law, SimilarityLaw):
            raise InputError(
                "law-file", str(file), f"holds {type(law).__name__}, which is no law of one score"
            )
        return law
    assert name is not None
    if name not in _LAW_OPTIONS:
        raise InputError("law", name, f"must be one of {', '.join(_LAW_OPTIONS)}; for others use --law-file")
    wanted = _LAW_OPTIONS[name]
    for key, value in given.items():
        if (value is None) == (key in wanted):
            verb = "is needed" if key in wanted else "does not belong"
            raise InputError(key, value, f"{verb} with --law {name}, which takes --{' and --'.join(wanted)}")
    law = law_from_dict({"name": name, **{key: given[key] for key in wanted}})
    assert isinstance(law, SimilarityLaw)
    return law


def _thresholds(values: list[str] | None, grid: tuple[float, float, int] | None) -> list[float]:
    if (not values) == (grid is None):
        raise InputError(
            "thresholds", values, "give either --thresholds T [T ...] or --grid START STOP COUNT"
        )
    if values:
        return split_numbers("thresholds", values)
    assert grid is not None
    start, stop, count = grid
    if count < 2 or not start < stop:
        raise InputError("grid", grid, "must be START < STOP and a COUNT of at least 2")
    import numpy as np

    return [float(value) for value in np.linspace(start, stop, count)]


def _check_layers(layers: int | None, fused_layers: int | None, block_scalars: int | None) -> None:
    if fused_layers is not None and layers is None:
        raise InputError("fused-layers", fused_layers, "needs --layers")
    if layers is not None and block_scalars is None:
        raise InputError("layers", layers, "needs --block-scalars, to count tables and scales against")


def _simulate(
    curves: list[FusionCurve], runs: int, seed: int, method: str, jobs: int, dask: str | None
) -> list[list[dict[str, Any]]] | None:
    if runs == 0:
        return None
    from rich.progress import Progress

    from ratedist.fusion_curve import simulated_rows
    from ratedist.validate.parallel import run_tasks

    spread = partial(run_tasks, jobs=jobs, dask=dask)
    with Progress(console=messages(), transient=True) as progress:
        task = progress.add_task("simulating", total=sum(curve.thresholds.size for curve in curves))
        return [
            simulated_rows(curve, runs, seed, lambda: progress.advance(task), method=method, spread=spread)
            for curve in curves
        ]


def _write(record: Record, out: Path, force: bool) -> None:
    from ratedist.records import write_record

    if out.suffix.lower() == ".json":
        write_record(record, out, force=force)
        return
    try:
        import matplotlib
    except ImportError:
        raise InputError("out", str(out), "figures need matplotlib: pip install 'ratedist[plots]'") from None
    matplotlib.use("Agg")
    from ratedist.figures.curve import plot_curve
    from ratedist.figures.style import style

    out.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure = plot_curve(record)
        figure.savefig(out)


def _print_table(record: Record) -> None:
    from rich.console import Console
    from rich.table import Table

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "τ": lambda row: f"{row['threshold']:g}",
        "variant": lambda row: row["variant"],
        "kept": lambda row: f"{row['kept']:,.1f}",
        f"{record.provenance['confidence']:.0%} band": lambda row: (
            f"{row['kept_low']:,.0f}–{row['kept_high']:,.0f}"
        ),
        "simulated": lambda row: f"{row['simulated_kept']:,.1f}±{row['simulated_kept_se']:.1f}",
        "factor": lambda row: f"{row['compression']:.3f}×",
        "whole": lambda row: f"{row['whole_compression']:.3f}×",
        "bits": lambda row: f"{row['bits_per_scalar']:.3f}",
        "e² direct": lambda row: shown(row["direct_error2"], ".4f"),
        "e² final": lambda row: shown(row["absorbed_error2"], ".4f"),
        "e² mean": lambda row: shown(row["mean_error2"], ".4f"),
    }
    for heading, field in (("simulated", "simulated_kept"), ("whole", "whole_compression")):
        if field not in record.rows[0]:
            del columns[heading]
    table = Table(title=record.provenance["title"], box=None, padding=(0, 1, 0, 0))
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for row in record.rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # nothing is cut off in a file or a pipe
    console.print(table)
