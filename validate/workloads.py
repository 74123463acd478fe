"""Built-in workloads: seeded requests of an exact number of tokens, from text that is always at hand.

Nothing is aligned to blocks: shared parts begin and end where their text does, as they would in production,
so that only what happens to fall on whole blocks can be shared exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from ratedist.errors import InputError
from ratedist.validate._forms import FORMS, fill_form
from ratedist.validate.prompts import Prompt, PromptSet, Tokenizer, encode
from ratedist.validate.texts import documents, passages

__all__ = ["WORKLOADS", "Workload", "build_prompts"]

_CHARACTERS_PER_TOKEN = 5
"""Characters cut per token wanted: English takes 3.5 to 4.5, so this suffices almost always."""

Builder = Callable[[Tokenizer, int, Random], Iterator[list[int]]]


@dataclass(frozen=True)
class Workload:
    """A kind of traffic.

    Attributes:
        name: what the command line calls it.
        build: yields requests of exactly the given number of tokens, for as long as there is text.
        stands_for: what traffic it stands for.
    """

    name: str
    build: Builder

    @property
    def stands_for(self) -> str:
        return inspect.getdoc(self.build) or ""


def build_prompts(
    name: str, tokenizer: Tokenizer, *, requests: int = 24, tokens: int = 384, seed: int = 0
) -> PromptSet:
    """Requests of a built-in workload, all different and in one domain.

    Args:
        name: a key of ``WORKLOADS``.
        tokenizer: the model's.
        requests: how many.
        tokens: exact length of each.
        seed: of every random choice; the same seed gives the same requests, and more ``requests``
            continue fewer.

    Raises:
        InputError: unknown workload (the message lists the known ones), or the built-in text does not suffice
            for so many different requests of that length.
    """
    if name not in WORKLOADS:
        raise InputError("workload", name, f"must be one of {', '.join(WORKLOADS)}")
    if requests < 1:
        raise InputError("requests", requests, "must be at least 1")
    if tokens < 1:
        raise InputError("tokens", tokens, "must be at least 1")
    found: dict[tuple[int, ...], None] = {}
    drawn = WORKLOADS[name].build(tokenizer, tokens, Random(f"{name} {seed}"))
    for ids in islice(drawn, 4 * requests + 16):
        if len(ids) == tokens:
            found.setdefault(tuple(ids))
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
    return PromptSet(name, tuple(Prompt(ids) for ids in found), seed, origin)


def _unrelated(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[list[int]]:
    """Independent users with nothing in common: passages of different documents.

    Stands for open-ended traffic behind one endpoint without a system prompt. Requests share no text, only
    the language and, once there are more requests than documents, the style of a document.
    """
    for passage in _own_passages(tokens, random):
        yield encode(tokenizer, passage)[:tokens]


def _system_prompt(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[list[int]]:
    """One application: a fixed system prompt, then a user's own question about the user's own text.

    Stands for an assistant product. The shared prefix is exact and takes at most 30 % of a request (as many
    of its rules as fit); what follows differs, but for a few ways of asking.
    """
    system = "System:"
    for rule in _SYSTEM_RULES:
        if len(encode(tokenizer, f"{system} {rule}\n\n")) > 0.3 * tokens:
            break
        system += f" {rule}"
    for passage in _own_passages(tokens, random):
        question = random.choice(_QUESTIONS)
        yield encode(tokenizer, f"{system}\n\nUser: {question}\n\n{passage}")[:tokens]


def _documents(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[list[int]]:
    """Retrieval over a small collection: chunks of shared documents in random order, then a question.

    Stands for retrieval-augmented generation where many users ask about the same collection. Chunks are cut
    at paragraphs (about 80 tokens), so a chunk that two requests share stands at other positions and rarely
    falls on the same block boundaries; only chunks that happen to come first can be shared exactly. Every
    request draws from the same pool (48 chunks, more for long requests), so what a new request
    brings saturates. The last chunk is cut where the question must begin.
    """
    wanted = max(48, 4 * tokens // 60)
    collection = list(documents())
    random.shuffle(collection)
    pool: list[str] = []
    for document in collection:
        chunks = passages(document.text, 300)
        start = random.randrange(max(1, len(chunks) - 5))
        pool += [f"[{document.title}]\n{chunk}" for chunk in chunks[start : start + 6]]
        if len(pool) >= wanted:
            break
    while True:
        chosen = random.sample(pool, len(pool))
        question = encode(tokenizer, f"\n\nQuestion: {random.choice(_QUESTIONS)}\nAnswer:", special=False)
        question = question[: tokens // 4]
        text = "Answer the question from the passages below.\n\n"
        needed = tokens - len(question)
        # Chunks beyond those that fit are cut off again: tokenize no more than what may be needed.
        text += "".join(chosen)[: _CHARACTERS_PER_TOKEN * 2 * tokens]
        yield encode(tokenizer, text)[:needed] + question


def _templates(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[list[int]]:
    """A form filled in by a program: the same wording, other names, dates and amounts.

    Stands for batch jobs (tickets, claims, reports) where one template is rendered per record. Its fields
    begin in the first line, so hardly a block is shared exactly; requests are near-duplicates that drift
    apart by a few tokens wherever a value is longer. The seed chooses the form.
    """
    form = random.choice(FORMS)
    while True:
        yield encode(tokenizer, fill_form(form, random, _CHARACTERS_PER_TOKEN * tokens))[:tokens]


def _own_passages(tokens: int, random: Random) -> Iterator[str]:
    """Passages long enough for a request, none twice: one of every document, then a second of each, …"""
    collection = list(documents())
    random.shuffle(collection)
    left = [list(passages(document.text, _CHARACTERS_PER_TOKEN * tokens)) for document in collection]
    for own in left:
        random.shuffle(own)
    while any(left):
        for own in left:
            if own:
                yield own.pop()


_QUESTIONS = (
    "Summarise the following text in three sentences.",
    "Which terms does this passage define, and how?",
    "What would a beginner find hard to understand here?",
    "Rewrite the text below for a reader who is in a hurry.",
    "Is anything in this text out of date or contradictory?",
    "List the most important points of what follows, most important first.",
    "Write two questions that test whether someone has understood this.",
    "Explain the passage to a colleague who knows another programming language.",
)

_SYSTEM_RULES = (
    "You are Harbour, the assistant of a company that publishes technical documentation.",
    "Answer in the language of the question, in complete sentences and without small talk.",
    "Base every statement on the text that the user provides, and quote at most one sentence of it.",
    "If the text does not answer the question, say so and name what is missing.",
    "Never invent names, numbers, versions or links.",
    "Keep code exactly as it is written, and put it into a block of its own.",
    "Do not repeat the question, and do not comment on how it was asked.",
    "Prefer short words, and explain an abbreviation the first time it appears.",
    "Give no legal or medical advice; refer such questions to the editorial office.",
    "If two readings of a question are possible, answer the more common one and mention the other.",
    "Warn the reader before any step that deletes data or cannot be undone.",
    "End with one line that says how certain the answer is: high, medium or low.",
)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("unrelated", _unrelated),
        Workload("system-prompt", _system_prompt),
        Workload("documents", _documents),
        Workload("templates", _templates),
    )
}
"""The built-in workloads by name."""
