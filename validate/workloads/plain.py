"""Workloads of independent passages, bare or behind one system prompt."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads.base import QUESTIONS, own_passages
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode

__all__ = ["system_prompt", "unrelated"]


def unrelated(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Independent users with nothing in common: passages of different documents.

    Stands for open-ended traffic behind one endpoint without a system prompt. Requests share no text, only
    the language and, once there are more requests than documents, the style of a document.
    """
    for passage in own_passages(tokens, random):
        yield Prompt(tuple(encode(tokenizer, passage)[:tokens]))


def system_prompt(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """One application: a fixed system prompt, then a user's own question about the user's own text.

    Stands for an assistant product. The shared prefix is exact and takes at most 30 % of a request (as many
    of its rules as fit); what follows differs, but for a few ways of asking.
    """
    system = "System:"
    for rule in _SYSTEM_RULES:
        if len(encode(tokenizer, f"{system} {rule}\n\n")) > 0.3 * tokens:
            break
        system += f" {rule}"
    for passage in own_passages(tokens, random):
        question = random.choice(QUESTIONS)
        text = f"{system}\n\nUser: {question}\n\n{passage}"
        yield Prompt(tuple(encode(tokenizer, text)[:tokens]))


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
