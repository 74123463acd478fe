"""The report: what it says of records, in HTML and Markdown, and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ratedist.cli.app import app
from ratedist.errors import InputError, RatedistError
from ratedist.figures.report.build import build_report, first_screen, render_html, render_markdown
from ratedist.figures.report.content import Picture, Section, Source, Table, cell_text
from ratedist.figures.report.sections import read_section

PROVENANCE = {"command": ["ratedist", "x"], "created": "2026-01-01", "versions": {"ratedist": "0.1.0"}}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c636060f8cf"
    "c0000000030001e2a9d5e30000000049454e44ae426082"
)


def write(path: Path, schema: str, rows: list[dict[str, Any]], summary: list[dict[str, Any]]) -> Path:
    data = {"schema": schema, "provenance": PROVENANCE, "rows": rows, "summary": summary}
    path.write_text(json.dumps(data))
    return path


def validation_rows(workload: str, errors: dict[float, float]) -> list[dict[str, Any]]:
    """Two layers and two predictors; the lower the threshold, the smaller the cache."""
    return [
        {
            "model": "m",
            "workload": workload,
            "layer": layer,
            "mode": "bff",
            "variant": "leader",
            "criterion": "keys",
            "threshold": threshold,
            "predictor": predictor,
            "requests": 8,
            "blocks": 64,
            "compression_measured": 2.0 / threshold,
            "compression_predicted": 2.1 / threshold,
            "k_error_measured": error / 2,
            "k_error_predicted": error / 2,
            "v_error_measured": error,
            "v_error_predicted": error,
            "cache_compression_measured": 1.5 / threshold,
            "cache_compression_predicted": 1.5 / threshold,
        }
        for predictor in ("gaussian", "position-marked")
        for threshold, error in errors.items()
        for layer in (2, 3)
    ]


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    rows = validation_rows("lossy", {0.6: 0.5, 0.9: 0.2}) + validation_rows("good", {0.6: 0.3, 0.9: 0.05})
    summary = [
        {
            "workload": workload,
            "predictor": predictor,
            "median_abs_log_ratio": error,
            "p90_abs_log_ratio": 2 * error,
            "rows": 8,
        }
        for workload in ("lossy", "good", "all")
        for predictor, error in (("gaussian", 0.5), ("position-marked", 0.05))
    ]
    return write(tmp_path / "validation.json", "ratedist/validation/1", rows, summary)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    rows = [
        {"name": f"case {n}", "seconds": n / 7, "floor_seconds": 0.1, "ratio": n / 0.7, "torch_ratio": None}
        for n in (3, 11, 2, 1, 5, 4, 9, 8, 10, 7)
    ]
    return write(tmp_path / "bench.json", "ratedist/bench/1", rows, [])


def test_bad_news_comes_first(validation: Path) -> None:
    """Nothing may be saved of the lossy workload at 10 % of error; the other takes threshold 0.9, not 0.6."""
    answer = read_section(validation).answer
    assert answer[0].startswith("lossy: fusion, exact sharing included, saves nothing")
    assert "good: fusion, exact sharing included, makes the cache 1.67 times smaller" in answer[1]
    assert "threshold 0.9" in answer[1]
    assert "position-marked, is off by a factor of 1.05 in the median and of 1.11" in answer[2]


def test_a_page_has_everything_and_loads_nothing(validation: Path, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert build_report([bench, validation], out) == [out]
    page = out.read_text()
    assert page.index("Predicted beside measured</h2>") < page.index("Speed beside its floor</h2>")
    assert "At worst 15.71 times the floor" in page
    assert "ratedist x" in page
    assert page.count("data:image/png;base64,") >= 3
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(InputError, match="exists already"):
        build_report([bench], out)
    build_report([bench], out, force=True)
    assert "Predicted beside measured" not in out.read_text()


def test_markdown_says_the_same(validation: Path, bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    written = build_report([validation, bench], out)
    text = out.read_text()
    for path in written[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"({path.parent.name}/{path.name})" in text
    for section in (read_section(validation), read_section(bench)):
        for sentence in section.answer:
            assert sentence in text
    assert "| case 11 | 1.57 | 0.100 | 15.7 |" in text
    with pytest.raises(InputError, match="exists already"):
        build_report([bench], out)


def test_the_first_screen_has_headlines_then_a_sentence_of_each_other_section() -> None:
    source = [Source("r.json", "cmd", "now")]
    asked = Section("asked", ["long one", "long two"], source, headline=["short one", "short two"])
    other, last = Section("other", ["first", "second"], source), Section("last", ["third"], source)
    assert first_screen([other, asked, last]) == ["short one", "short two", "other: first", "last: third"]
    assert first_screen([other, last]) == ["first", "second", "last: third"]


def test_a_page_of_one_section_says_its_answer_once() -> None:
    source = [Source("r.json", "cmd", "now")]
    one, other = Section("one", ["said of one"], source), Section("other", ["said of other"], source)
    for render in (render_html, render_markdown):
        assert render([one]).count("said of one") == 1
        assert "one" in render([one]).replace("said of one", "")  # its heading stays
        both = render([one, other])
        assert both.count("said of other") == 2
    assert "<nav" not in render_html([one])
    assert "<nav" in render_html([one, other])


def test_tables_for_looking_things_up_are_folded() -> None:
    tables = [Table("shown", ("a",), ((1,),)), Table("folded", ("b",), ((2,), (3,)), detail=True)]
    page = render_html([Section("t", [], [Source("r.json", "", "now")], tables)])
    assert "<h3>shown</h3>" in page
    assert "<summary>folded, 2 rows</summary>" in page
    assert page.count("<details>") == page.count("</details>") == 1


def test_text_is_escaped_in_html_and_left_alone_in_markdown() -> None:
    table = Table("a <b>", ("x|y", "z"), (("<script>alert(1)</script>", 1), ("p|q", None)))
    picture = Picture('say "hi"', PIXEL, "p", "see <i>")
    section = Section("t & u", ["1 < 2"], [Source("r.json", "cmd", "now")], [table], [picture])
    page = render_html([section])
    assert "<script>alert" not in page
    assert "1 &lt; 2" in page
    assert "t &amp; u" in page
    assert 'alt="say &#34;hi&#34;"' in page
    assert "see &lt;i&gt;" in page
    text = render_markdown([section])
    assert "p\\|q" in text
    assert "| x\\|y | z |" in text
    assert "see <i>" in text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.50"),
        (123.4, "123"),
        (9.996, "10.0"),
        (1e-5, "1.00e-05"),
        (2.5e7, "2.50e+07"),
        (-0.5, "-0.500"),
        ("a", "a"),
    ],
)
def test_cells(cell: Any, text: str) -> None:
    assert cell_text(cell) == text


def test_other_kinds(tmp_path: Path) -> None:
    serve = write(
        tmp_path / "serve.json",
        "ratedist/serve/1",
        [
            {
                "workload": "w",
                "requests": 4,
                "pool_share": share,
                "mode": mode,
                "tokens_per_second": 5.0,
                "tokens_per_second_predicted": 6.0,
                "mean_running": 2.0,
                "time_to_first_token_mean": 1.0,
                "time_between_tokens_mean": None,
                "preemptions": 0,
                "same_tokens": 1.0,
            }
            for share in (None, 0.5, 1.0)
            for mode in ("prefix sharing", "prefix sharing and fusion")
        ],
        [
            {"workload": "w", "pool_share": 0.5, "gain": 1.4, "gain_predicted": 1.5},
            {"workload": "w", "pool_share": 1.0, "gain": 0.9, "gain_predicted": 1.0},
        ],
    )
    answer = read_section(serve).answer
    assert "fusion loses, 0.90 times" in answer[0]
    assert "fusion gains, 1.40 times" in answer[1]
    plan = tmp_path / "plan.json"
    setting = {"sharing": "fusion", "criterion": "keys", "threshold": 0.8, "bits": 0}
    setting |= {"variant": "leader", "scale": "own-norm"}
    predicted = {"compression": 1.7, "kl": 0.019, "kl_low": 0.01, "kl_high": 0.03, "uniform": None}
    plan.write_text(
        json.dumps(
            {
                "schema": "ratedist/plan/1",
                "model": "m",
                "goal": {"max_kl": 0.02},
                "predicted": predicted,
                "settings": {"2": setting},
                "provenance": PROVENANCE,
            }
        )
    )
    section = read_section(plan)
    assert "1.70 times smaller at a divergence of 0.0190 nats" in section.answer[0]
    assert section.tables[0].rows == ((2, "fusion", "leader", "keys", "own-norm", "bff", 0.8, 16),)


def test_kernels_that_fall_short_are_counted(tmp_path: Path) -> None:
    row = {"name": "k", "dtype": "float16", "target": "cuda:90", "registers": 9, "spills": 0}
    row |= {"shared_bytes": 5, "shared_limit": 10, "load_bytes": 16, "arithmetic_intensity": 1.0}
    rows = [
        row | {"matrix_instructions": 4, "has_product": True},
        row | {"matrix_instructions": 0, "has_product": True, "spills": 8},
        row | {"matrix_instructions": 0, "has_product": False, "shared_bytes": 11},
        row | {"matrix_instructions": 0, "has_product": True, "dtype": "float32"},
    ]
    section = read_section(write(tmp_path / "k.json", "ratedist/kernels/1", rows, [{"target": "cuda:90"}]))
    assert section.answer == [
        "Compiled and never run: no number here was measured on a GPU.",
        "cuda:90: of 4 kernels 1 spill, 1 want more shared memory than there is; of 2 with a product in 16 "
        "bits 1 have no matrix instructions.",
    ]


def test_plans_that_were_checked(tmp_path: Path) -> None:
    plan = {"kl_predicted": 0.01, "kl_low": 0.0, "kl_high": 0.03, "kl_measured": 0.02}
    plan |= {"compression_predicted": 1.5, "compression_measured": 1.4, "saving_measured": 0.3}
    row = {"workload": "w", "seed": 0, "max_kl": 0.02, "tolerance": 1.5, "plan": plan}
    row |= {"hindsight": {"saving": 0.25}, "bd_rate": {"percent": -3.0}}
    summary = [
        {"kind": "words", "text": "1 of 1 kept"},
        {"kind": "goal", "name": "saving", "met": True},
        {"kind": "drift", "to": "v"},
    ]
    section = read_section(write(tmp_path / "p.json", "ratedist/plan-check/1", [row], summary))
    assert section.answer == ["1 of 1 kept"]
    shown = {table.title: table for table in section.tables}
    assert shown["Goals that were set beforehand"].rows == (("saving", True),)
    assert shown["Summary: drift"].detail
    (cells,) = shown["Every plan beside the best single threshold in hindsight"].rows
    assert cells == ("w", 0, 0.01, 0.02, 1.5, 1.4, 0.3, 0.25, -3.0)
    assert section.pictures[0].data.startswith(b"\x89PNG")


def test_transfer_says_its_words(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", "ratedist/transfer/1", [], [{"kind": "threshold", "cells": 3}])
    data = json.loads(path.read_text())
    data["provenance"] = {**data["provenance"], "words": ["Nothing transfers."]}
    path.write_text(json.dumps(data))
    section = read_section(path)
    assert section.answer == ["Nothing transfers."]
    assert section.tables[0].rows == ((3,),)


def test_refuses(tmp_path: Path, bench: Path) -> None:
    with pytest.raises(InputError, match="name at least one"):
        build_report([], tmp_path / "r.html")
    with pytest.raises(InputError, match=r"must end in .html or .md"):
        build_report([bench], tmp_path / "r.pdf")
    with pytest.raises(InputError, match="no such file"):
        build_report([tmp_path / "no.json"], tmp_path / "r.html")
    bad = tmp_path / "bad.json"
    for text, message in (
        ("{", "is not a result record"),
        ('{"schema": "x/1"}', "has schema 'x/1'; reports know ratedist/quality/1"),
        ("[]", "has schema None"),
        ('{"schema": "ratedist/plan/1"}', "is damaged: KeyError 'predicted'"),
    ):
        bad.write_text(text)
        with pytest.raises(RatedistError, match=message):
            build_report([bench, bad], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(bench), "--out", str(out), "--title", "Mine"])
    assert result.exit_code == 0
    assert "<h1>Mine</h1>" in out.read_text()


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium or chromedriver on PATH; install Debian's chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def test_controls_work_in_a_browser(browser: Any, validation: Path, bench: Path, tmp_path: Path) -> None:
    """No message on the console; sorting by number both ways, what does not exist last; filtering."""
    out = tmp_path / "report.html"
    build_report([validation, bench], out)
    browser.get(out.as_uri())
    assert browser.get_log("browser") == []
    table = browser.find_elements("css selector", "table")[-1]

    def column(number: int) -> list[str]:
        cells = table.find_elements("css selector", f"tbody tr:not([hidden]) td:nth-child({number})")
        return [cell.text for cell in cells]

    ratio = table.find_elements("css selector", "th button")[3]
    ratio.click()
    assert column(1)[:3] == ["case 1", "case 2", "case 3"]
    assert ratio.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    ratio.click()
    assert column(1)[:3] == ["case 11", "case 10", "case 9"]
    field = browser.find_elements("css selector", ".filter")[-1]
    field.send_keys("case 1")
    assert column(1) == ["case 11", "case 10", "case 1"]
    widths = [
        image.size["width"]
        for image in browser.find_elements("css selector", "figure img")
        if image.is_displayed()
    ]
    assert widths
    assert min(widths) > 300
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1100
    assert browser.get_log("browser") == []
