"""Prompts as token ids with their domains, and reading one's own from a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ratedist.errors import InputError

__all__ = ["Prompt", "PromptSet", "Tokenizer", "encode", "read_prompts"]

_EXAMPLE = 'write one {"prompt": "…"} per line'

Tokenizer = Callable[..., Any]
"""A Hugging Face tokenizer: called with a text it returns a mapping with ``input_ids``."""


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        token_ids: its token ids.
        domain: the domain within which its blocks may be shared.
        decisive: spans (first token, one past the last) on which the right answer hangs, where the
            workload knows them: to share such a block with a request that differs there is a wrong merge.
    """

    token_ids: tuple[int, ...]
    domain: int = 0
    decisive: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class PromptSet:
    """Requests in order.

    Attributes:
        name: of the workload, or of the prompt file.
        prompts: the requests.
        seed: what the workload was drawn with; 0 for a file.
        origin: further settings that determined them (JSON data).
    """

    name: str
    prompts: tuple[Prompt, ...]
    seed: int = 0
    origin: dict[str, Any] = field(default_factory=dict)


def encode(tokenizer: Tokenizer, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text; with ``special`` also the tokens that the tokenizer puts around one by default."""
    return [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]


def read_prompts(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    requests: int | None = None,
    tokens: int | None = None,
) -> PromptSet:
    """Read prompts from a JSONL file: one object per line with ``prompt`` and, optionally, ``domain``.

    Domains are strings or integers; equal ones share blocks, lines without one share a domain of their own.
    Other keys and blank lines are ignored. The file may start with a byte order mark.

    Args:
        path: the file, in UTF-8.
        tokenizer: the model's.
        max_tokens: the model's longest sequence; None for no limit.
        requests: take the first so many prompts; default all.
        tokens: cut every prompt to its first so many tokens; default uncut.

    Raises:
        InputError: no such file, not UTF-8, no prompts in it, fewer than ``requests``, or a line that is no
            such object or too long for the model; the message has the line number and what would do.
    """
    for argument, value in (("requests", requests), ("tokens", tokens)):
        if value is not None and value < 1:
            raise InputError(argument, value, "must be at least 1")
    path = Path(path)
    prompts: list[Prompt] = []
    domains: dict[str, int] = {}
    for number, line in _lines(path):
        if len(prompts) == requests:
            break
        text, domain = _parse(path, number, line)
        try:
            ids = encode(tokenizer, text)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError(
                "prompts", f"{path}, line {number}", "holds characters that are no text (unpaired surrogates)"
            ) from error
        ids = ids[:tokens]
        if not ids:
            raise InputError("prompts", f"{path}, line {number}", "gives no tokens; remove the line")
        if max_tokens is not None and len(ids) > max_tokens:
            raise InputError(
                "prompts",
                f"{path}, line {number}",
                f"has {len(ids)} tokens, the model takes at most {max_tokens}; shorten it or pass --tokens",
            )
        prompts.append(Prompt(tuple(ids), domains.setdefault(domain, len(domains))))
    if not prompts:
        raise InputError("prompts", str(path), f"is empty; {_EXAMPLE}")
    if requests is not None and len(prompts) < requests:
        raise InputError("requests", requests, f"{path} holds only {len(prompts)} prompts")
    return PromptSet(path.name, tuple(prompts), origin={"domains": list(domains), "cut_to_tokens": tokens})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError("prompts", str(path), f"cannot be read ({error.strerror})") from error
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    "prompts",
                    f"{path}, line {number}",
                    f"is not UTF-8 (byte {error.start + 1} of the line); convert the file to UTF-8",
                ) from error
            if line.strip():
                yield number, line.rstrip()


def _parse(path: Path, number: int, line: str) -> tuple[str, str]:
    """The prompt of a line, and its domain as JSON text (so that 1 and "1" differ)."""
    place = f"{path}, line {number}"
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"is not JSON ({error.msg} at column {error.colno}); {_EXAMPLE}"
        raise InputError("prompts", place, reason) from None
    except RecursionError:
        raise InputError("prompts", place, f"is nested too deeply; {_EXAMPLE}") from None
    if not isinstance(data, dict) or "prompt" not in data:
        raise InputError("prompts", place, f'has no "prompt"; {_EXAMPLE}')
    prompt, domain = data["prompt"], data.get("domain")
    if not isinstance(prompt, str):
        raise InputError("prompts", place, f'has "prompt" {json.dumps(prompt)[:40]}; it must be text')
    if not prompt.strip():
        raise InputError("prompts", place, 'has an empty "prompt"; fill it in or remove the line')
    if isinstance(domain, bool) or not isinstance(domain, str | int | None):
        raise InputError(
            "prompts", place, f'has "domain" {json.dumps(domain)[:40]}; it must be text or an integer'
        )
    return prompt, json.dumps(domain)
