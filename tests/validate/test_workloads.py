"""Built-in workloads: exact lengths, different requests, and the sharing that each stands for."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from random import Random

import pytest

from ratedist.errors import InputError
from ratedist.validate._forms import FORMS, Form, fill_form
from ratedist.validate.prompts import PromptSet
from ratedist.validate.texts import documents, passages
from ratedist.validate.workloads import WORKLOADS, build_prompts

NAMES = ["unrelated", "system-prompt", "documents", "templates"]


def tokenizer(text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
    """One token per three characters or so, after a first token 0, like a real tokenizer on English."""
    parts = [text[start : start + 3] for start in range(0, len(text), 3)]
    ids = [1 + int.from_bytes(part.encode()[-3:], "big") for part in parts]
    return {"input_ids": [0] * add_special_tokens + ids}


@cache
def prompts(name: str, requests: int = 24, tokens: int = 384, seed: int = 0) -> PromptSet:
    return build_prompts(name, tokenizer, requests=requests, tokens=tokens, seed=seed)


def shared_prefix(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def test_the_four_are_known_and_say_what_they_stand_for() -> None:
    assert list(WORKLOADS) == NAMES
    for workload in WORKLOADS.values():
        assert "Stands for" in workload.stands_for


@pytest.mark.parametrize("tokens", [384, 512, 65])
@pytest.mark.parametrize("name", NAMES)
def test_exact_length_and_all_different(name: str, tokens: int) -> None:
    found = prompts(name, tokens=tokens)
    assert found.name == name
    assert len(found.prompts) == 24
    assert {len(p.token_ids) for p in found.prompts} == {tokens}
    assert len({p.token_ids for p in found.prompts}) == 24
    assert {p.domain for p in found.prompts} == {0}


@pytest.mark.parametrize("name", NAMES)
def test_seeded(name: str) -> None:
    first = [p.token_ids for p in prompts(name).prompts]
    again = [p.token_ids for p in build_prompts(name, tokenizer).prompts]
    other = [p.token_ids for p in prompts(name, seed=1).prompts]
    assert first == again
    assert first != other
    assert prompts(name, seed=1).seed == 1


@pytest.mark.parametrize("name", NAMES)
def test_more_requests_continue_fewer(name: str) -> None:
    assert prompts(name, requests=80, tokens=512).prompts[:24] == prompts(name, tokens=512).prompts


def test_unrelated_requests_share_no_block() -> None:
    blocks = [{p.token_ids[n : n + 16] for n in range(0, 384, 16)} for p in prompts("unrelated").prompts]
    assert not any(a & b for a, b in combinations(blocks, 2))


@pytest.mark.parametrize("name", ["unrelated", "system-prompt"])
def test_no_text_is_used_twice_beyond_one_request_per_document(name: str) -> None:
    """The ends differ too, not only the ways of asking."""
    found = prompts(name, requests=200).prompts
    assert len(documents()) < 200
    assert len({p.token_ids[-100:] for p in found}) == 200


def test_system_prompt_is_shared_exactly_and_no_more() -> None:
    found = [p.token_ids for p in prompts("system-prompt").prompts]
    shortest = min(shared_prefix(a, b) for a, b in combinations(found, 2))
    assert 0.15 * 384 < shortest <= 0.3 * 384 + 8, "the rules that fit, and the words before the question"
    # Requests that happen to ask alike share the question too, but not the text that follows.
    assert max(shared_prefix(a, b) for a, b in combinations(found, 2)) < 0.5 * 384


def test_documents_share_chunks_in_changing_places() -> None:
    """A chunk (its heading and what follows) turns up in several requests, at different positions."""
    parts: list[str] = []

    def keeping(text: str, **options: bool) -> dict[str, list[int]]:
        parts.extend(text[start : start + 4] for start in range(0, len(text), 4))
        return {"input_ids": list(range(len(parts) - -(-len(text) // 4), len(parts)))}

    places: dict[str, list[tuple[int, int]]] = {}
    for request, p in enumerate(build_prompts("documents", keeping, tokens=600).prompts):
        text = "".join(parts[token] for token in p.token_ids)
        assert text.startswith("Answer the question from the passages below.\n\n[")
        assert text.endswith("\nAnswer:")
        for chunk in text.split("\n\n[")[1:-1]:
            places.setdefault(chunk, []).append((request, text.index(chunk)))
    shared = [seen for seen in places.values() if len(seen) > 1]
    assert len(shared) > 0.5 * len(places)
    assert all(len({request for request, _ in seen}) == len(seen) for seen in shared), "never twice in one"
    assert sum(len({place for _, place in seen}) > 1 for seen in shared) > 0.9 * len(shared)


def test_templates_are_near_duplicates() -> None:
    """Of the windows of four tokens, far more are common to two requests than among unrelated texts."""

    def common(name: str) -> float:
        found = [{p.token_ids[n : n + 4] for n in range(380)} for p in prompts(name).prompts]
        return sum(len(a & b) / len(a) for a, b in combinations(found, 2)) / 276

    assert common("templates") > 0.05 > 5 * common("unrelated")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0].split()[0])
def test_forms_are_filled_and_long_enough(form: Form) -> None:
    texts = {fill_form(form, Random(seed), 3000) for seed in range(5)}
    assert len(texts) == 5
    for text in texts:
        assert len(text) >= 3000
        assert "{" not in text


def test_seed_chooses_the_form() -> None:
    """The first two tokens stand for the first word."""
    assert len({prompts("templates", seed=seed).prompts[0].token_ids[:3] for seed in range(12)}) == len(FORMS)
    assert len({prompt.token_ids[:3] for prompt in prompts("templates").prompts}) == 1


def test_documents_and_passages() -> None:
    found = documents()
    assert len(found) > 100
    assert all(len(document.text) >= 2000 for document in found)
    assert len({document.title for document in found}) == len(found)
    text = "one two\n\nthree\n \nfour five six\n\nseven"
    assert passages(text, 8) == ("one two\n\n", "three\n\nfour five six\n\n")
    assert passages(text, 1000) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "chat"},
            "workload = 'chat': must be one of unrelated, system-prompt, documents, templates",
        ),
        ({"name": "templates", "requests": 0}, "requests = 0: must be at least 1"),
        ({"name": "templates", "tokens": 0}, "tokens = 0: must be at least 1"),
        (
            {"name": "unrelated", "tokens": 30000},
            r"gives only \d+ different requests of 30000 tokens \(seed 0\)",
        ),
        ({"name": "templates", "tokens": 1}, "gives only 1 different requests of 1 tokens"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_prompts(tokenizer=tokenizer, **arguments)  # type: ignore[arg-type]
