"""Agents that call tools in a loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from ratedist.validate.workloads.base import CHARACTERS_PER_TOKEN, popular, too_short
from ratedist.validate.workloads.prompts import Prompt, Tokenizer, encode
from ratedist.validate.workloads.texts import Document, documents, passages

__all__ = ["tool_calls"]

_TASKS = 6
_DOCUMENTS = 12


def tool_calls(tokenizer: Tokenizer, tokens: int, random: Random) -> Iterator[Prompt]:
    """Tool-call loops: the same tool schema, then JSON calls and results that pile up.

    Stands for many runs of one agent. The schema (as many tools as fit into 30 % of a request) is an exact
    prefix. Runs work on six tasks, the first most often; runs of one task also agree in the task and in
    the first call and its result, and then go ways of their own, as sampled runs do. All runs read
    the same twelve documents, so one result comes up in several runs: word for word, but at other
    positions and under another call id, so as near-duplicates rather than as equal blocks.
    """
    schema = "You can call these tools. Answer with one JSON call per step.\n"
    for tool in _TOOLS:
        line = json.dumps(tool) + "\n"
        if len(encode(tokenizer, schema + line)) > 0.3 * tokens:
            break
        schema += line
    if schema.count("\n") < 2:
        raise too_short(tokens, "tool-calls", "a tool's schema, a task and some calls", 256)
    shelf = random.sample(documents(), _DOCUMENTS)
    tasks = []
    for number in range(_TASKS):
        start = f"User: {_GOALS[number].format(_name(shelf[number]), _name(shelf[number + 1]))}\n"
        tasks.append(start + _step(shelf[number], random))
    while True:
        text = schema + popular(tasks, random)
        while len(text) < CHARACTERS_PER_TOKEN * tokens:
            text += _step(random.choice(shelf), random)
        yield Prompt(tuple(encode(tokenizer, text)[:tokens]))


def _step(document: Document, random: Random) -> str:
    """A call and its result, each on a line."""
    identity = f"call_{random.randrange(16**6):06x}"
    parts = passages(document.text, 160)
    kind = random.choice(("read", "read", "search", "list"))
    arguments: dict[str, Any]
    result: Any
    if kind == "read":
        section = random.randrange(min(4, len(parts)))
        arguments = {"title": document.title, "section": section}
        result = {"section": section, "of": len(parts), "text": _line(parts[section])}
    elif kind == "search":
        word = random.choice(_line(parts[0]).split())
        arguments = {"query": word, "limit": 2}
        hits = [n for n, part in enumerate(parts) if word in part][:2]
        result = [{"title": document.title, "section": n, "excerpt": _line(parts[n])[:80]} for n in hits]
    else:
        arguments = {"title": document.title}
        result = {"sections": [" ".join(_line(part).split()[:4]) for part in parts[:5]]}
    call = {"id": identity, "tool": f"{kind}_documents", "arguments": arguments}
    answer = {"id": identity, "status": "ok", "result": result}
    return f"Assistant: {json.dumps(call)}\nTool: {json.dumps(answer, ensure_ascii=False)}\n"


def _line(text: str) -> str:
    return " ".join(text.split())


def _name(document: Document) -> str:
    return document.title.partition(": ")[2] or document.title


_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "name": "read_documents",
        "description": "Read one section of a document.",
        "parameters": {"title": "string", "section": "integer, from 0"},
    },
    {
        "name": "search_documents",
        "description": "Find sections that contain a word.",
        "parameters": {"query": "string", "limit": "integer"},
    },
    {
        "name": "list_documents",
        "description": "List the sections of a document by their first words.",
        "parameters": {"title": "string"},
    },
    {
        "name": "write_note",
        "description": "Keep a note that later steps can read. Notes are lost when the run ends.",
        "parameters": {"text": "string, at most 500 characters"},
    },
    {
        "name": "finish",
        "description": "End the run with an answer for the user.",
        "parameters": {"answer": "string", "sources": "list of titles"},
    },
)

_GOALS = (
    "Find out what {0} and {1} have in common, and name the sections that say so.",
    "Which rule about {0} is broken most often? Quote it, then compare it with {1}.",
    "Write a note on {0} for someone who knows {1}.",
    "Does the section on {0} contradict the one on {1}?",
    "List everything that {0} requires, with sources; look into {1} as well.",
    "Where is {0} explained best: there, or in {1}?",
)
