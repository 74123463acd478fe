"""``ratedist plan``: from a calibration to one setting per layer, and what to expect of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ratedist.cli.options import (
    CaptureFolder,
    Device,
    Dtype,
    Force,
    Json,
    Model,
    Out,
    PromptFile,
    Seed,
    Workload,
    messages,
    print_json,
)
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
from ratedist.cli.plan_tables import print_plan
from ratedist.errors import InputError

__all__ = ["plan"]


def plan(
    model: Model = None,
    workload: Workload = None,
    prompts: PromptFile = None,
    capture: CaptureFolder = None,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests",
            help="Calibration requests.",
            show_default="16; of a capture up to 16, half with --check or --drift-to",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", help="Tokens of each whose cache is planned.", show_default="384; of a capture all"
        ),
    ] = None,
    continuation: Continuation = 32,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", help="Goal: at most this mean next-token divergence, in nats."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            help="Goal: at most this relative error of attention outputs, root mean square over requests and "
            "planned layers.",
        ),
    ] = None,
    min_saving: Annotated[
        float | None,
        typer.Option("--min-saving", help="Goal: at least this share of the cache's bytes saved."),
    ] = None,
    slope: Annotated[
        float | None,
        typer.Option("--slope", help="Goal: what saves a percent of the cache per so many nats."),
    ] = None,
    threshold: Thresholds = None,
    criterion: Criteria = None,
    variant: Variants = None,
    scale: Scales = None,
    mode: Modes = None,
    chunk_blocks: ChunkBlocks = 4,
    bits: Bits = None,
    tolerance: Tolerance = 1.5,
    check: Annotated[
        bool, typer.Option("--check", help="Fuse as many further requests for real, and compare.")
    ] = False,
    drift_to: Annotated[
        str | None,
        typer.Option(
            "--drift-to",
            help="Other traffic (a workload, a JSONL file or a capture): fuse further requests of which 0, a "
            "quarter, half and all are of it, and say from which share on the goal is missed.",
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Seed = 0,
    out: Out = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Choose a threshold, a criterion and bits for every layer, for one goal.

    Settings are tried layer by layer on calibration requests (of a workload, a file, or a capture's, run
    through the model again) and chosen where a byte saved costs the same in every layer (reverse
    water-filling); the total is then measured. With --check, other requests are fused with the plan; with
    --drift-to, mixtures of them with other traffic. --out writes the plan as JSON, for ratedist generate
    --plan, ratedist validate --plan and FusedCache.

    Example: `ratedist plan --workload templates --max-kl 0.02 --check --out plan.json`

    Example: `ratedist plan --capture captures/mine --max-kl 0.02 --variant leader tree --threshold 0.7 0.9`
    """
    from ratedist.validate.models import load_model
    from ratedist.validate.planning.check import check_plan
    from ratedist.validate.planning.drift import drift_of
    from ratedist.validate.planning.make import GOALS, make_plan
    from ratedist.validate.planning.plan_file import write_plan
    from ratedist.validate.planning.requests import draw_elsewhere, draw_requests
    from ratedist.validate.quality.continuation import QualitySession
    from ratedist.validate.workloads.prompts import PromptSet

    given = {
        name: value
        for name, value in zip(GOALS, (max_kl, max_error, min_saving, slope), strict=True)
        if value is not None
    }
    if len(given) != 1:
        raise InputError(
            "goal",
            ", ".join(given) or None,
            "give exactly one of --max-kl, --max-error, --min-saving, --slope",
        )
    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
    ((goal, value),) = given.items()
    settings = given_settings(
        threshold=threshold,
        criterion=criterion,
        variant=variant,
        scale=scale,
        mode=mode,
        chunk_blocks=chunk_blocks,
        bits=bits,
    )
    if requests is not None and requests < 2:
        raise InputError("requests", requests, "needs at least two calibration requests")
    if workload is None and prompts is None and capture is None:
        workload = "templates"
    loaded = load_model(model, dtype=dtype, device=device)
    drawn = draw_requests(
        loaded,
        workload=workload,
        prompts=prompts,
        capture=capture,
        requests=requests,
        tokens=tokens,
        continuation=continuation,
        held_out=check or drift_to is not None,
        seed=seed,
    )
    elsewhere = (
        None
        if drift_to is None
        else draw_elsewhere(loaded, drift_to, drawn.calibration, continuation=continuation, seed=seed)
    )

    def open_session(prompts: PromptSet) -> QualitySession:
        return QualitySession(loaded, prompts, continuation=continuation)

    console = messages()
    with console.status("prefilling") as status:
        session = open_session(drawn.calibration)
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
        if drawn.held_out is not None:
            status.update("measuring on other requests")
            others = open_session(drawn.held_out)
            if check:
                checked = check_plan(found, others)
            if elsewhere is not None:
                drift = drift_of(
                    found,
                    others,
                    elsewhere,
                    open_session,
                    seed=seed,
                    progress=lambda what, share: status.update(what),
                )
                found = found.with_drift(drift)
    if out is not None:
        write_plan(found, out, force=force)
    if json:
        print_json(_result(found.goal, found.predicted, checked))
        return
    print_plan(
        found,
        checked,
        title=f"{loaded.name}, {drawn.calibration.name}: {goal} {value:g}, "
        f"{len(drawn.calibration.prompts)} requests",
    )
    if out is not None:
        console.print(f"wrote {out}")


def _result(
    goal: dict[str, float], predicted: dict[str, Any], checked: dict[str, Any] | None
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "goal": goal,
        "compression_predicted": predicted["compression"],
        "kl_predicted": predicted["kl"],
        "kl_low": predicted["kl_low"],
        "kl_high": predicted["kl_high"],
        "error_predicted": predicted["error"],
        "error_low": predicted["error_low"],
        "error_high": predicted["error_high"],
        "uniform": predicted["uniform"],
        "sensitivity": predicted["sensitivity"],
        **(checked or {}),
    }
