"""Request traces: made, read, refused; and the index of shared prefixes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.errors import InputError
from ratedist.validate.serving.prefix import PrefixIndex
from ratedist.validate.serving.trace import Request, make_trace, read_trace
from ratedist.validate.workloads.prompts import Prompt, PromptSet


def bytes_tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
    return {"input_ids": list(text.encode())}


PROMPTS = PromptSet("x", tuple(Prompt((n, n + 1), domain=n % 2) for n in range(400)))


def test_arrivals_are_a_poisson_process() -> None:
    """The mean gap of 400 is 1/rate within 4 standard errors, and its spread an exponential law's."""
    trace = make_trace(PROMPTS, new_tokens=5, rate=8.0, seed=3)
    times = [0.0] + [request.arrival for request in trace]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert abs(mean - 1 / 8) < 4 / 8 / math.sqrt(len(gaps))
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert abs(deviation / mean - 1) < 0.25
    assert trace == make_trace(PROMPTS, new_tokens=5, rate=8.0, seed=3)
    assert [request.domain for request in trace[:3]] == [0, 1, 0]
    assert {request.arrival for request in make_trace(PROMPTS, new_tokens=5)} == {0.0}


def test_reads_sorted_and_with_domains(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"arrival": 2, "prompt": "bb", "new_tokens": 3, "domain": "x"},
        {"arrival": 0.5, "prompt": "a", "new_tokens": 1},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    trace = read_trace(path, bytes_tokenizer)
    assert trace == [Request(0.5, (97,), 1, domain=1), Request(2.0, (98, 98), 3, domain=0)]
    assert trace[1].tokens == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"prompt": "a", "new_tokens": 1}', "line 2"),
        (
            '{"arrival": -1, "prompt": "a", "new_tokens": 1}',
            "line 2.*arrival = -1.0: must be a number of sec",
        ),
        ('{"arrival": NaN, "prompt": "a", "new_tokens": 1}', "line 2.*arrival"),
        ('{"arrival": "soon", "prompt": "a", "new_tokens": 1}', "line 2"),
        ('{"arrival": 0, "prompt": "", "new_tokens": 1}', "line 2.*at least one token"),
        ('{"arrival": 0, "prompt": "a", "new_tokens": 0}', "line 2.*new_tokens"),
        ('{"arrival": 0, "prompt": "a", "new_tokens": 1.5}', "line 2.*whole number"),
        ("[1]", "line 2"),
    ],
)
def test_refuses_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival": 0, "prompt": "a", "new_tokens": 1}\n' + line)
    with pytest.raises(InputError, match=message):
        read_trace(path, bytes_tokenizer)


def test_refuses_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "no", bytes_tokenizer)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match="holds no request"):
        read_trace(tmp_path / "empty", bytes_tokenizer)
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="must be a positive number of requests per second"):
            make_trace(PROMPTS, new_tokens=5, rate=rate)


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=14)


@given(
    st.lists(st.tuples(tokens, st.integers(0, 1)), max_size=6), tokens, st.integers(0, 1), st.integers(1, 4)
)
def test_the_longest_prefix_is_found(
    held: list[tuple[list[int], int]], wanted: list[int], domain: int, size: int
) -> None:
    """Against a comparison of every request's tokens, also after some have left."""
    index = PrefixIndex(size)
    for request, (known, own) in enumerate(held):
        index.add(request, known, own)
    for request in range(0, len(held), 3):
        index.remove(request)
    index.remove(99)
    best = 0
    for request, (known, own) in enumerate(held):
        blocks = 0
        while (
            own == domain
            and request % 3
            and (blocks + 1) * size <= min(len(known), len(wanted) - 1)
            and known[: (blocks + 1) * size] == wanted[: (blocks + 1) * size]
        ):
            blocks += 1
        best = max(best, blocks)
    found = index.longest(wanted, domain)
    if best == 0:
        assert found is None
        return
    assert found is not None
    assert found[1] == best
    known, own = held[found[0]]
    assert own == domain
    assert known[: best * size] == wanted[: best * size]
