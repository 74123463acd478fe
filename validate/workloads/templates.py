"""One form rendered per record."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ratedist.validate.workloads._forms import FORMS, fill_form
from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode

__all__ = ["templates"]


def templates(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """A form filled in by a program: the same wording, other names, dates and amounts.

    Stands for batch jobs (tickets, claims, reports) where one template is rendered per record. Its fields
    begin in the first line, so hardly a block is shared exactly; requests are near-duplicates that drift
    apart by a few tokens wherever a value is longer. The seed chooses the form.
    """
    form = random.choice(FORMS)
    while True:
        text = fill_form(form, random, CHARACTERS_PER_TOKEN * tokens)
        yield Prompt(tuple(encode(tokenizer, text)[:tokens]))
