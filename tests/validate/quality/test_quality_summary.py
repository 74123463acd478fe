"""The summary of a quality record, on rows whose answers are known."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from ratedist.validate.quality.link import ALL, FORMS, LAWS, evaluate_links, fusion_cells
from ratedist.validate.quality.summary import scheme_rows, summarise_quality

REQUESTS = 8


def row(
    method: str, share: float, kl: float, *, workload: str = "mine", noise: float = 0.0, **fields: Any
) -> dict:
    """A setting that stores ``share`` of 100 bytes per request at a mean KL of ``kl``."""
    rng = np.random.default_rng(crc32(f"{method} {share}".encode()))
    by_request = kl * (1 + noise * rng.uniform(-1, 1, REQUESTS))
    made = {
        "workload": workload,
        "method": method,
        "variant": None,
        "criterion": None,
        "threshold": None,
        "requests": REQUESTS,
        "compression": 1 / share,
        "kl_mean": float(by_request.mean()),
        "by_request": {
            "bytes": [100 * share] * REQUESTS,
            "unfused_bytes": [100.0] * REQUESTS,
            "kl": by_request.tolist(),
        },
    }
    return made | fields


def fusion(share: float, kl: float, threshold: float, *, variant: str = "leader", **fields: Any) -> dict:
    return row("fusion", share, kl, threshold=threshold, variant=variant, criterion="keys", **fields)


def bits() -> list[dict]:
    return [
        row("int8", 0.5, 1e-4),
        row("kivi4", 0.3125, 0.005),
        row("kivi3", 0.25, 0.03),
        row("kivi2", 0.1875, 0.2),
    ]


def entry(summary: list[dict], kind: str, **wanted: Any) -> dict:
    (found,) = [e for e in summary if e["kind"] == kind and all(e[k] == v for k, v in wanted.items())]
    return found


def test_compression_at_the_limit_lies_on_the_line_between_settings() -> None:
    rows = [row("nothing", 1, 0), row("exact", 0.8, 0), fusion(0.4, 0.04, 0.8), *bits()]
    summary = summarise_quality(rows, resamples=20)
    found = entry(summary, "scheme", scheme="fusion")
    assert found["compression"] == pytest.approx(1 / 0.6)  # half way from 0.8 at KL 0 to 0.4 at KL 0.04
    assert found["over_exact"] == pytest.approx(0.8 / 0.6)
    assert found["best"]["method"] == "exact"
    assert found["kl_at_four_bits"] is None
    assert entry(summary, "scheme", scheme="bits")["compression"] == pytest.approx(
        1 / (0.3125 + (0.25 - 0.3125) * 15 / 25)
    )
    assert entry(summary, "scheme", scheme="bits")["kl_at_four_bits"] == pytest.approx(0.005)
    json.dumps(summary, allow_nan=False)


def test_fusion_that_loses_says_so_first() -> None:
    rows = [row("nothing", 1, 0), row("exact", 0.8, 0), fusion(0.4, 0.5, 0.8), fusion(0.3, 0.9, 0.6), *bits()]
    verdict = entry(summarise_quality(rows, resamples=20), "verdict")
    assert not verdict["beats_four_bits"]
    assert verdict["text"].startswith(
        "mine: fusion loses to 4 bits at equal bytes; it adds 1.02× to exact sharing"
    )
    nothing = [row("nothing", 1, 0), row("exact", 0.8, 0), fusion(0.799, 0.5, 0.8), *bits()]
    text = entry(summarise_quality(nothing, resamples=20), "verdict")["text"]
    assert text.startswith("mine: fusion loses: it adds nothing to exact sharing, and 4 bits are better")
    assert "1.25× by exact sharing alone" in text
    assert "fusion does not get so small" in text


def test_fusion_that_wins_says_that() -> None:
    rows = [row("nothing", 1, 0), row("exact", 0.8, 0), fusion(0.2, 0.004, 0.8), *bits()]
    verdict = entry(summarise_quality(rows, resamples=20), "verdict")
    assert verdict["beats_four_bits"]
    assert verdict["text"].startswith("mine: fusion wins: 4.00× beyond exact sharing, and better than 4 bits")


def test_bd_rate_of_schemes_with_a_known_gap() -> None:
    """Every setting of fusion with bits takes 0.8 of the bytes of exact sharing with bits at the same KL."""
    exact = [row(f"exact+kivi{b}", s, kl) for b, s, kl in ((4, 0.3, 0.005), (3, 0.2, 0.03), (2, 0.15, 0.2))]
    fused = [
        fusion(0.8 * r["by_request"]["bytes"][0] / 100, r["kl_mean"], 0.8)
        | {"method": r["method"].replace("exact", "fusion")}
        for r in exact
    ]
    rows = [row("exact", 0.9, 0), *exact, *fused, fusion(0.5, 0.4, 0.8), *bits()]
    summary = summarise_quality(rows, resamples=20)
    found = entry(summary, "bd-rate", test="fusion+bits", anchor="exact+bits")
    assert found["percent"] == pytest.approx(-20, abs=0.5)
    assert found["percent_low"] <= found["percent"] + 1e-9 <= found["percent_high"] + 2e-9
    undefined = entry(summary, "bd-rate", test="fusion", anchor="exact")
    assert undefined["percent"] is None
    assert "anchor = 'exact': has 0 usable points" in undefined["reason"]
    without = summarise_quality([r for r in rows if not r["method"].startswith("fusion+")], resamples=5)
    assert not [e for e in without if "fusion+bits" in (e.get("scheme"), e.get("test"))]
    assert "With bits" not in entry(without, "verdict")["text"]
    assert (
        "With bits, fusion changes the bytes of exact sharing with bits by -20"
        in entry(summary, "verdict")["text"]
    )


def test_what_fusion_adds_where_both_are_coded_in_four_bits() -> None:
    exact = row("exact+kivi4", 0.4, 0.004)
    fused = fusion(0.2, 0.036, 0.8) | {"method": "fusion+kivi4"}
    rows = [row("nothing", 1, 0), row("exact", 0.8, 0), fusion(0.5, 0.4, 0.8), exact, fused, *bits()]
    found = entry(summarise_quality(rows, resamples=20), "verdict")
    assert found["over_exact_with_four_bits"] == pytest.approx(0.4 / 0.3)  # half way in KL, so in bytes
    assert found["over_exact_with_four_bits_low"] == pytest.approx(0.4 / 0.3)
    assert "With 4 bits on both it is 1.33× of exact sharing (1.33 to 1.33)" in found["text"]
    without = entry(summarise_quality([r for r in rows if r is not fused], resamples=5), "verdict")
    assert without["over_exact_with_four_bits"] is None
    assert "With 4 bits on both" not in without["text"]
    beyond = [
        r | {"by_request": r["by_request"] | {"kl": [1.0] * REQUESTS}} if r is exact else r for r in rows
    ]
    assert entry(summarise_quality(beyond, resamples=5), "verdict")["over_exact_with_four_bits"] is None


def test_intervals_come_from_the_spread_over_requests() -> None:
    def widths(noise: float) -> float:
        rows = [row("nothing", 1, 0), row("exact", 0.8, 0), fusion(0.4, 0.04, 0.8, noise=noise), *bits()]
        found = entry(summarise_quality(rows, resamples=100), "scheme", scheme="fusion")
        return found["compression_high"] - found["compression_low"]

    assert widths(0.0) == pytest.approx(0, abs=1e-9)
    assert 0.001 < widths(0.3) < widths(0.9)


def test_pooled_and_single_settings_stand_beside_each_other() -> None:
    rows = [
        row("exact", 0.9, 0),
        fusion(0.5, 0.02, 0.8),
        fusion(0.4, 0.02, 0.8, variant="tree"),
        *bits(),
    ]
    summary = summarise_quality(rows, resamples=5)
    by_variant = {
        e["variant"]: e["compression"] for e in summary if e["kind"] == "scheme" and e["scheme"] == "fusion"
    }
    assert by_variant == pytest.approx({None: 2.5, "leader": 2.0, "tree": 2.5})
    assert [r["method"] for r in scheme_rows(rows, "fusion", "leader", "keys")] == ["exact", "fusion"]


def test_without_rivals_there_is_no_verdict() -> None:
    summary = summarise_quality([row("exact", 0.9, 0), fusion(0.5, 0.02, 0.8)], resamples=5)
    assert not [e for e in summary if e["kind"] == "verdict"]
    assert entry(summary, "scheme", scheme="fusion")["kl_of_four_bits"] is None
    assert summarise_quality([]) == []


def linked(workload: str, *, slope: float = 1.5, factor: float = 1.0, spread: float = 0.0) -> list[dict]:
    """Settings whose requests follow KL = factor·attention^slope; K and V errors say nothing."""
    rng = np.random.default_rng(len(workload))
    made = []
    for threshold in np.linspace(0.4, 0.95, 12):
        level = (1 - threshold) * np.exp(spread * rng.standard_normal(REQUESTS))
        random = rng.uniform(0.1, 1, (2, REQUESTS))
        held = fusion(0.5, 0.1, float(threshold), workload=workload)
        held["by_request"] |= {
            "kl": (0.5 * factor * level**slope).tolist(),
            "attention_error": level.tolist(),
            "k_error": random[0].tolist(),
            "v_error": random[1].tolist(),
        }
        made.append(held)
    return made


def test_law_in_the_error_that_matters_is_chosen_and_holds() -> None:
    rows = linked("first") + linked("second")
    entries = evaluate_links(rows)
    (chosen,) = [e for e in entries if e["protocol"] == "requests" and e["workload"] == ALL and e["chosen"]]
    assert "attention" in chosen["errors"]
    for protocol in ("requests", "workloads", "itself"):
        for law in ("own", "pooled"):
            about = {"protocol": protocol, "workload": ALL, "law": law}
            found = entry(entries, "link", errors=["attention"], **about)
            assert found["within"] == 1
            assert found["median_abs_log_ratio"] < 1e-3
            assert entry(entries, "link", errors=["v"], **about)["within"] < 0.8
    json.dumps(entries, allow_nan=False)


def test_law_of_another_workload_misses_by_its_factor() -> None:
    entries = evaluate_links(linked("first") + linked("second", factor=3.0))
    for law in ("own", "pooled"):
        about = {"law": law, "workload": "second", "errors": ["attention"]}
        found = entry(entries, "link", protocol="workloads", **about)
        assert found["within"] == 0
        assert found["bias"] == pytest.approx(-np.log(3), rel=1e-3)
        assert entry(entries, "link", protocol="requests", **about)["within"] == 1


def test_pooling_helps_where_requests_differ_and_workloads_do_not() -> None:
    """Every request suffers by a factor of its own at every setting; few cells per workload are in range."""
    rows = []
    for name in ("x" * length for length in range(1, 13)):
        rng = np.random.default_rng(len(name))
        excess = np.exp(0.8 * rng.standard_normal(REQUESTS))
        for made in linked(name, slope=2.4)[4:8]:
            held = made["by_request"]
            held["kl"] = (np.array(held["kl"]) * excess).tolist()
            rows.append(made)
    entries = evaluate_links(rows, splits=10)
    about = {"protocol": "requests", "workload": ALL, "errors": ["attention"]}
    own, pooled = (entry(entries, "link", law=law, **about) for law in ("own", "pooled"))
    floor = entry(entries, "link", protocol="floor", workload=ALL)
    assert pooled["within"] > max(own["within"], floor["within"]) + 0.05
    itself = about | {"protocol": "itself"}
    assert entry(entries, "link", law="own", **itself)["within"] == 1
    assert entry(entries, "link", law="pooled", **itself)["within"] > pooled["within"]
    assert pooled["chosen"]
    assert pooled["cells"] == own["cells"] == floor["cells"]


def test_floor_is_the_other_half_of_the_requests() -> None:
    entries = evaluate_links(linked("first"))
    assert entry(entries, "link", protocol="floor", workload="first")["within"] == 1
    noisy = evaluate_links(linked("first", spread=1.0))
    assert entry(noisy, "link", protocol="floor", workload="first")["within"] < 0.8


def test_what_cannot_be_judged_says_why() -> None:
    entries = evaluate_links(linked("first")[:1])
    found = entry(entries, "link", protocol="requests", workload="first", errors=["v"], law="own")
    assert "usable cells" in found["reason"]
    alone = entry(entries, "link", protocol="workloads", workload="first", errors=["v"], law="own")
    assert "too few requests or workloads" in alone["reason"]
    assert len([e for e in entries if e["workload"] == ALL]) == 1 + 3 * len(LAWS)
    assert len(LAWS) == len(FORMS) + 3


def test_a_cell_without_a_prediction_counts_as_missed() -> None:
    """One setting in range: no law of its own can be fitted to it, and none of another workload's either."""
    lonely = [row for row in linked("lonely") if row["threshold"] < 0.42][:1]
    entries = evaluate_links(linked("first") + lonely)
    about = {"protocol": "requests", "errors": ["attention"]}
    found = entry(entries, "link", law="own", workload="lonely", **about)
    assert found["cells"] > 0
    assert found["within"] == 0
    assert found["median_abs_log_ratio"] is None
    assert entry(entries, "link", law="pooled", workload="lonely", **about)["within"] == 1
    assert entry(entries, "link", law="own", workload=ALL, **about)["within"] < 1


def test_cells_are_means_over_the_requests_asked_for() -> None:
    rows = linked("first", spread=1.0)
    cells = fusion_cells([*rows, row("kivi4", 0.3, 0.01)]).of([1, 3])
    held = rows[4]["by_request"]
    assert cells.mean_kl[4] == pytest.approx((held["kl"][1] + held["kl"][3]) / 2)
    v = np.sqrt((held["v_error"][1] ** 2 + held["v_error"][3] ** 2) / 2)
    assert cells.rms(["v"])["v"][4] == pytest.approx(v)
    assert cells.kl.shape == (12, 2)
