"""Nominal problems and the estimate over them, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from rich.console import Console

from ratedist.cli.kernels import table_of
from ratedist.errors import InputError
from ratedist.kernels import compile as compiling
from ratedist.kernels.roofline import PEAKS, estimate, nominal_problem

pytest.importorskip("triton")

SPECIALISATIONS = {(s.name, s.dtype): s for s in compiling.specialisations()}
HALF = torch.float16


def test_every_kernel_has_a_problem() -> None:
    assert PEAKS.keys() == compiling.TARGETS.keys()
    for specialisation in SPECIALISATIONS.values():
        problem = nominal_problem(specialisation)
        assert problem.bytes > 0
        assert problem.products + problem.others >= problem.operations
        assert (problem.products > 0) == specialisation.has_product, specialisation.name
        for target in PEAKS:
            intensity, roofline = estimate(specialisation, target)
            assert intensity == pytest.approx(problem.operations / problem.bytes)
            assert 0 <= roofline.share <= 1
            assert roofline.seconds > 0
    stranger = dataclasses.replace(next(iter(SPECIALISATIONS.values())), name="stranger[1]")
    with pytest.raises(InputError, match=r"kernel = 'stranger\[1\]': has no nominal problem"):
        nominal_problem(stranger)


def test_decoding_by_hand() -> None:
    """64 requests of 4096 tokens, 8 KV heads of 128 in 2 bytes, 4 query heads each; a tile has 16 rows."""
    problem = nominal_problem(SPECIALISATIONS["attention[16x128]", HALF])
    tokens = 64 * 4096
    assert problem.operations == 4 * 128 * tokens * 32
    assert problem.products == 4 * problem.operations, "16 rows for 4 heads"
    assert problem.bytes == tokens * 8 * 128 * 2 * 2 + tokens // 16 * 12 + 64 * 32 * (2 * 128 * 2 + 4)
    assert problem.others == 6 * tokens * 8 * 16
    assert problem.operations / problem.bytes == pytest.approx(4, rel=0.01), "two per byte and query head"
    coded = nominal_problem(SPECIALISATIONS["attention_int4[16x128]", HALF])
    codes = tokens * 8 * 128 + 4 * 8 * (tokens // 16 * 128 + tokens)
    assert coded.bytes == codes + tokens // 16 * (24 + 8 * 128) + 64 * 32 * (2 * 128 * 2 + 4)
    assert coded.products == 2 * problem.products, "what rounding takes is multiplied too"
    assert coded.operations == problem.operations
    assert coded.others - problem.others == 2 * 6 * tokens * 8 * 128


def test_prefill_by_hand() -> None:
    """8 requests of 4096 tokens, of which the last 512 are queries: 2048 rows fill tiles of 64."""
    problem = nominal_problem(SPECIALISATIONS["attention[64x64]", HALF])
    pairs = 8 * sum(range(4096 - 512 + 1, 4096 + 1))
    assert problem.operations == problem.products == 4 * 64 * pairs * 32
    assert problem.others == 6 * pairs * 32


def test_matching_by_hand() -> None:
    keys = nominal_problem(SPECIALISATIONS["best_match[keys]", HALF])
    both = nominal_problem(SPECIALISATIONS["best_match[both]", HALF])
    assert keys.products == 2 * 1024 * 8192 * 3072
    assert both.products == 2 * keys.products
    assert keys.bytes == 9216 * (3072 * 2 + 8) + 8 * 1024


def test_transformed_blocks_by_hand() -> None:
    """8192 blocks of 3072 in 2 bytes become float32; one mean and one row of the tables per 256 positions."""
    flat, turned = (
        nominal_problem(SPECIALISATIONS[f"matched_blocks[{form}]", HALF]) for form in ("flat", "turned 128")
    )
    assert flat.bytes == 8192 * (3072 * (2 + 4) + 16) + 256 * 3072 * 2
    assert turned.bytes - flat.bytes == 8192 * 4 + 2 * 256 * 128 * 4
    assert (flat.operations, turned.operations) == (8192 * 3072, 4 * 8192 * 3072)
    sums = nominal_problem(SPECIALISATIONS["group_sums[flat]", HALF])
    assert sums.bytes == 8192 * (3072 * 2 + 8) + 256 * 3072 * 8
    for problem in (flat, turned, sums):
        assert problem.products == 0
    _, roofline = estimate(SPECIALISATIONS["matched_blocks[turned 128]", HALF], "cuda:90")
    assert roofline.bound == "memory"


def test_seconds_are_of_the_busiest_unit() -> None:
    """``estimate`` at the peaks of each target; float32 products are the vector units' work."""
    decode = SPECIALISATIONS["attention[16x128]", HALF]
    problem = nominal_problem(decode)
    _, roofline = estimate(decode, "cuda:90")
    assert (roofline.gpu, roofline.bound) == ("H100 SXM", "memory")
    assert roofline.seconds == problem.bytes / 3.35e12
    assert roofline.share == pytest.approx(problem.products / 989.4e12 / roofline.seconds)
    match = SPECIALISATIONS["best_match[keys]", HALF]
    _, roofline = estimate(match, "cuda:80")
    assert (roofline.bound, roofline.share) == ("matrix", 1.0)
    assert roofline.seconds == nominal_problem(match).products / 312e12
    single = SPECIALISATIONS["best_match[keys]", torch.float32]
    _, roofline = estimate(single, "cuda:80")
    assert (roofline.bound, roofline.share) == ("vector", 1.0)
    assert roofline.seconds == pytest.approx(2 * 1024 * 8192 * (3072 + 1.5) / 19.5e12)
    _, roofline = estimate(SPECIALISATIONS["gather_blocks", torch.int16], "hip:gfx942")
    assert (roofline.bound, roofline.share) == ("memory", 0.0)


def test_the_table_fits_in_110_columns() -> None:
    reports = []
    for specialisation in SPECIALISATIONS.values():
        intensity, roofline = estimate(specialisation, "hip:gfx942")
        reports.append(
            compiling.KernelReport(
                name=specialisation.name,
                dtype=str(specialisation.dtype).removeprefix("torch."),
                target="hip:gfx942",
                registers=512,
                spills=4096,
                shared_bytes=163840,
                shared_limit=65536,
                load_bytes=16,
                loads={"pool": 16},
                matrix_instructions=1000,
                has_product=specialisation.has_product,
                arithmetic_intensity=intensity,
                roofline=roofline,
            )
        )
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(table_of("hip:gfx942 (shared memory: 65536 bytes)", reports))
    shown = console.export_text()
    assert "estimated for MI300X" in shown
    for report in reports:
        line = next(line for line in shown.splitlines() if f" {report.name} " in f" {line} ")
        assert len(line.split(report.name)[1].split()) == 9
        assert report.roofline.bound in shown
    assert "…" not in shown
    row = next(line.split() for line in shown.splitlines() if line.split()[:2] == ["gather_blocks", "int16"])
    assert row[2:] == ["512", "4096", "163840", "16", "1000", "0.0", "memory", "19.0"]
