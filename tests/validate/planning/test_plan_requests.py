"""Requests to plan on: from a workload, a file or a capture, and others beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model

from ratedist.errors import InputError
from ratedist.validate.captures.capture import capture_cache
from ratedist.validate.captures.requests import captured_requests
from ratedist.validate.models import LoadedModel, load_model
from ratedist.validate.planning.requests import draw_requests
from ratedist.validate.workloads import build_prompts


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def capture(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five requests of 64 tokens."""
    folder = tmp_path_factory.mktemp("captures") / "templates"
    prompts = build_prompts("templates", loaded.tokenizer, requests=5, tokens=64, seed=3)
    capture_cache(loaded, prompts, folder)
    return folder


def ids(prompts: Any) -> list[tuple[int, ...]]:
    return [prompt.token_ids for prompt in prompts.prompts]


def test_a_capture_gives_the_requests_that_were_captured(loaded: LoadedModel, capture: Path) -> None:
    made = build_prompts("templates", loaded.tokenizer, requests=5, tokens=64, seed=3)
    found = captured_requests(capture, loaded)
    assert ids(found) == ids(made)
    assert (found.name, found.seed) == ("templates", 3)
    assert ids(captured_requests(capture, loaded, requests=2, tokens=20)) == [t[:20] for t in ids(made)[:2]]
    assert len(captured_requests(capture, loaded, requests=9).prompts) == 5


@pytest.mark.parametrize(
    ("requests", "held_out", "expected"),
    [(None, False, (5, None)), (None, True, (2, 2)), (3, False, (3, None)), (2, True, (2, 2))],
)
def test_a_capture_is_shared_out(
    loaded: LoadedModel,
    capture: Path,
    requests: int | None,
    held_out: bool,
    expected: tuple[int, int | None],
) -> None:
    """In the capture's order, whole, and no request on both sides."""
    drawn = draw_requests(loaded, capture=capture, requests=requests, continuation=4, held_out=held_out)
    others = [] if drawn.held_out is None else ids(drawn.held_out)
    everything = ids(captured_requests(capture, loaded))
    assert ids(drawn.calibration) + others == everything[: len(drawn.calibration.prompts) + len(others)]
    assert (len(drawn.calibration.prompts), len(others) or None) == expected


def test_more_can_be_held_out_than_planned_on(loaded: LoadedModel, capture: Path) -> None:
    drawn = draw_requests(loaded, capture=capture, continuation=4, held_out=True, serve=3)
    assert drawn.held_out is not None
    assert ids(drawn.calibration) + ids(drawn.held_out) == ids(captured_requests(capture, loaded))
    assert len(drawn.calibration.prompts) == 2
    with pytest.raises(InputError, match="requests = 2: to plan on and 4 others are more than the 5"):
        draw_requests(loaded, capture=capture, continuation=4, held_out=True, serve=4)


def test_tokens_cut_a_capture_to_prefix_and_continuation(loaded: LoadedModel, capture: Path) -> None:
    drawn = draw_requests(loaded, capture=capture, tokens=32, continuation=4)
    assert {len(tokens) for tokens in ids(drawn.calibration)} == {32 + 4 + 1}


def test_a_workload_and_a_file_are_shared_out_alike(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"prompt": f"Request {number}: " + "word " * 20}) for number in range(4)]
    file.write_text("\n".join(lines))
    for source in ({"workload": "templates"}, {"prompts": file}):
        drawn = draw_requests(loaded, **source, requests=2, tokens=40, continuation=4, held_out=True)
        assert drawn.held_out is not None
        both = ids(drawn.calibration) + ids(drawn.held_out)
        assert len(set(both)) == 4
        assert {len(tokens) for tokens in both} == {45}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "workload = None: give exactly one of --workload, --prompts, --capture"),
        (
            {"workload": "templates", "capture": "captured"},
            "workload = '--workload, --capture': give exactly one of",
        ),
        (
            {"capture": "captured", "requests": 6},
            "requests = 6: to plan on are more than the 5 that .* holds",
        ),
        (
            {"capture": "captured", "requests": 3, "held_out": True},
            "requests = 3: to plan on and 3 others are more than the 5",
        ),
        ({"capture": "captured", "requests": 1}, "requests = 1: needs at least two calibration requests"),
        ({"workload": "templates", "tokens": 0}, "tokens = 0: must be at least 1"),
        ({"workload": "templates", "continuation": 0}, "continue = 0: must be at least 1"),
    ],
)
def test_refuses(loaded: LoadedModel, capture: Path, changes: dict[str, Any], message: str) -> None:
    given = changes | ({"capture": capture} if "capture" in changes else {})
    with pytest.raises(InputError, match=message):
        draw_requests(loaded, **given)
