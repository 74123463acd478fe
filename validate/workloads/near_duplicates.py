"""Requests that are equal but for the one detail that the answer hangs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, too_short
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import prose

__all__ = ["near_duplicates"]

_FAMILIES = 4


def near_duplicates(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Adversarial: requests equal but for one number or name, which the question at the end asks for.

    Stands for records of one kind that must not be confused: the same letter to another customer, the same
    report with another dose. In four families in turn, a fact stands early, in the middle or late in the same
    real text, and the end asks for it; within a family only the fact's value differs, at equal
    length in tokens, so that all that follows stays aligned with the blocks of its siblings. Exact is the
    prefix before the value. Behind it K and V differ only by the value's influence, and blocks look
    mergeable that are not: whoever reads a sibling's block with the value gives a sibling's answer.
    ``Prompt.decisive`` holds the span of the value.
    """
    texts = random.sample(prose(), len(prose()))
    facts = random.sample(_FACTS, _FAMILIES)
    families = []
    for number, fact in enumerate(facts):
        text, chosen = "", number
        while len(text) < CHARACTERS_PER_TOKEN * tokens:
            text += texts[chosen % len(texts)].text + "\n"
            chosen += _FAMILIES
        place = (0.1, 0.4, 0.7, 0.25)[number]
        families.append(_family(tokenizer, text, fact, place, tokens, random))
    while True:
        for family in families:
            yield next(family)


def _family(
    tokenizer: Tokenizer,
    text: str,
    fact: tuple[str, str, Callable[[Random], str]],
    place: float,
    tokens: int,
    random: Random,
) -> Iterator[Prompt]:
    statement, question, draw = fact
    before, after = statement.split("{}")
    # The answer is begun, so that even a small model goes on with the value.
    ending = encode(tokenizer, f"\nQuestion: {question}\nAnswer: {before.strip()}", special=False)
    room = tokens - len(ending)
    tail = encode(tokenizer, after + "\n", special=False)
    head = encode(tokenizer, f"Read the text and answer the question.\n{before}")
    least = len(head) + len(tail) + len(ending) + 24
    if tokens < least:
        raise too_short(tokens, "near-duplicates", "a fact, some text and a question about it", 128)
    filler = text.split(". ")
    first = _sentences(tokenizer, filler, round(place * (room - least)))
    opening = "Read the text and answer the question.\n" + "".join(f"{s}. " for s in filler[:first])
    rest = ". ".join(filler[first:])

    def ids_of(value: str) -> list[int]:
        return encode(tokenizer, f"{opening}{before}{value}{after} {rest}")

    # A value is where the tokens change from sibling to sibling.
    siblings = [ids_of(draw(random)) for _ in range(12)]
    length = max(map(len, siblings), key=[len(ids) for ids in siblings].count)
    aligned = [ids for ids in siblings if len(ids) == length]
    start = min(_common(aligned[0], ids) for ids in aligned)
    stop = length - min(_common(aligned[0][::-1], ids[::-1]) for ids in aligned)
    while True:
        ids = ids_of(draw(random))
        if len(ids) == length:
            yield Prompt(tuple(ids[:room] + ending), decisive=((start, stop),))


def _sentences(tokenizer: Tokenizer, sentences: Sequence[str], tokens: int) -> int:
    """How many of the sentences fit into so many tokens."""
    text, count = "", 0
    for sentence in sentences:
        text += f"{sentence}. "
        if len(encode(tokenizer, text, special=False)) > tokens:
            break
        count += 1
    return count


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _number(low: int, high: int) -> Callable[[Random], str]:
    return lambda random: str(random.randrange(low, high))


def _person(random: Random) -> str:
    return f"{random.choice(_FIRST)} {random.choice(_LAST)}"


_FIRST = (
    "Anna", "Peter", "Maria", "David", "Laura", "Martin", "Julia", "Simon", "Clara", "Robert", "Helen",
    "Daniel", "Emma", "Thomas", "Sarah", "George", "Alice", "Victor", "Nina", "Oscar",
)  # fmt: skip
_LAST = (
    "Baker", "Fisher", "Hunter", "Mason", "Carter", "Weaver", "Turner", "Cook", "Walker", "Porter", "Brooks",
    "Hill", "Stone", "Woods", "Rivers", "Field", "Banks", "Marsh", "Lane", "Bishop",
)  # fmt: skip

_FACTS: tuple[tuple[str, str, Callable[[Random], str]], ...] = (
    (
        "The patient must be given {} milligrams of the drug every day.",
        "How many milligrams must the patient be given every day?",
        _number(100, 1000),
    ),
    ("The code that opens the door is {}.", "Which code opens the door?", _number(1000, 10000)),
    (
        "The person who may sign the contract is {}.",
        "Who may sign the contract?",
        _person,
    ),
    (
        "The amount to be paid is {} euros, and nothing else is owed.",
        "Which amount is to be paid?",
        _number(1000, 10000),
    ),
    ("The train to be taken is number {}.", "Which train is to be taken?", _number(1000, 10000)),
    ("The witness who saw the accident is {}.", "Who saw the accident?", _person),
)
