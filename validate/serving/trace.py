"""A request trace: who asks for what, and when."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ratedist.errors import InputError
from ratedist.validate.workloads.prompts import PromptSet, Tokenizer, encode

__all__ = ["Request", "check_trace", "make_trace", "read_trace"]


@dataclass(frozen=True)
class Request:
    """One request of a trace.

    Attributes:
        arrival: seconds after the trace's start.
        prompt: token ids.
        new_tokens: tokens to generate; the end-of-text token does not stop before.
        domain: requests of different domains never share blocks.
    """

    arrival: float
    prompt: tuple[int, ...]
    new_tokens: int
    domain: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival) and self.arrival >= 0):
            raise InputError("arrival", self.arrival, "must be a number of seconds that is not negative")
        if not self.prompt:
            raise InputError("prompt", [], "must hold at least one token")
        if self.new_tokens < 1:
            raise InputError("new_tokens", self.new_tokens, "must be at least 1")

    @property
    def tokens(self) -> int:
        """Tokens that the cache holds of it at the end; the last new token is never read."""
        return len(self.prompt) + self.new_tokens - 1


def make_trace(
    prompts: PromptSet, *, new_tokens: int, rate: float | None = None, seed: int = 0
) -> list[Request]:
    """A trace over prompts in their order, all asking for as many tokens.

    Args:
        prompts: one request each.
        new_tokens: tokens to generate.
        rate: requests per second of a Poisson process; None: all at once.
        seed: of the arrivals.

    Raises:
        InputError: a rate that is not positive, or ``new_tokens`` below 1.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError(
            "rate", rate, "must be a positive number of requests per second, or None for all at once"
        )
    random = Random(f"arrivals {seed}")
    clock = 0.0
    trace = []
    for prompt in prompts.prompts:
        if rate is not None:
            clock += random.expovariate(rate)
        trace.append(Request(clock, prompt.token_ids, new_tokens, prompt.domain))
    return trace


def read_trace(path: str | Path, tokenizer: Tokenizer) -> list[Request]:
    """Read a trace from a JSONL file: ``{"arrival": 0.3, "prompt": "…", "new_tokens": 64, "domain": "a"}``.

    ``domain`` may be left out. Requests may stand in any order; they are sorted by arrival.

    Raises:
        InputError: no such file, a line that is no such object or has an impossible time; names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("trace", str(path), f"cannot be read ({error})") from error
    domains: dict[str, int] = {}
    trace: list[Request] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            data = json.loads(line)
            arrival, text, new_tokens = float(data["arrival"]), data["prompt"], data["new_tokens"]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "trace", place, 'write one {"arrival": seconds, "prompt": "…", "new_tokens": 64} per line'
            ) from error
        if not isinstance(text, str) or isinstance(new_tokens, bool) or not isinstance(new_tokens, int):
            raise InputError("trace", place, "prompt must be text and new_tokens a whole number")
        domain = domains.setdefault(json.dumps(data.get("domain")), len(domains))
        try:
            trace.append(Request(arrival, tuple(encode(tokenizer, text)), new_tokens, domain))
        except InputError as error:
            raise InputError("trace", place, str(error)) from error
    if not trace:
        raise InputError("trace", str(path), "holds no request")
    return sorted(trace, key=lambda request: request.arrival)


def check_trace(trace: Sequence[Request], max_tokens: int | None) -> None:
    """Raise InputError where a trace is empty, or a request longer than the model takes."""
    if not trace:
        raise InputError("trace", [], "holds no request")
    longest = max(range(len(trace)), key=lambda index: trace[index].tokens)
    if max_tokens is not None and trace[longest].tokens > max_tokens:
        raise InputError(
            "trace", trace[longest].tokens, f"request {longest} grows beyond the model's {max_tokens} tokens"
        )
