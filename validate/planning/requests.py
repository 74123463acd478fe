"""Requests to plan on, and others to measure the plan on, from wherever they come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ratedist.errors import InputError
from ratedist.validate.captures.requests import captured_requests
from ratedist.validate.models import LoadedModel
from ratedist.validate.workloads import build_prompts
from ratedist.validate.workloads.prompts import PromptSet, read_prompts

__all__ = ["PlanRequests", "draw_elsewhere", "draw_requests"]

REQUESTS = 16
TOKENS = 384


@dataclass(frozen=True)
class PlanRequests:
    """Two sets of requests that have none in common.

    Attributes:
        calibration: to plan on.
        held_out: others; None where they were not asked for.
    """

    calibration: PromptSet
    held_out: PromptSet | None


def draw_requests(
    loaded: LoadedModel,
    *,
    workload: str | None = None,
    prompts: Path | None = None,
    capture: Path | None = None,
    requests: int | None = None,
    tokens: int | None = None,
    continuation: int = 32,
    held_out: bool = False,
    serve: int | None = None,
    seed: int = 0,
) -> PlanRequests:
    """Take requests from one source, in its order: those to plan on, then others to measure on.

    Args:
        loaded: the model.
        workload, prompts, capture: exactly one: a built-in workload, a JSONL file, or a capture's folder.
        requests: to plan on; 16 where None, or of a capture all it holds (without those
            of ``held_out``), up to 16.
        tokens: of each whose cache is planned; 384 where None, and a capture's requests are then not cut.
        continuation: further tokens, on which the divergence is measured; one more is compared with.
        held_out: whether to take others, too.
        serve: how many others; as many as to plan on where None.
        seed: of a workload.

    Raises:
        InputError: none or several sources, fewer than two requests to plan on, more than there are, or what
            the source itself refuses.
        CaptureError: as ``captured_requests``.
    """
    sources = {"workload": workload, "prompts": prompts, "capture": capture}
    given = {name: value for name, value in sources.items() if value is not None}
    if len(given) != 1:
        named = ", ".join(f"--{name}" for name in given)
        raise InputError("workload", named or None, "give exactly one of --workload, --prompts, --capture")
    for argument, number, least in (
        ("requests", requests, 2),
        ("tokens", tokens, 1),
        ("continue", continuation, 1),
    ):
        if number is not None and number < least:
            raise InputError(
                argument,
                number,
                "needs at least two calibration requests" if least == 2 else "must be at least 1",
            )
    whole = (TOKENS if tokens is None else tokens) + continuation + 1
    count = REQUESTS if requests is None else requests
    others = 0 if not held_out else count if serve is None else serve
    if workload is not None:
        made = build_prompts(workload, loaded.tokenizer, requests=count + others, tokens=whole, seed=seed)
    elif prompts is not None:
        made = read_prompts(
            prompts,
            loaded.tokenizer,
            max_tokens=loaded.max_tokens,
            requests=count + others,
            tokens=whole,
        )
    else:
        assert capture is not None
        made = captured_requests(
            capture, loaded, requests=count + others, tokens=None if tokens is None else whole
        )
        held = len(made.prompts)
        if requests is None and held < count + others:
            count = max(2, held // 2 if held_out and serve is None else held - others)
            others = count if held_out and serve is None else others
        if count + others > held:
            besides = f" and {others} others" if others else ""
            raise InputError(
                "requests",
                count,
                f"to plan on{besides} are more than the {held} that {capture} holds; ask for fewer, or "
                "capture more",
            )
    first, second = made.prompts[:count], made.prompts[count : count + others]
    return PlanRequests(
        PromptSet(made.name, first, made.seed, made.origin),
        PromptSet(made.name, second, made.seed, made.origin) if held_out else None,
    )


def draw_elsewhere(
    loaded: LoadedModel, source: str, like: PromptSet, *, continuation: int, seed: int = 0
) -> PromptSet:
    """Requests of other traffic: as many as ``like`` holds, as long as its longest.

    Args:
        loaded: the model.
        source: a capture's folder, a JSONL file, or the name of a built-in workload.
        like: the requests beside which they are to stand.
        continuation: of both.
        seed: of a workload.

    Raises as ``draw_requests``.
    """
    path = Path(source)
    kind = "capture" if path.is_dir() else "prompts" if path.is_file() else "workload"
    tokens = max(len(prompt.token_ids) for prompt in like.prompts) - continuation - 1
    drawn = draw_requests(
        loaded,
        workload=source if kind == "workload" else None,
        prompts=path if kind == "prompts" else None,
        capture=path if kind == "capture" else None,
        requests=len(like.prompts),
        tokens=tokens,
        continuation=continuation,
        seed=seed,
    )
    return drawn.calibration
