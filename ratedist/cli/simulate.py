"""``ratedist simulate``: the ladder from closed form over Monte Carlo and synthetic blocks to captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratedist.cli.options import (
    Dask,
    Force,
    Jobs,
    Json,
    Out,
    Seed,
    claim_folder,
    messages,
    print_json,
)
from ratedist.cli.variadic import split_numbers
from ratedist.errors import InputError

if TYPE_CHECKING:
    from ratedist.records import Record
    from ratedist.sim.parameters import BlockParameters

__all__ = ["simulate"]

_LAWS = {"spherical": ("dim",), "gaussian": ("mean", "std"), "blocks": ()}
_THRESHOLDS = {
    "spherical": "0.3 0.35 0.4 0.45 0.5",
    "gaussian": "0.6 0.65 0.7 0.75 0.8",
    "blocks": "0.7 0.75 0.8 0.85 0.9",
}
_CAPTURED = "0.6 0.65 0.7 0.75 0.8 0.85 0.9 0.95"
# Layers of a synthetic capture: the fewest of which some are fused by default.
_LAYERS = 6


def simulate(
    law: Annotated[
        str,
        typer.Option(
            "--law",
            help="spherical (uniform directions), gaussian, or blocks (the generator with --set parameters).",
        ),
    ] = "blocks",
    dim: Annotated[int | None, typer.Option("--dim", help="Dimension of the spherical law.")] = None,
    mean: Annotated[float | None, typer.Option("--mean", help="Mean of the Gaussian law, in [0, 1).")] = None,
    std: Annotated[
        float | None, typer.Option("--std", help="Standard deviation of the Gaussian law.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Parameters of the generator: --set common_k=0.7 prefix_blocks=4 (ratedist.sim.parameters).",
        ),
    ] = None,
    capture: Annotated[
        Path | None,
        typer.Option("--capture", help="Capture to calibrate on; its other requests become rung 4."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Layer of the capture. [default: the middle one]")
    ] = None,
    calibrate_on: Annotated[
        int | None, typer.Option("--calibrate-on", help="Requests to calibrate on. [default: half]")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", help="Requests in the batch. [default: 16; of a capture all held out]"),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option("--blocks", help="Full blocks per request. [default: 24]")
    ] = None,
    thresholds: Annotated[
        list[str] | None,
        typer.Option("--thresholds", help="Thresholds, rising, e.g. 0.7 0.8. [default: by the law]"),
    ] = None,
    variant: Annotated[str, typer.Option("--variant", help="leader or tree.")] = "leader",
    runs: Annotated[
        int, typer.Option("--runs", help="Batches of synthetic blocks, or splits of the capture.")
    ] = 8,
    process_runs: Annotated[
        int, typer.Option("--process-runs", help="Monte Carlo runs of the process per threshold.")
    ] = 1000,
    backend: Annotated[
        str, typer.Option("--backend", help="What fuses: reference, cpu, triton, or auto.")
    ] = "auto",
    write_capture: Annotated[
        Path | None,
        typer.Option("--write-capture", help="Write the synthetic blocks to this folder, as a capture."),
    ] = None,
    jobs: Jobs = 1,
    dask: Dask = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """One batch on every rung of the ladder, so that a gap names the assumption that fails.

    Rungs: 1 closed form, 2 Monte Carlo of the process, 3 synthetic blocks through the real fusion; with
    --capture
    also 4, captured blocks through the real fusion, and everything below is calibrated on other requests
    of the capture. --out names a folder for the record (ladder.json) and the figure (ladder.png).

    Example: `ratedist simulate --law spherical --dim 24 --requests 32 --blocks 24 --thresholds 0.45 0.5 0.55`

    Example: `ratedist simulate --set common_k=0.75 prefix_blocks=4 norm_spread_k=0.1 --write-capture
    synthetic`

    Example: `ratedist simulate --capture captures/templates --layer 15 --runs 4 --out out/ladder`
    """
    if write_capture is not None and out is not None and write_capture.resolve() == out.resolve():
        raise InputError("write-capture", str(write_capture), "is --out as well; name two folders")
    if capture is None:
        _check_law(law, {"dim": dim, "mean": mean, "std": std}, parameter)
        for name, value in (("layer", layer), ("calibrate-on", calibrate_on)):
            if value is not None:
                raise InputError(name, value, "belongs to --capture")
    else:
        given = {"dim": dim, "mean": mean, "std": std, "set": parameter, "blocks": blocks}
        for name, given_value in given.items():
            if given_value is not None:
                raise InputError(name, given_value, "does not go with --capture, which has its own")
        if law != "blocks":
            raise InputError("law", law, "does not go with --capture, whose law is measured")
    tau = split_numbers("thresholds", thresholds or [_THRESHOLDS[law] if capture is None else _CAPTURED])
    if out is not None:
        claim_folder(out, force=force)
    with _steps() as step:
        if capture is not None:
            record = _captured(
                capture, layer, calibrate_on, requests, tau, variant, runs, process_runs, seed, backend,
                jobs, dask, write_capture, force, step,
            )  # fmt: skip
        else:
            record = _named(
                law, dim, mean, std, parameter, 16 if requests is None else requests,
                24 if blocks is None else blocks, tau, variant, runs,
                process_runs, seed, backend, jobs, dask, write_capture, force, step,
            )  # fmt: skip
    if out is not None:
        _write(record, out, force)
    if json:
        print_json({"rows": record.rows, "summary": record.summary})
    else:
        _print(record)


def _check_law(law: str, given: dict[str, float | None], parameter: list[str] | None) -> None:
    if law not in _LAWS:
        raise InputError("law", law, f"must be one of {', '.join(_LAWS)}")
    for name, value in given.items():
        if (value is not None) != (name in _LAWS[law]):
            verb = "is needed" if name in _LAWS[law] else "does not belong"
            raise InputError(name, value, f"{verb} with --law {law}")
    if parameter and law != "blocks":
        raise InputError("set", parameter, f"sets the generator's parameters, which --law {law} decides")


def _parameters(given: list[str] | None) -> BlockParameters:
    from ratedist.sim.parameters import BlockParameters

    known = {item.name: item for item in fields(BlockParameters)}
    values: dict[str, Any] = {}
    for part in " ".join(given or []).split():
        name, separator, text = part.partition("=")
        if not separator or name not in known:
            raise InputError("set", part, f"must be NAME=VALUE with a NAME of {', '.join(known)}")
        values[name] = _value(name, text, known[name].type)
    return BlockParameters(**values)


def _value(name: str, text: str, kind: Any) -> Any:
    kinds = str(kind)
    if "None" in kinds and text.lower() == "none":
        return None
    if "Literal" in kinds:
        return text
    try:
        return float(text) if "float" in kinds else int(text)
    except ValueError:
        whole = "float" not in kinds
        raise InputError(name, text, f"must be a {'whole ' if whole else ''}number") from None


def _named(
    law: str, dim: int | None, mean: float | None, std: float | None, parameter: list[str] | None, requests:
        int,
    blocks: int, tau: list[float], variant: str, runs: int, process_runs: int, seed: int, backend: str,
    jobs: int, dask: str | None, write_capture: Path | None, force: bool, step: Callable[[str], None],
) -> Record:  # fmt: skip
    from ratedist._arguments import whole_number
    from ratedist.sim.blocks import SyntheticLayer, generate
    from ratedist.sim.model import BlockModel
    from ratedist.sim.parameters import BlockParameters
    from ratedist.similarity import Gaussian, SimilarityLaw, Spherical
    from ratedist.validate.ladder import law_ladder, model_ladder
    from ratedist.validate.synthetic import write_synthetic

    whole_number("requests", requests, low=1)
    whole_number("blocks", blocks, low=1)
    known: SimilarityLaw | None = None
    if law == "spherical":
        assert dim is not None
        parameters, known = BlockParameters.uniform(dim), Spherical(dim)
    elif law == "gaussian":
        assert mean is not None
        assert std is not None
        parameters, known = BlockParameters.gaussian(mean, std), Gaussian(mean, std)
    else:
        parameters = _parameters(parameter)
    settings: dict[str, Any] = {
        "requests": requests,
        "blocks": blocks,
        "thresholds": tau,
        "variant": variant,
        "runs": runs,
        "process_runs": process_runs,
        "seed": seed,
        "backend": backend,
        "jobs": jobs,
        "dask": dask,
        "progress": step,
    }
    model = BlockModel.from_parameters(parameters, blocks, seed=seed)
    record = model_ladder(model, **settings) if known is None else law_ladder(known, model, **settings)
    record.provenance["parameters"] = asdict(parameters)
    record.provenance["title"] = (
        f"{_title(law, dim, mean, std)}, {requests} requests × {blocks} blocks, {variant}"
    )
    if write_capture is not None:
        step("writing the capture")

        def of_layer(index: int) -> SyntheticLayer:
            drawn = BlockModel.from_parameters(parameters, blocks, seed=seed, layer=index)
            return generate(drawn, requests, blocks, seed=seed, layer=index)

        write_synthetic(
            write_capture,
            of_layer,
            range(_LAYERS),
            model_layers=_LAYERS,
            model="synthetic",
            workload=f"synthetic-{law}",
            dtype="float32",
            rotary={}
            if parameters.rotary_base is None
            else {"rope_theta": parameters.rotary_base, "rope_type": "default"},
            seed=seed,
            origin={"parameters": asdict(parameters)},
            force=force,
        )
    return record


def _captured(
    folder: Path, layer: int | None, calibrate_on: int | None, requests: int | None, tau: list[float],
        variant: str,
    runs: int, process_runs: int, seed: int, backend: str, jobs: int, dask: str | None,
    write_capture: Path | None, force: bool, step: Callable[[str], None],
) -> Record:  # fmt: skip
    from ratedist.sim.blocks import SyntheticLayer, generate
    from ratedist.validate.captured_ladder import captured_ladder
    from ratedist.validate.captures.store import Capture
    from ratedist.validate.synthetic import write_synthetic

    opened = Capture.open(folder)
    manifest = opened.manifest
    chosen = manifest.layers[len(manifest.layers) // 2] if layer is None else layer
    if chosen not in manifest.layers:
        raise InputError("layer", chosen, f"must be one of the captured ones: {list(manifest.layers)}")
    ladder = captured_ladder(
        opened,
        chosen,
        thresholds=tau,
        variant=variant,
        splits=runs,
        process_runs=process_runs,
        seed=seed,
        requests=requests,
        calibrate_on=calibrate_on,
        backend=backend,
        jobs=jobs,
        dask=dask,
        progress=step,
    )
    record = ladder.record
    record.provenance["title"] = f"{manifest.workload}, {manifest.model}, layer {chosen}, {variant}"
    if write_capture is not None:
        step("writing the capture")
        model = ladder.calibrations[0].model
        fused = record.rows[0]["requests"]
        blocks = max(manifest.lengths) // manifest.block_size

        def of_layer(_: int) -> SyntheticLayer:
            return generate(model, fused, blocks, seed=seed)

        write_synthetic(
            write_capture,
            of_layer,
            [chosen],
            model_layers=manifest.model_layers,
            model=f"synthetic of {manifest.model}",
            workload=f"synthetic-{manifest.workload}",
            dtype=manifest.dtype,
            rotary=manifest.rotary,
            seed=seed,
            origin={"calibrated_on": manifest.workload, "layer": chosen},
            force=force,
        )
    return record


def _title(law: str, dim: int | None, mean: float | None, std: float | None) -> str:
    return {
        "spherical": f"uniform directions of dimension {dim}",
        "gaussian": f"Gaussian law, mean {mean}, std {std}",
        "blocks": "synthetic blocks",
    }[law]


def _write(record: Record, folder: Path, force: bool) -> None:
    from ratedist.records import write_record

    write_record(record, folder / "ladder.json", force=force)
    try:
        import matplotlib
    except ImportError:
        messages().print("no figure: matplotlib is missing (pip install 'ratedist[plots]')")
        return
    matplotlib.use("Agg")
    from matplotlib.pyplot import close

    from ratedist.figures.ladder import plot_ladder
    from ratedist.figures.style import style

    with style():
        figure = plot_ladder(record)
        figure.savefig(folder / "ladder.png")
        close(figure)


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=messages(),
        transient=True,
    ) as progress:
        task = progress.add_task("working", total=None)

        def step(text: str) -> None:
            progress.update(task, description=text)

        yield step


def _print(record: Record) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160
    numbers = list(dict.fromkeys(row["rung"] for row in record.rows))
    names = {row["rung"]: row["name"] for row in record.rows}
    gaps = [row for row in record.summary if row["kind"] == "gap"]
    table = Table(
        title=f"{record.provenance.get('title', '')}\nkept of {record.rows[0]['blocks']} blocks ± SE "
        "(compression); gaps are ln of the ratio of compressions (z)",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("τ", justify="right")
    for number in numbers:
        table.add_column(f"{number} {names[number]}", justify="right", no_wrap=True)
    for low, high in pairwise(numbers):
        table.add_column(f"{low}→{high}", justify="right", no_wrap=True)
    for threshold in dict.fromkeys(row["threshold"] for row in record.rows):
        cells = [f"{threshold:g}"]
        for number in numbers:
            row = next(r for r in record.rows if r["rung"] == number and r["threshold"] == threshold)
            cells.append(f"{row['kept']:,.1f}±{row['kept_se']:.1f} ({row['compression']:.2f}×)")
        for low, high in pairwise(numbers):
            gap = next(g for g in gaps if (g["from"], g["to"], g["threshold"]) == (low, high, threshold))
            z = "–" if gap["z"] is None else f"{gap['z']:+.1f}"
            cells.append(f"{gap['log_ratio']:+.3f} ({z})")
        table.add_row(*cells)
    console.print(table)
    for low, high in pairwise(numbers):
        here = [gap for gap in gaps if (gap["from"], gap["to"]) == (low, high)]
        worst = max(here, key=lambda gap: abs(gap["log_ratio"]))
        console.print(
            f"gap {low}→{high}: at most {abs(worst['log_ratio']):.3f} (τ {worst['threshold']:g}); it tests "
            f"{worst['assumption']}"
        )
    distances = [row for row in record.summary if row["kind"] == "law distance"]
    for side in dict.fromkeys(row["side"] for row in distances):
        rows = [row for row in distances if row["side"] == side and row["position_difference"] is None]
        same = [row for row in distances if row["side"] == side and row["position_difference"] == 0]
        parts = [
            f"{label}: KS {_mean(part, 'kolmogorov'):.3f}, Wasserstein {_mean(part, 'wasserstein'):.4f}"
            for label, part in (("all pairs", rows), ("same position", same))
        ]
        console.print(f"law of S of {side}, generator against held-out; {'; '.join(parts)}")


def _mean(rows: list[dict[str, Any]], field: str) -> float:
    return float(sum(row[field] for row in rows) / len(rows))
