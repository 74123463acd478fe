"""Long documents that repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, shortened
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import documents, passages, prose

__all__ = ["long_documents"]


def long_documents(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """One long document per request, with sections that come again within it.

    Stands for contracts, manuals, logs and threads with quotations, read whole: the case for fusing the
    blocks of one context (CFF). Every section of a document ends with one of its two notices, word for word
    the same each time, and from the third section on half of them quote an earlier section in full.
    What is repeated is exact as text but never as K and V: it stands at other positions after other words.
    Between requests only the wording of headings is shared. Documents are as long as asked; short ones hold
    few repetitions, so ask for 1024 tokens or more where these matter.
    """
    collection = [d for d in documents() if len(passages(d.text, _SECTION)) >= 2]
    while True:
        source = random.choice(collection)
        own = list(passages(source.text, _SECTION))
        start = random.randrange(len(own))
        notices = [shortened(other.text, _NOTICE) for other in random.sample(prose(), 2)]
        text = f"{source.title.upper()}\n\n"
        sections: list[tuple[int, str]] = []
        number = length = 0
        while length < CHARACTERS_PER_TOKEN * tokens:
            number += 1
            if len(own) == start:  # the source is used up: go on with another
                source = random.choice(collection)
                own, start = list(passages(source.text, _SECTION)), 0
            if number > 2 and random.random() < 0.5:
                earlier, quoted = random.choice(sections)
                body = f"Section {earlier} is repeated here for reference:\n\n{quoted}"
            else:
                body = own[start][: 3 * _SECTION // 2].strip()
                start += 1
                sections.append((number, body))
            part = f"Section {number}\n\n{body}\n\nNotice: {random.choices(notices, (3, 1))[0]}\n\n"
            length += len(part)
            text += part
        yield Prompt(tuple(encode(tokenizer, text)[:tokens]))


_SECTION = 160
"""Least characters of a section, at most half as many more."""
_NOTICE = 160
"""Most characters of a notice."""
