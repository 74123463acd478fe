"""A few-shot prompt: the same worked examples, another case."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads.base import own_passages, shortened, too_short, with_ending
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import documents, passages

__all__ = ["few_shot"]

_TASK = "Name the chapter or the module that each passage is taken from.\n\n"
_ENDING = "\nTaken from:"


def few_shot(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Few-shot classification: the same task and worked examples in every request, then another case.

    Stands for a model used as a classifier through a fixed prompt. The task and its examples (as many as fit
    into 70 % of a request) are an exact prefix; the case that follows has the form of the examples and text
    of its own, and ends with the same words.
    """
    prefix = _TASK
    for document in random.sample(documents(), len(documents())):
        example = shortened(random.choice(passages(document.text, 150)), 220)
        shot = f"Passage: {example}{_ENDING} {document.title}\n\n"
        if len(encode(tokenizer, prefix + shot)) > 0.7 * tokens:
            break
        prefix += shot
    if prefix == _TASK:
        raise too_short(tokens, "few-shot", "a worked example and a case of its own", 256)
    for passage in own_passages(tokens, random):
        case = f"{prefix}Passage: {' '.join(passage.split())}"
        yield Prompt(tuple(with_ending(tokenizer, case, _ENDING, tokens)))
