"""Prompts that are edits of one another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, popular
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import prose

__all__ = ["edited"]

_ORIGINALS = 6


def edited(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Prompts sent again after editing: other words, clauses in another order, words put in.

    Stands for users who rewrite a prompt until it works, paraphrase one that circulates, or paste a text that
    someone has revised. Six originals (an instruction and plain prose), the first used most often; every
    request is one of them edited at a strength of its own, from a few touches to a revision of every
    sentence. Words are replaced by others of like meaning, a subordinate clause changes places with its main
    clause, neighbouring sentences swap, and turns of speech are put in. Exact is only what happens to be
    left alone at the beginning; from the first edit on the rest is moved by a few tokens, and no sentence is
    new.
    """
    texts = random.sample(prose(), len(prose()))
    originals = []
    for number in range(_ORIGINALS):
        text, chosen = "", number
        while len(text) < CHARACTERS_PER_TOKEN * tokens:
            text += texts[chosen % len(texts)].text + "\n"
            chosen += _ORIGINALS
        originals.append((_INSTRUCTIONS[number % len(_INSTRUCTIONS)] + "\n" + text)[: len(text)])
    while True:
        strength = random.choice((0.2, 0.5, 0.9))
        text = "\n".join(
            edit_paragraph(paragraph, strength, random)
            for paragraph in popular(originals, random).splitlines()
        )
        yield Prompt(tuple(encode(tokenizer, text)[:tokens]))


def edit_paragraph(text: str, strength: float, random: Random) -> str:
    """A paragraph of plain sentences edited: each sentence with probability ``strength``.

    Of the sentences that are edited, words with an equivalent are replaced half of the time each, a leading
    subordinate clause is moved behind its main clause, and three in ten get a turn of speech before them;
    a neighbour swaps places with one in five.
    """
    sentences = re.split(r"(?<=[.!?:]) +(?=[A-Z])", text)
    for number, sentence in enumerate(sentences):
        if random.random() >= strength:
            continue
        sentence = _replace_words(sentence, random)
        sentence = _reorder_clauses(sentence)
        if random.random() < 0.3:
            sentence = f"{random.choice(_TURNS)} {_lower_first(sentence)}"
        sentences[number] = sentence
        if number > 0 and random.random() < 0.2:
            sentences[number - 1 : number + 1] = [sentences[number], sentences[number - 1]]
    return " ".join(sentences)


def _replace_words(sentence: str, random: Random) -> str:
    def replace(match: re.Match[str]) -> str:
        word = match.group()
        other = _EQUIVALENT.get(word.lower())
        if other is None or random.random() < 0.5:
            return word
        return other[0].upper() + other[1:] if word[0].isupper() else other

    return re.sub(r"[A-Za-z]+", replace, sentence)


def _reorder_clauses(sentence: str) -> str:
    """``If a, b.`` as ``B, if a.``; other sentences as they are."""
    match = re.fullmatch(
        r"(If|When|While|Because|Since|Although|Unless|After|Before) ([^,;:()]+), (?:then )?([^;:()]+)\.",
        sentence,
    )
    if match is None or match[3].startswith(("and ", "or ", "but ")):  # the condition goes on
        return sentence
    conjunction, condition, main = match.groups()
    return f"{main[0].upper()}{main[1:]} {conjunction.lower()} {condition}."


def _lower_first(sentence: str) -> str:
    """The sentence as it stands behind a turn of speech: lower case, but for names and acronyms."""
    first = sentence.split(" ", 1)[0]
    is_name = first in ("Python", "Unicode", "I") or not first.isalpha() or not first[1:].islower()
    return sentence if is_name and len(first) > 1 else sentence[0].lower() + sentence[1:]


_INSTRUCTIONS = (
    "Rewrite the following text so that a beginner can use it. If something is missing, say what it is. "
    "Keep the examples, and show the most important rule first.",
    "Give a short answer to each question that this text raises. When the text does not say enough, "
    "explain what would help to decide.",
    "Find the errors in the following text. Before you change a sentence, show why it is wrong.",
    "Make a list of the terms that the text uses, and explain each in many fewer words than the text needs.",
    "Begin with a summary of the text in two sentences. Then give an example for each of its main points.",
    "Show how two readers could understand this text in different ways. If they can, change the text.",
)

_TURNS = (
    "Above all,",
    "In general,",
    "As a rule,",
    "In other words,",
    "Put simply,",
    "In practice,",
    "To be precise,",
)

_EQUIVALENTS = (
    "use employ", "used employed", "using employing", "show display", "shows displays", "give provide",
    "gives provides", "given provided", "can may", "text passage", "returns yields", "returned yielded",
    "invoked activated", "object item", "objects items", "method operation", "methods operations",
    "same identical", "different distinct", "also additionally", "however nevertheless", "because since",
    "usually normally", "often frequently", "only solely", "contains holds", "contain hold", "begin start",
    "begins starts", "important essential", "error fault", "errors faults", "allowed permitted",
    "allows permits", "allow permit", "needed required", "needs requires", "need require",
    "defined specified", "define specify", "defines specifies", "created made", "create make",
    "creates makes", "several various", "many numerous", "find locate", "found located", "changed altered",
    "keep retain", "kept retained", "example instance", "examples samples", "explain describe", "help aid",
    "main chief", "following subsequent", "special particular", "possible feasible", "available accessible",
    "current present", "whole entire", "large big", "small little", "new fresh", "old former",
    "simple plain", "common usual", "equal equivalent", "occurs happens", "occur happen", "performed done",
    "user person", "users people", "specific certain", "result outcome", "results outcomes",
    "collection group", "try attempt", "within inside", "until till",
    "information data", "support assistance", "argument parameter", "arguments parameters", "wrong incorrect",
    "short brief", "rule principle", "sentence statement", "sentences statements", "missing absent",
)  # fmt: skip

_EQUIVALENT: dict[str, str] = dict(map(str.split, _EQUIVALENTS))
