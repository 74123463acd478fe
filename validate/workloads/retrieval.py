"""Retrieval-augmented generation: shared chunks in random order, or in the order of a fixed ranking."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, QUESTIONS, popular, with_ending
from ratedist.validate.workloads.prompts import Prompt, Tokenizer
from ratedist.validate.workloads.texts import documents, passages

__all__ = ["documents_any_order", "documents_in_order"]

_INSTRUCTION = "Answer the question from the passages below.\n\n"
_CHUNK = 300
"""Least characters of a chunk, about 80 tokens."""
_TOPICS = 8


def documents_any_order(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
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
        chunks = passages(document.text, _CHUNK)
        start = random.randrange(max(1, len(chunks) - 5))
        pool += [f"[{document.title}]\n{chunk}" for chunk in chunks[start : start + 6]]
        if len(pool) >= wanted:
            break
    while True:
        chosen = random.sample(pool, len(pool))
        question = f"\n\nQuestion: {random.choice(QUESTIONS)}\nAnswer:"
        # Chunks beyond those that fit are cut off again: tokenize no more than what may be needed.
        text = _INSTRUCTION + "".join(chosen)[: CHARACTERS_PER_TOKEN * 2 * tokens]
        yield Prompt(tuple(with_ending(tokenizer, text, question, tokens)))


def documents_in_order(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Retrieval with a fixed ranking: a topic always brings the same chunks in the same order.

    Stands for retrieval-augmented generation behind a deterministic retriever (or a cached one): questions
    on one of eight topics, the first asked most often (in proportion to 1, 1/2, 1/3 …), each with its own
    chunks. Requests on one topic agree exactly up to the question, which is the request's own and takes the
    last tokens; requests on different topics share the instruction alone. What fusion can add to prefix
    sharing lies between the topics and in the questions.
    """
    collection = list(documents())
    random.shuffle(collection)
    chunks = [
        f"[{document.title}]\n{chunk}"
        for document in collection
        for chunk in passages(document.text, _CHUNK)[:6]
    ]
    length = CHARACTERS_PER_TOKEN * 2 * tokens
    topics = []
    for number in range(_TOPICS):
        first = number * len(chunks) // _TOPICS
        text = ""
        while len(text) < length:
            text += chunks[first % len(chunks)]
            first += 1
        topics.append((text, sorted(set(re.findall(r"[A-Za-z]{7,}", text[: length // 3])))))
    while True:
        text, terms = popular(topics, random)
        asked = random.choice(_TERM_QUESTIONS).format(random.choice(terms))
        question = f"\n\nQuestion: {asked}\nAnswer:"
        yield Prompt(tuple(with_ending(tokenizer, _INSTRUCTION + text, question, tokens)))


_TERM_QUESTIONS = (
    "What does {} mean here?",
    "How is {} used, and by whom?",
    "Explain {} in one sentence.",
    "When does {} matter?",
    "Which passage mentions {} first, and why?",
    "Is {} explained anywhere in these passages?",
)
