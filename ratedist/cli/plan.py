"""``ratedist plan``: from a calibration to one setting per layer, and what to expect of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ratedist.cli.options import Force, Json, Out, Seed, messages, print_json

__all__ = ["plan"]


def plan(
    model: Annotated[
        str | None,
        typer.Option(help="Hugging Face id, folder or GGUF file.", show_default="the embedded SmolLM2-135M"),
    ] = None,
    workload: Annotated[str, typer.Option(help="A built-in workload.")] = "templates",
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL with prompt and domain in the place of a workload.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Calibration requests.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens of each whose cache is planned.")] = 384,
    continue_: Annotated[
        int, typer.Option("--continue", help="Further tokens, on which the divergence is measured.")
    ] = 32,
    max_kl: Annotated[
        float | None, typer.Option(help="Goal: at most this mean next-token divergence, in nats.")
    ] = None,
    min_saving: Annotated[
        float | None, typer.Option(help="Goal: at least this share of the cache's bytes saved.")
    ] = None,
    slope: Annotated[
        float | None, typer.Option(help="Goal: what saves a percent of the cache per so many nats.")
    ] = None,
    thresholds: Annotated[
        list[float] | None, typer.Option(help="Of fusion.", show_default="0.6 to 0.95 by 0.05")
    ] = None,
    criteria: Annotated[list[str] | None, typer.Option(help="Of fusion.", show_default="keys both")] = None,
    bits: Annotated[
        list[int] | None,
        typer.Option(help="Bits per scalar that a layer may be stored in.", show_default="16"),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            help="With --max-kl: the 90 % band for other requests must end below so many times it. Larger "
            "saves more where requests differ much, and is broken more often."
        ),
    ] = 1.5,
    check: Annotated[
        bool, typer.Option("--check", help="Fuse as many further requests for real, and compare.")
    ] = False,
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose a threshold, a criterion and bits for every layer, for one goal.

    Settings are tried layer by layer on calibration requests and chosen where a byte saved costs the same in
    every layer (reverse water-filling); the total is then measured. With --check, other requests are fused
    with the plan. --out writes the plan as JSON, for ratedist generate --plan and FusedCache.

    Example: `ratedist plan --workload templates --max-kl 0.02 --check --out plan.json`
    """
    from ratedist.errors import InputError
    from ratedist.validate.models import load_model
    from ratedist.validate.planning.check import check_plan
    from ratedist.validate.planning.make import GOALS, make_plan
    from ratedist.validate.planning.plan_file import write_plan
    from ratedist.validate.planning.trials import default_settings
    from ratedist.validate.quality.continuation import QualitySession
    from ratedist.validate.quality.methods import Method
    from ratedist.validate.workloads import build_prompts
    from ratedist.validate.workloads.prompts import PromptSet, read_prompts

    given = {
        name: value
        for name, value in zip(GOALS, (max_kl, min_saving, slope), strict=True)
        if value is not None
    }
    if len(given) != 1:
        raise InputError(
            "goal", ", ".join(given) or None, "give exactly one of --max-kl, --min-saving, --slope"
        )
    if requests < 2:
        raise InputError("requests", requests, "needs at least two calibration requests")
    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    ((goal, value),) = given.items()
    options: dict[str, Any] = {"bits": tuple(bits or (16,))}
    options |= {"thresholds": tuple(thresholds)} if thresholds else {}
    options |= {"criteria": tuple(criteria)} if criteria else {}
    settings = default_settings(**options)
    loaded = load_model(model)
    wanted = requests * (2 if check else 1)
    length = tokens + continue_ + 1
    if prompts is None:
        made = build_prompts(workload, loaded.tokenizer, requests=wanted, tokens=length, seed=seed)
    else:
        made = read_prompts(
            prompts, loaded.tokenizer, max_tokens=loaded.max_tokens, requests=wanted, tokens=length
        )

    def part(start: int) -> PromptSet:
        return PromptSet(made.name, made.prompts[start : start + requests], made.seed, made.origin)

    console = messages()
    with console.status("prefilling") as status:
        session = QualitySession(loaded, part(0), continuation=continue_)
        found = make_plan(
            session,
            goal,
            value,
            settings=settings,
            tolerance=tolerance,
            progress=lambda what, share: status.update(f"{what}: {share:.0%}"),
        )
        del session
        checked = None
        if check:
            status.update("checking on other requests")
            checked = check_plan(found, QualitySession(loaded, part(requests), continuation=continue_))
    if out is not None:
        write_plan(found, out, force=force)
    predicted = found.predicted
    result: dict[str, Any] = {
        "goal": found.goal,
        "compression_predicted": predicted["compression"],
        "kl_predicted": predicted["kl"],
        "kl_low": predicted["kl_low"],
        "kl_high": predicted["kl_high"],
        "uniform": predicted["uniform"],
        "sensitivity": predicted["sensitivity"],
        **(checked or {}),
    }
    if json:
        print_json(result)
        return
    from rich.console import Console
    from rich.table import Table

    output = Console(width=110)
    table = Table(title=f"{loaded.name}, {made.name}: {goal} {value:g}, {requests} requests")
    for column in ("layer", "setting", "criterion", "threshold"):
        table.add_column(column, justify="right" if column in ("layer", "threshold") else "left")
    for layer, method in sorted(found.settings.items()):
        fused = method.sharing == "fusion"
        table.add_row(
            str(layer),
            method.name,
            method.criterion if fused else "",
            f"{method.threshold:g}" if fused else "",
        )
    output.print(table)
    output.print(
        f"predicted: {predicted['compression']:.2f}x of the whole cache at a divergence of "
        f"{predicted['kl']:.4f} nats, "
        f"for other requests {predicted['kl_low']:.4f} to {predicted['kl_high']:.4f}"
    )
    uniform = predicted["uniform"]
    if uniform is None:
        output.print("no single setting for all layers keeps this divergence")
    else:
        method = Method(**uniform["setting"])
        named = (
            f"{method.name}, {method.criterion} {method.threshold:g}"
            if "fusion" in method.name
            else method.name
        )
        output.print(f"best single setting: {uniform['compression']:.2f}x at {uniform['kl']:.4f} ({named})")
    for line in _sensitivity_lines(predicted["sensitivity"]):
        output.print(line)
    if checked is not None:
        output.print(
            f"measured on other requests: {checked['compression_measured']:.2f}x at a divergence of "
            f"{checked['kl_measured']:.4f}"
        )
        if checked["uniform_kl_measured"] is not None:
            output.print(
                f"and the single setting there: {checked['uniform_compression_measured']:.2f}x at "
                f"{checked['uniform_kl_measured']:.4f}"
            )
    if out is not None:
        console.print(f"wrote {out}")


def _sensitivity_lines(sensitivity: dict[str, Any]) -> list[str]:
    """What drift of the traffic would do, in words."""
    lines = [
        f"traffic more alike (thresholds {sensitivity['shift']:g} looser): saves "
        f"{sensitivity['saving_looser']:.1%} at up to {sensitivity['kl_looser']:.4f}; less alike: "
        f"{sensitivity['saving_stricter']:.1%} at {sensitivity['kl_stricter']:.4f}"
    ]
    if sensitivity["exact_share"] is not None:
        lines.append(f"of what it saves, exact duplicates alone give {sensitivity['exact_share']:.0%}")
    if sensitivity["heaviest_share"] is not None:
        low, high = sensitivity["kl_without_one"]
        lines.append(
            f"one request carries {sensitivity['heaviest_share']:.0%} of the divergence; without any one of "
            f"them it is {low:.4f} to {high:.4f}"
        )
    return lines
