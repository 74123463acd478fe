"""What the workloads share: their type, sources of text that is used once, and cutting to length."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from ratedist.errors import InputError
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import documents, passages

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "QUESTIONS",
    "Builder",
    "Workload",
    "own_passages",
    "popular",
    "shortened",
    "too_short",
    "with_ending",
]

CHARACTERS_PER_TOKEN = 5
"""Characters cut per token wanted: English takes 3.5 to 4.5, so this suffices almost always."""

Builder = Callable[[Tokenizer, int, Random], Iterator[Prompt]]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Workload:
    """A kind of traffic.

    Attributes:
        name: what the command line calls it.
        build: yields requests of exactly the given number of tokens, for as long as there is text.
        stands_for: what traffic it stands for, and what is shared exactly in it.
    """

    name: str
    build: Builder

    @property
    def stands_for(self) -> str:
        return inspect.getdoc(self.build) or ""


def own_passages(tokens: int, random: Random) -> Iterator[str]:
    """Passages long enough for a request, none twice: one of every document, then a second of each, …"""
    collection = list(documents())
    random.shuffle(collection)
    left = [list(passages(document.text, CHARACTERS_PER_TOKEN * tokens)) for document in collection]
    for own in left:
        random.shuffle(own)
    while any(left):
        for own in left:
            if own:
                yield own.pop()


def popular(items: Sequence[_T], random: Random) -> _T:
    """One of the items, the first most often: item n with probability in proportion to 1 / n (Zipf)."""
    return random.choices(items, [1 / rank for rank in range(1, len(items) + 1)])[0]


def with_ending(tokenizer: Tokenizer, text: str, ending: str, tokens: int) -> list[int]:
    """``tokens`` token ids (or fewer, where the text is short) that end with those of ``ending``.

    The text is cut where the ending must begin; an ending longer than a quarter of the request is cut to it.
    """
    last = encode(tokenizer, ending, special=False)[: tokens // 4]
    return encode(tokenizer, text)[: tokens - len(last)] + last


def shortened(text: str, length: int) -> str:
    """A text on one line, of at most ``length`` characters, cut behind a sentence if one ends in the second
    half, else behind a word."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    sentence = text.rfind(". ", length // 2, length)
    return text[: sentence + 1] if sentence >= 0 else text[: length + 1].rpartition(" ")[0][:length]


def too_short(tokens: int, workload: str, holds: str, enough: int) -> InputError:
    """The refusal of requests too short to be what the workload stands for."""
    return InputError(
        "tokens", tokens, f"a request of workload {workload} holds {holds}; ask for {enough} tokens or more"
    )


QUESTIONS = (
    "Summarise the following text in three sentences.",
    "Which terms does this passage define, and how?",
    "What would a beginner find hard to understand here?",
    "Rewrite the text below for a reader who is in a hurry.",
    "Is anything in this text out of date or contradictory?",
    "List the most important points of what follows, most important first.",
    "Write two questions that test whether someone has understood this.",
    "Explain the passage to a colleague who knows another programming language.",
)
