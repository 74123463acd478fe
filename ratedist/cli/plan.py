"""``ratedist plan``: from a calibration to one setting per layer, and what to expect of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from ratedist.cli.plan_laws import law_plan
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

if TYPE_CHECKING:
    from ratedist.validate.planning.plan_file import CachePlan

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
    max_kv_error: Annotated[
        float | None,
        typer.Option(
            "--max-kv-error",
            help="Goal with --from-laws: at most this relative error of keys and values, root mean square "
            "over planned layers.",
        ),
    ] = None,
    from_laws: Annotated[
        bool,
        typer.Option(
            "--from-laws",
            help="Plan from the similarities in a capture alone, without its model, for --max-kv-error or "
            "--min-saving; says nothing of divergence.",
        ),
    ] = False,
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
    serve: Annotated[
        int | None,
        typer.Option(
            "--serve",
            help="Requests in the cache together in service, more than the calibration requests: predict the "
            "saving for so many; --check and --drift-to fuse so many others. The goal stays one for the "
            "calibration requests; with --from-laws it is one for those in service.",
        ),
    ] = None,
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
    """Choose a setting for every layer (threshold, criterion, variant, scale rule, mode, bits), for one goal.

    Settings are tried layer by layer on calibration requests (of a workload, by default templates, of a
    file, or a capture's, run through the model again) and chosen where a byte saved costs the same in every
    layer (reverse water-filling); the total is then measured. With --check, other requests are fused with the
    plan; with --drift-to, mixtures of them with other traffic. --out writes the plan as JSON, for ratedist
    generate --plan, ratedist validate --plan and FusedCache.

    With --from-laws no model runs: predictors are fitted to the blocks of a capture, and a layer's setting
    is chosen by the errors of keys and values that they foretell.

    Example: `ratedist plan --workload templates --max-kl 0.02 --check --out plan.json`

    Example: `ratedist plan --from-laws --capture captures/mine --max-kv-error 0.1 --serve 64`

    Example: `ratedist plan --capture captures/mine --max-kl 0.02 --variant leader tree --threshold 0.7 0.9`
    """
    from ratedist.validate.models import load_model
    from ratedist.validate.planning.check import check_plan
    from ratedist.validate.planning.drift import drift_of
    from ratedist.validate.planning.layer_law import check_predictable
    from ratedist.validate.planning.make import make_plan
    from ratedist.validate.planning.requests import draw_elsewhere, draw_requests
    from ratedist.validate.planning.service import check_service, foresee_service
    from ratedist.validate.quality.continuation import QualitySession
    from ratedist.validate.workloads.prompts import PromptSet

    goals = {
        "max_kl": max_kl,
        "max_error": max_error,
        "max_kv_error": max_kv_error,
        "min_saving": min_saving,
        "slope": slope,
    }
    given = {name: value for name, value in goals.items() if value is not None}
    if not from_laws:
        if max_kv_error is not None:
            raise InputError("max_kv_error", max_kv_error, "goes with --from-laws; with a model, --max-error")
        if len(given) != 1:
            raise InputError(
                "goal",
                ", ".join(given) or None,
                "give exactly one of --max-kl, --max-error, --min-saving, --slope",
            )
    if out is not None and out.exists() and not force:
        raise InputError("out", str(out), "exists already; choose another path or pass --force")
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
    if from_laws:
        found = law_plan(
            capture,
            goals=goals,
            settings=settings,
            requests=requests,
            serve=serve,
            refused={
                "workload": workload,
                "prompts": prompts,
                "model": model,
                "tokens": tokens,
                "check": check,
                "drift_to": drift_to,
            },
        )
        _finish(found, None, f"{found.model}, laws of {capture}", out=out, force=force, json=json)
        return
    ((goal, value),) = given.items()
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
        serve=serve,
        seed=seed,
    )
    if serve is not None:
        check_service(serve, len(drawn.calibration.prompts))
        for method in settings:
            check_predictable("serve", method)
    elsewhere = (
        None
        if drift_to is None or drawn.held_out is None
        # Another seed: of the same workload, it would give the requests that are planned on.
        else draw_elsewhere(loaded, drift_to, drawn.held_out, continuation=continuation, seed=seed + 1)
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
        if serve is not None:
            foreseen = foresee_service(
                session,
                found.settings,
                serve,
                progress=lambda what, share: status.update(f"{what}: {share:.0%}"),
            )
            found = found.with_service(foreseen)
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
    planned = drawn.calibration
    title = f"{loaded.name}, {planned.name}: {goal} {value:g}, {len(planned.prompts)} requests"
    _finish(found, checked, title, out=out, force=force, json=json)


def _finish(
    found: CachePlan,
    checked: dict[str, Any] | None,
    title: str,
    *,
    out: Path | None,
    force: bool,
    json: bool,
) -> None:
    """Write the plan where it is wanted, and print it."""
    from ratedist.validate.planning.plan_file import write_plan

    if out is not None:
        write_plan(found, out, force=force)
    if json:
        print_json(_result(found.goal, found.predicted, checked))
        return
    print_plan(found, checked, title=title)
    if out is not None:
        messages().print(f"wrote {out}")


_ENDS = ("compression_low", "compression_high")


def _result(
    goal: dict[str, float], predicted: dict[str, Any], checked: dict[str, Any] | None
) -> dict[str, Any]:
    """What ``--json`` prints; with ``--serve`` the predicted compression is that in service."""
    service = predicted.get("service")
    wanted = ("error_low", "error_high", "kv_error", "uniform", "sensitivity")
    return {
        "goal": goal,
        "compression_predicted": (service or predicted)["compression"],
        **{name: (service or predicted)[name] for name in _ENDS if name in (service or predicted)},
        "service": service,
        "kl_predicted": predicted["kl"],
        "kl_low": predicted["kl_low"],
        "kl_high": predicted["kl_high"],
        "error_predicted": predicted.get("error"),
        **{name: predicted[name] for name in wanted if name in predicted},
        **(checked or {}),
    }
