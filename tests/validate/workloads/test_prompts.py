"""Prompt files: what they may hold, and what is said of lines that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.validate.workloads.prompts import encode, read_prompts


def tokenizer(text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
    """One token per byte, after a first token 256."""
    return {"input_ids": [256] * add_special_tokens + list(text.encode("utf-8"))}


def file_of(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


def test_encode() -> None:
    assert encode(tokenizer, "ab") == [256, 97, 98]
    assert encode(tokenizer, "ab", special=False) == [97, 98]


_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    lines=st.lists(
        st.tuples(_texts, st.one_of(st.none(), st.integers(-3, 3), st.sampled_from(["a", "b", "1", "2"]))),
        min_size=1,
        max_size=8,
    )
)
def test_prompts_and_domains_come_back(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, Any]]
) -> None:
    """Texts unchanged and in order; domains are equal where they were equal (1 and "1" are not)."""
    folder = tmp_path_factory.mktemp("prompts")
    data = [{"prompt": text} | ({} if domain is None else {"domain": domain}) for text, domain in lines]
    found = read_prompts(file_of(folder, *data), tokenizer)
    assert [bytes(p.token_ids[1:]).decode() for p in found.prompts] == [text for text, _ in lines]
    for p, (_, a) in zip(found.prompts, lines, strict=True):
        for q, (_, b) in zip(found.prompts, lines, strict=True):
            assert (p.domain == q.domain) == (a == b and type(a) is type(b))
    assert {p.domain for p in found.prompts} == set(range(len(found.origin["domains"])))


def test_blank_lines_other_keys_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "id": 7}\r\n\r\n  \n{"prompt": "b"}')
    found = read_prompts(path, tokenizer)
    assert found.name == "mine.jsonl"
    assert [p.token_ids for p in found.prompts] == [(256, 97), (256, 98)]


def test_number_and_length_can_be_limited(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"prompt": "abcdef"}, {"prompt": "xy"}, "not read")
    found = read_prompts(path, tokenizer, requests=2, tokens=4, max_tokens=4)
    assert [len(p.token_ids) for p in found.prompts] == [4, 3]
    with pytest.raises(InputError, match=r"requests = 3: .* holds only 2 prompts"):
        read_prompts(file_of(tmp_path, {"prompt": "abcdef"}, {"prompt": "xy"}), tokenizer, requests=3)
    for name in ("requests", "tokens"):
        with pytest.raises(InputError, match=f"{name} = 0: must be at least 1"):
            read_prompts(path, tokenizer, **{name: 0})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', r"line 2': is not JSON \(Expecting ',' delimiter at column 15\); write one"),
        ("plain text", r"line 2': is not JSON \(Expecting value at column 1\)"),
        ("[" * 100000, r"line 2': is nested too deeply"),
        ("[1]", r"line 2': has no \"prompt\"; write one \{\"prompt\": \"…\"\} per line"),
        ({"promt": "a"}, r"line 2': has no \"prompt\""),
        ({"prompt": ""}, r"line 2': has an empty \"prompt\""),
        ({"prompt": " \n"}, r"line 2': has an empty \"prompt\""),
        ({"prompt": None}, r"line 2': has \"prompt\" null; it must be text"),
        ({"prompt": ["a"]}, r"line 2': has \"prompt\" \[\"a\"\]; it must be text"),
        ({"prompt": "a", "domain": 1.5}, r"line 2': has \"domain\" 1.5; it must be text or an integer"),
        ({"prompt": "a", "domain": True}, r"line 2': has \"domain\" true"),
        ({"prompt": "a", "domain": []}, r"line 2': has \"domain\" \[\]"),
        ('{"prompt": "\\ud800"}', r"line 2': holds characters that are no text"),
        (
            {"prompt": "seven!!"},
            r"line 2': has 8 tokens, the model takes at most 7; shorten it or pass --tokens",
        ),
    ],
)
def test_bad_line(tmp_path: Path, line: Any, message: str) -> None:
    path = file_of(tmp_path, {"prompt": "good"}, line, {"prompt": "good"})
    with pytest.raises(InputError, match=message):
        read_prompts(path, tokenizer, max_tokens=7)


def test_line_without_tokens(tmp_path: Path) -> None:
    def silent(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": []}

    with pytest.raises(InputError, match="line 1': gives no tokens"):
        read_prompts(file_of(tmp_path, {"prompt": "a"}), silent)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"prompts.jsonl': is empty; write one"):
        read_prompts(file_of(tmp_path, text), tokenizer)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"line 2': is not UTF-8 \(byte 16 of the line\); convert the file"):
        read_prompts(path, tokenizer)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.jsonl': cannot be read \(No such file or directory\)"):
        read_prompts(tmp_path / "nothing.jsonl", tokenizer)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_prompts(tmp_path, tokenizer)
