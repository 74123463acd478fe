"""Conversations that share their first turns."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, shortened, too_short
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import Document, documents, passages

__all__ = ["conversation"]

_OPENING = "A conversation between a user and an assistant that knows the documentation.\n\n"


def conversation(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Conversations with a shared history: users branch off the same turns, some early and some late.

    Stands for shared or forked chats (an answer regenerated, a question edited and sent again, a session
    that a team continues). All requests begin with the first of the history's turns; where a request leaves
    it is drawn evenly among its turns (as many as fit into 85 % of a request), and from there on all turns
    are its own. Exact is the prefix up to where two requests part, which differs from pair to pair; later
    turns share only their form, and sometimes the document that they are about.
    """
    answer = max(80, min(400, tokens // 2))
    subjects = random.sample(documents(), len(documents()))
    # Neighbouring turns are about the same few documents, as questions that follow each other are.
    focus = subjects[:3]
    history = [_OPENING + _turn(random.choice(focus), answer, random)]
    while len(encode(tokenizer, "".join(history))) <= 0.85 * tokens:
        history.append(_turn(random.choice(focus), answer, random))
    history.pop()
    if len(history) < 2:
        raise too_short(tokens, "conversation", "two turns of history and one of its own", 256)
    while True:
        text = "".join(history[: random.randint(1, len(history))])
        own = random.sample(subjects, 3)
        while len(text) < CHARACTERS_PER_TOKEN * tokens:
            text += _turn(random.choice(own), answer, random)
        yield Prompt(tuple(encode(tokenizer, text)[:tokens]))


def _turn(document: Document, length: int, random: Random) -> str:
    """A question about a document and an answer in its words, of about ``length`` characters."""
    kind, _, name = document.title.partition(": ")
    subject = f"the chapter on {name}" if name else document.title.replace(kind, f"the {kind}", 1)
    answer = shortened(random.choice(passages(document.text, length)), length)
    return f"User: {random.choice(_ASKED).format(subject)}\nAssistant: {answer}\n"


_ASKED = (
    "What does {} say about this?",
    "Can you quote the relevant part of {}?",
    "And how does {} put it?",
    "I do not understand {}. Where should I begin?",
    "Please give me the most important rule from {}.",
    "Is there an exception to that in {}?",
    "Thanks. What else is in {}?",
    "That does not help me. Look into {} again.",
)
