"""Mixtures of workloads, with weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from random import Random

from ratedist.errors import InputError
from ratedist.validate.workloads.base import Builder, Workload
from ratedist.validate.workloads.prompts import Prompt, Tokenizer

__all__ = ["DEFAULT_WEIGHTS", "MIXTURE", "mixture_builder", "parse_mixture"]

MIXTURE = "mixture"
"""Name of the default mixture, and what the names of others begin with, before a colon."""

DEFAULT_WEIGHTS = {
    "system-prompt": 0.3,
    "conversation": 0.2,
    "documents": 0.2,
    "templates": 0.15,
    "unrelated": 0.15,
}
"""Weights of the default mixture."""

_HOW = f"write {MIXTURE}, or {MIXTURE}:NAME=WEIGHT,… as in {MIXTURE}:unrelated=0.5,templates=0.5"


def parse_mixture(name: str, known: Mapping[str, Workload]) -> dict[str, float]:
    """Weights by workload of ``mixture:unrelated=1,templates=3``: ``{"unrelated": 0.25, "templates": 0.75}``.

    Args:
        name: with the prefix; weights of any positive size, which are divided by their sum.
        known: workloads by name.

    Returns:
        Weights that sum to 1, in the order of ``known``, so that equal mixtures are equal.

    Raises:
        InputError: not of that form, an unknown or repeated workload, a mixture within a mixture, or a
            weight that is no positive number.
    """
    found: dict[str, float] = {}
    for part in name.removeprefix(f"{MIXTURE}:").split(","):
        workload, equals, text = (piece.strip() for piece in part.partition("="))
        if not workload or not equals:
            raise InputError("workload", name, f"part {part!r} has no name and weight; {_HOW}")
        if workload.partition(":")[0] == MIXTURE:
            raise InputError("workload", name, "a mixture cannot hold a mixture; name its parts instead")
        if workload not in known:
            others = ", ".join(other for other in known if other != MIXTURE)
            raise InputError("workload", name, f"{workload!r} is unknown; mix some of {others}")
        if workload in found:
            raise InputError("workload", name, f"{workload} is named twice; give it one weight")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise InputError("workload", name, f"weight {text!r} of {workload} must be a positive number")
        found[workload] = weight
    total = math.fsum(found.values())
    return {workload: found[workload] / total for workload in known if workload in found}


def mixture_builder(weights: Mapping[str, float], known: Mapping[str, Workload]) -> Builder:
    """A builder that takes each request from one of the workloads, with these probabilities."""

    def mixture(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
        """Several applications behind one endpoint: each request comes from one of the workloads, at random.

        Stands for a server that all of a company's products share. Exact sharing stays within a part, as each
        part documents it; parts have nothing in common but the language and some of the texts that they
        quote. By default 30 % system-prompt, 20 % conversation, 20 % documents, 15 % templates and
        15 % unrelated; weights of one's own with mixture:NAME=WEIGHT,NAME=WEIGHT.
        """
        parts = {
            name: known[name].build(tokenizer, tokens, Random(random.getrandbits(64))) for name in weights
        }
        while True:
            name = random.choices(list(weights), list(weights.values()))[0]
            prompt = next(parts[name], None)
            if prompt is None:  # a part has no more text: the proportions could not be kept
                return
            yield prompt

    return mixture
