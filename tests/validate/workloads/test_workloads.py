"""Built-in workloads: exact lengths, different requests, and the sharing that each stands for."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from itertools import combinations
from random import Random

import pytest

from ratedist.errors import InputError
from ratedist.validate.captures.manifest import token_hash
from ratedist.validate.workloads import WORKLOADS, base, build_prompts, retrieval, workload_named
from ratedist.validate.workloads._forms import FORMS, Form, fill_form
from ratedist.validate.workloads.edited import edit_paragraph
from ratedist.validate.workloads.prompts import PromptSet
from ratedist.validate.workloads.texts import Document, documents, passages, prose, sources

DEMONSTRATED = ["unrelated", "system-prompt", "documents", "templates"]
NAMES = [
    *DEMONSTRATED,
    "documents-in-order",
    "few-shot",
    "conversation",
    "edited",
    "code",
    "long-documents",
    "tool-calls",
    "near-duplicates",
    "mixture",
]
SHORT = [*DEMONSTRATED, "documents-in-order", "edited", "long-documents"]
"""Those that are what they stand for at any length."""


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


@cache
def words(name: str, requests: int = 24, tokens: int = 384, seed: int = 0) -> tuple[str, ...]:
    """The text of requests whose tokens are words, or what stands between them."""
    known: dict[str, int] = {}

    def of_words(text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        parts = re.findall(r"\w+|[^\w\s]|\s+", text)
        return {"input_ids": [known.setdefault(part, len(known)) for part in parts]}

    found = build_prompts(name, of_words, requests=requests, tokens=tokens, seed=seed).prompts
    parts = list(known)
    return tuple("".join(parts[token] for token in prompt.token_ids) for prompt in found)


def prefix(a: str, b: str) -> str:
    return a[: next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))]


def test_all_are_known_and_say_what_they_stand_for() -> None:
    assert list(WORKLOADS) == NAMES
    for workload in WORKLOADS.values():
        assert "Stands for" in workload.stands_for
        assert re.search(r"[Ee]xact|share no text", workload.stands_for), "and what is exact in it"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unrelated", "7bfe66356a836624"),
        ("system-prompt", "08433b6b8c55869d"),
        ("documents", "650a313e30325648"),
        ("templates", "84793147a43a461c"),
    ],
)
def test_requests_of_records_stay(monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    """Committed records hold these requests. On made-up documents: real ones change with Python."""
    made = tuple(
        Document(
            f"text {n}", "\n\n".join(f"Paragraph {m} of text {n} says {m * n + 7}. " * 6 for m in range(60))
        )
        for n in range(30)
    )
    for module in (base, retrieval):
        monkeypatch.setattr(module, "documents", lambda: made)
    found = build_prompts(name, tokenizer, seed=3).prompts
    assert token_hash([token for prompt in found for token in prompt.token_ids])[:16] == expected


@pytest.mark.parametrize(
    ("name", "tokens"), [*((name, n) for name in NAMES for n in (384, 512)), *((name, 65) for name in SHORT)]
)
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


@pytest.mark.parametrize("name", NAMES)
def test_enough_to_predict_256_from_16(name: str) -> None:
    assert len({p.token_ids for p in prompts(name, requests=272).prompts}) == 272


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few-shot", "few-shot holds a worked example and a case of its own; ask for 256 tokens or more"),
        ("conversation", "conversation holds two turns of history and one of its own; ask for 256"),
        ("code", "code holds signatures, imports and code before the cursor; ask for 256"),
        ("tool-calls", "tool-calls holds a tool's schema, a task and some calls; ask for 256"),
        ("near-duplicates", "near-duplicates holds a fact, some text and a question about it; ask for 128"),
    ],
)
def test_too_short_to_be_what_they_stand_for(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"tokens = 33: a request of workload {message}"):
        build_prompts(name, tokenizer, tokens=33)
    enough = int(message.rpartition("ask for ")[2].split()[0])
    assert len(prompts(name, tokens=enough).prompts) == 24


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


def test_documents_in_order_share_all_but_the_question_within_a_topic() -> None:
    found = words("documents-in-order")
    cut = [text.rpartition("\n\nQuestion: ") for text in found]
    assert len({question for _, _, question in cut}) == 24
    assert all(question.endswith("\nAnswer:") for _, _, question in cut)
    topics = {context[:300] for context, _, _ in cut}
    assert 3 <= len(topics) <= 8
    for a, b in combinations([context for context, _, _ in cut], 2):
        same = a[:300] == b[:300]
        if same:
            assert len(prefix(a, b)) >= min(len(a.rstrip()), len(b.rstrip()))
        else:
            assert len(prefix(a, b)) < 100, "only the instruction"
    # Of 100 requests 37 on the most popular of 8 topics are expected (standard error 4.8); if all topics were
    # asked about alike, 12.5.
    starts = [text[:300] for text in words("documents-in-order", requests=100)]
    assert 22 <= max(map(starts.count, starts)) <= 52


def test_popular_falls_as_one_over_rank() -> None:
    random = Random(0)
    drawn = [base.popular("abcd", random) for _ in range(4000)]
    total = 1 + 1 / 2 + 1 / 3 + 1 / 4
    for rank, item in enumerate("abcd", start=1):
        share = 1 / rank / total
        error = (share * (1 - share) / 4000) ** 0.5
        assert abs(drawn.count(item) / 4000 - share) < 4 * error


def test_few_shot_shares_its_examples_and_ends_alike() -> None:
    found = words("few-shot")
    shared = min((prefix(found[0], other) for other in found[1:]), key=len)
    assert shared.count("\nTaken from:") == shared.count("Passage: ") - 1 >= 2
    assert all(text.endswith("\nTaken from:") for text in found)
    assert 0.4 < len(shared) / len(found[0]) < 0.8
    assert len({text[len(shared) :] for text in found}) == 24


def test_conversations_part_at_different_turns() -> None:
    found = words("conversation", tokens=1500)
    for text in found:
        turns = text.split("\nUser: ")
        assert all("\nAssistant: " in turn for turn in turns[1:-1])
        assert all(len(turn.partition("\nAssistant: ")[2]) > 20 for turn in turns[1:-1]), "no empty answer"
    # Where two requests part, both are at the beginning of a turn (or ask alike, and the answers differ).
    parted = {prefix(a, b).count("\nUser: ") for a, b in combinations(found, 2)}
    assert len(parted) >= 3
    assert min(parted) >= 1
    asked = {
        name for text in found for name in re.findall(r"^User: .*(?:chapter on|module) (\w+)", text, re.M)
    }
    assert len(asked) > 20, "beyond the history users ask about documents of their own"


def test_edits_keep_most_words_and_their_order_changes() -> None:
    found = words("edited")
    originals: dict[str, list[set[str]]] = {}
    for text in found:
        bag = set(re.findall(r"[A-Za-z]{4,}", text))
        first = max(originals, key=lambda key: len(originals[key][0] & bag), default="")
        if first and len(originals[first][0] & bag) > 0.6 * len(bag):
            originals[first].append(bag)
        else:
            originals[text] = [bag]
    assert 2 <= len(originals) <= 6
    assert max(map(len, originals.values())) >= 6
    blocks = [{p.token_ids[n : n + 16] for n in range(0, 384, 16)} for p in prompts("edited").prompts]
    equal = sum(len(a & b) for a, b in combinations(blocks, 2)) / (276 * 24)
    assert 0 < equal < 0.3


def test_edits_by_hand() -> None:
    text = "If a value is needed, the method returns it. The user can show an example."
    found = {edit_paragraph(text, 1.0, Random(seed)) for seed in range(3000)}
    assert "The method returns it if a value is needed. The user can show an example." in found
    assert any("The user may display an instance." in edit for edit in found)
    assert any(edit.startswith("In general, the method returns it") for edit in found)
    assert any(re.match(r"The (user|person) .* If|The (user|person) .*the method", edit) for edit in found)
    assert edit_paragraph(text, 0.0, Random(0)) == text
    kept = "If it is, and only then, it is. Python can."
    assert all("then, it is" in edit_paragraph(kept, 1.0, Random(seed)) for seed in range(20))
    assert not any("python" in edit_paragraph(kept, 1.0, Random(seed)) for seed in range(20))


def test_code_shares_heads_and_overlaps_elsewhere() -> None:
    """Completions in one file begin alike, and what stands before two cursors overlaps at other places."""
    found = words("code", tokens=512)
    heads, windows = zip(*(text.split("\n# …\n") for text in found), strict=True)
    assert 3 <= len(set(heads)) <= 6
    source = {file.title: file.text for file in sources()}
    moved = 0
    for head, window in zip(heads, windows, strict=True):
        titles = re.findall(r"^# (lib/\w+\.py)$", head, re.MULTILINE)
        assert len(titles) == 2
        assert window in source[titles[1]], "the file's own code, up to the cursor"
        assert "import " in head.partition(titles[1])[2]
    for (head, a), (other, b) in combinations(zip(heads, windows, strict=True), 2):
        if head == other and a != b and (a[-60:] in b or b[-60:] in a):
            moved += not (a.startswith(b[:20]) or b.startswith(a[:20]))
    assert moved >= 3
    assert all(ast.parse(file.text) for file in sources()[::20])


def test_long_documents_repeat_themselves_and_no_other() -> None:
    found = words("long-documents", requests=12, tokens=2000)
    for text in found:
        notices = re.findall(r"\n\nNotice: (.*)\n", text)
        assert len(notices) >= 8
        assert len(set(notices)) <= 2
        quoted = re.findall(r"Section (\d+) is repeated here for reference:\n\n(.*?)\n\nNotice", text, re.S)
        assert quoted
        for number, body in quoted:
            assert f"\n\nSection {number}\n\n{body}\n\nNotice" in text
    own = [set(re.findall(r"\n\nSection \d+\n\n(?!Section)(.{40})", text, re.S)) for text in found]
    assert sum(bool(a & b) for a, b in combinations(own, 2)) < 20
    short = words("long-documents")
    assert sum(len(set(n)) < len(n) for n in (re.findall(r"Notice: (.{20})", t) for t in short)) > 12


def test_tool_calls_are_json_and_results_come_up_again() -> None:
    results: dict[str, set[int]] = {}
    identities: list[str] = []
    for request, text in enumerate(words("tool-calls", tokens=1024)):
        lines = text.split("\n")
        assert lines[0].startswith("You can call these tools.")
        user = next(n for n, line in enumerate(lines) if line.startswith("User: "))
        assert {"name", "description", "parameters"} == set(json.loads(lines[1]))
        called, calls = None, []
        for line in lines[user + 1 : -1]:
            role, _, content = line.partition(": ")
            data = json.loads(content)
            if role == "Assistant":
                called = data["id"]
                assert data["tool"] in text.partition("User: ")[0] + "list_documents"
            else:
                assert (role, data["id"]) == ("Tool", called)
                results.setdefault(json.dumps(data["result"]), set()).add(request)
                calls.append(data["id"])
        identities += calls[1:]
    assert sum(len(requests) > 1 for requests in results.values()) >= 5
    assert len(set(identities)) == len(identities) > 24, "only a task's first step comes again as it was"


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_differ_in_the_decisive_span_alone(seed: int) -> None:
    """Tokens are pieces of words, so that names have different numbers of them."""

    def pieces(text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        parts = re.findall(r"\w{1,2}|[^\w\s]|\s+", text)
        return {"input_ids": [int.from_bytes(part.encode(), "big") for part in parts]}

    found = build_prompts("near-duplicates", pieces, tokens=1000, seed=seed).prompts
    families = [found[n::4] for n in range(4)]
    for family in families:
        (span,) = {prompt.decisive for prompt in family}
        ((start, stop),) = span
        assert 0 < stop - start <= 8
        assert len({p.token_ids[:start] + p.token_ids[stop:] for p in family}) == 1
        assert len({p.token_ids[start:stop] for p in family}) == len(family)
        # No narrower: its first and its last token differ between some.
        assert len({p.token_ids[start] for p in family}) > 1
        assert len({p.token_ids[stop - 1] for p in family}) > 1
    assert len({family[0].decisive for family in families}) == 4
    assert len({family[0].token_ids[-30:] for family in families}) == 4, "each asks for its own value"
    assert not any(p.decisive for p in prompts("templates").prompts)
    for text in words("near-duplicates"):
        context, _, answer = text.partition("\nAnswer: ")
        context, _, question = context.partition("\nQuestion: ")
        assert question.endswith("?")
        (stated,) = re.findall(re.escape(answer) + r" (\d+|[A-Z]\w+ [A-Z]\w+)", context)
        assert stated not in question + answer, "only the text has it"


def test_mixture_keeps_its_weights() -> None:
    found = words("mixture", requests=200)
    starts = {
        "system-prompt": "System: You are",
        "conversation": "A conversation between",
        "documents": "Answer the question from the passages",
    }
    shares = {name: sum(text.startswith(start) for text in found) / 200 for name, start in starts.items()}
    # Binomial: standard errors are at most 0.033.
    assert abs(shares["system-prompt"] - 0.3) < 0.13
    assert abs(shares["conversation"] - 0.2) < 0.12
    assert abs(shares["documents"] - 0.2) < 0.12
    own = words("mixture:system-prompt=3, conversation = 1", requests=200)
    assert {text[:10] for text in own} == {"System: Yo", "A conversa"}
    # 150 of 200 are expected, with a standard error of 6.1.
    assert 126 <= sum(text.startswith("System") for text in own) <= 174


def test_equal_mixtures_are_equal() -> None:
    name = workload_named("mixture:templates=3,unrelated=1").name
    assert name == "mixture:unrelated=0.25,templates=0.75"
    assert workload_named(name).name == name
    first = build_prompts("mixture:templates=3,unrelated=1", tokenizer, tokens=65)
    assert first == build_prompts(name, tokenizer, tokens=65)
    assert first.name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixture:", "part '' has no name and weight; write mixture, or mixture:NAME=WEIGHT,… as in"),
        ("mixture:unrelated", "part 'unrelated' has no name and weight"),
        ("mixture:=1", "part '=1' has no name and weight"),
        ("mixture:chat=1", "'chat' is unknown; mix some of unrelated, system-prompt"),
        ("mixture:mixture=1,code=1", "a mixture cannot hold a mixture; name its parts instead"),
        ("mixture:code=1,code=2", "code is named twice; give it one weight"),
        ("mixture:code=much", "weight 'much' of code must be a positive number"),
        ("mixture:code=0", "weight '0' of code must be a positive number"),
        ("mixture:code=-1", "weight '-1' of code must be a positive number"),
        ("mixture:code=nan", "weight 'nan' of code must be a positive number"),
        ("mixture:code=inf", "weight 'inf' of code must be a positive number"),
    ],
)
def test_mixtures_that_are_none(name: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"workload = {name!r}: {message}")):
        workload_named(name)


def test_a_mixture_ends_with_its_shortest_part() -> None:
    """Other parts must not fill in, as the proportions would change unseen."""
    with pytest.raises(InputError, match=r"gives only \d+ different requests of 30000 tokens"):
        build_prompts("mixture:unrelated=1,templates=1", tokenizer, tokens=30000)


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
    assert len(sources()) > 50
    assert all(file.title.startswith("lib/") for file in sources())
    assert len(prose()) > 20
    assert not any(mark in document.text for document in prose() for mark in (">>>", "``", "()"))
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
