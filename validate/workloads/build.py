"""The built-in workloads by name, and drawing requests of one."""

from __future__ import annotations

from itertools import islice
from random import Random

from ratedist.errors import InputError
from ratedist.validate.workloads.base import Workload
from ratedist.validate.workloads.code import code
from ratedist.validate.workloads.conversation import conversation
from ratedist.validate.workloads.edited import edited
from ratedist.validate.workloads.few_shot import few_shot
from ratedist.validate.workloads.long_documents import long_documents
from ratedist.validate.workloads.mixture import DEFAULT_WEIGHTS, MIXTURE, mixture_builder, parse_mixture
from ratedist.validate.workloads.near_duplicates import near_duplicates
from ratedist.validate.workloads.plain import system_prompt, unrelated
from ratedist.validate.workloads.prompts import Prompt, PromptSet, Tokenizer
from ratedist.validate.workloads.retrieval import documents_any_order, documents_in_order
from ratedist.validate.workloads.templates import templates
from ratedist.validate.workloads.tool_calls import tool_calls

__all__ = ["WORKLOADS", "build_prompts", "workload_named"]

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("unrelated", unrelated),
        Workload("system-prompt", system_prompt),
        Workload("documents", documents_any_order),
        Workload("templates", templates),
        Workload("documents-in-order", documents_in_order),
        Workload("few-shot", few_shot),
        Workload("conversation", conversation),
        Workload("edited", edited),
        Workload("code", code),
        Workload("long-documents", long_documents),
        Workload("tool-calls", tool_calls),
        Workload("near-duplicates", near_duplicates),
    )
}
"""The built-in workloads by name; the last is the default mixture of some of the others."""
WORKLOADS[MIXTURE] = Workload(MIXTURE, mixture_builder(DEFAULT_WEIGHTS, WORKLOADS))


def workload_named(name: str) -> Workload:
    """The workload of a name: a key of ``WORKLOADS``, or a mixture as in ``mixture:unrelated=1,code=3``.

    Raises:
        InputError: unknown workload (the message lists the known ones), or a mixture that is none.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    if name.startswith(f"{MIXTURE}:"):
        weights = parse_mixture(name, WORKLOADS)
        canonical = ",".join(f"{part}={weight:.6g}" for part, weight in weights.items())
        return Workload(f"{MIXTURE}:{canonical}", mixture_builder(weights, WORKLOADS))
    known = ", ".join(WORKLOADS)
    raise InputError("workload", name, f"must be one of {known}, or {MIXTURE}:NAME=WEIGHT,NAME=WEIGHT")


def build_prompts(
    name: str, tokenizer: Tokenizer, *, requests: int = 24, tokens: int = 384, seed: int = 0
) -> PromptSet:
    """Requests of a built-in workload, all different and in one domain.

    Args:
        name: a key of ``WORKLOADS``, or a mixture as in ``mixture:unrelated=0.5,templates=0.5``.
        tokenizer: the model's.
        requests: how many.
        tokens: exact length of each.
        seed: of every random choice; the same seed gives the same requests, and more ``requests``
            continue fewer.

    Raises:
        InputError: unknown workload (the message lists the known ones), requests too short to be what the
            workload stands for, or the built-in text does not suffice for so many different requests of
            that length.
    """
    workload = workload_named(name)
    if requests < 1:
        raise InputError("requests", requests, "must be at least 1")
    if tokens < 1:
        raise InputError("tokens", tokens, "must be at least 1")
    found: dict[tuple[int, ...], Prompt] = {}
    drawn = workload.build(tokenizer, tokens, Random(f"{workload.name} {seed}"))
    for prompt in islice(drawn, 4 * requests + 16):
        if len(prompt.token_ids) == tokens:
            found.setdefault(prompt.token_ids, prompt)
        if len(found) == requests:
            break
    if len(found) < requests:
        raise InputError(
            "requests",
            requests,
            f"the text of workload {name} gives only {len(found)} different requests of {tokens} tokens "
            f"(seed {seed}); ask for fewer requests or another length, or bring your own with --prompts",
        )
    origin = {"requests": requests, "tokens": tokens}
    return PromptSet(workload.name, tuple(found.values()), seed, origin)
