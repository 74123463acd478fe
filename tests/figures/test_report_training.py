"""The section of a small model's training, from a record made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from ratedist.figures.report.sections import read_section


def test_it_says_first_what_the_model_is_not(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "train_bits": None, "held_out_bits": 11.5, "seconds": 0.0},
        {"step": 9, "train_bits": 9.9, "held_out_bits": 8.25, "seconds": 7.5},
    ]
    result = {"architecture": "qwen2", "tokens": 12345, "held_out_bits_first": 11.5, "held_out_bits": 8.25}
    model = {"parameters": 4235456, "layers": 8, "differs": "biases"}
    path = tmp_path / "train.json"
    path.write_text(
        json.dumps(
            {
                "schema": "ratedist/training/1",
                "provenance": {"model": model, "command": ["ratedist", "train"]},
                "rows": rows,
                "summary": [{**result, "unigram_bits": 9.24}],
            }
        ),
        encoding="utf-8",
    )
    section = read_section(path)
    assert section.answer == [
        "No language model of use: 12,345 tokens from random weights brought it to 8.25 bits per held-out "
        "token, from 11.50; the frequencies of tokens alone give 9.24.",
        "4.2 million parameters, 8 layers; biases.",
    ]
    (curve,) = section.tables
    assert curve.rows == ((0, None, 11.5, 0.0), (9, 9.9, 8.25, 7.5))
    assert section.sources[0].command == "ratedist train"
