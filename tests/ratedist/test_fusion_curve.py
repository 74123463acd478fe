"""ratedist.fusion_curve: the recursions' results as rows, curves and records."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratedist.curve import RateDistortionCurve
from ratedist.errors import InputError
from ratedist.fusion_curve import (
    CURVE_RECORD_SCHEMA,
    VARIANTS,
    FusionCurve,
    curve_record,
    fusion_curve,
    simulated_rows,
)
from ratedist.rate import bits_per_scalar
from ratedist.similarity import Gaussian, Spherical

THRESHOLDS = np.linspace(0.1, 0.6, 11)


@pytest.mark.parametrize(
    ("dim", "requests", "blocks", "threshold", "variant", "kept", "direct", "final", "tolerance"),
    [
        (64, 64, 32, 0.4, "leader", 1430.9, 1.1362, 1.1362, 0.005),
        (64, 64, 32, 0.4, "tree", 1383.3, 1.1392, 1.2050, 0.005),
        (8, 32, 16, 0.7, "leader", 114.7, 0.4078, 0.4078, 0.03),
        (8, 32, 16, 0.7, "tree", 94.4, 0.4338, 0.6539, 0.03),
    ],
)
def test_simulated_directions_of_the_theory(
    dim: float,
    requests: int,
    blocks: int,
    threshold: float,
    variant: str,
    kept: float,
    direct: float,
    final: float,
    tolerance: float,
) -> None:
    """fusion_curve against kept blocks and errors that were measured on uniform directions."""
    row = fusion_curve(
        Spherical(dim), requests=requests, blocks=blocks, thresholds=[threshold], variant=variant
    ).rows()[0]
    assert row["kept"] == pytest.approx(kept, rel=tolerance)
    assert row["direct_error2"] == pytest.approx(direct, rel=tolerance)
    assert row["absorbed_error2"] == pytest.approx(final, rel=max(tolerance, 0.03))
    assert row["kept_low"] <= kept <= row["kept_high"]
    plain = fusion_curve(
        Spherical(dim),
        requests=requests,
        blocks=blocks,
        thresholds=[threshold],
        variant=variant,
        hard_core=False,
    ).rows()[0]
    if dim == 8:
        assert plain["kept"] > 1.08 * kept


@given(
    mean=st.floats(-0.2, 0.6),
    std=st.floats(0.03, 0.3),
    requests=st.integers(1, 200),
    blocks=st.integers(1, 64),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_curves_of_any_batch(mean: float, std: float, requests: int, blocks: int, variant: str) -> None:
    curve = fusion_curve(
        Gaussian(mean, std), requests=requests, blocks=blocks, thresholds=THRESHOLDS, variant=variant
    )
    assert (curve.kept >= (1 if variant == "components" else blocks)).all()
    assert (curve.kept <= requests * blocks + 1e-9).all()
    assert (np.diff(curve.kept) >= -1e-6 * curve.kept[1:]).all()
    assert (curve.kept_low <= curve.kept_high).all()
    assert (curve.bits_per_scalar <= 16 + 1e-12).all()
    json.dumps(curve.rows(), allow_nan=False)
    if variant == "components":
        return
    assert (curve.mean_error2 >= 0).all()
    hull = curve.rate_distortion().hull()
    if len(hull) > 2:
        slopes = np.diff(hull.distortion) / np.diff(hull.rate)
        assert (np.diff(slopes) >= -1e-9).all()


def test_one_request_absorbs_nothing() -> None:
    for variant in ("leader", "tree"):
        row = fusion_curve(Spherical(8), requests=1, blocks=5, thresholds=[0.2], variant=variant).rows()[0]
        assert (row["kept"], row["compression"], row["mean_error2"]) == (5.0, 1.0, 0.0)
        assert row["absorbed_error2"] is None
        assert row["direct_error2"] is None


def test_ends_of_the_thresholds() -> None:
    """At −1 everything fuses into the first request; at 1 nothing does."""
    for variant in ("leader", "tree"):
        curve = fusion_curve(
            Spherical(16), requests=8, blocks=4, thresholds=[-1.0, 0.99999, 1.0], variant=variant
        )
        np.testing.assert_allclose(curve.kept, [4, 32, 32], rtol=1e-6)


def test_rows_carry_what_is_promised() -> None:
    curve = fusion_curve(
        Spherical(24), requests=32, blocks=24, thresholds=THRESHOLDS, variant="tree", block_scalars=256
    )
    rows = curve.rows()
    names = (
        "threshold",
        "variant",
        "kept",
        "kept_low",
        "kept_high",
        "compression",
        "absorbed_error2",
        "direct_error2",
    )
    assert set(names) <= set(rows[0])
    for i, row in enumerate(rows):
        assert row["threshold"] == pytest.approx(THRESHOLDS[i])
        assert row["compression"] == pytest.approx(32 * 24 / row["kept"])
        assert row["compression_low"] == pytest.approx(32 * 24 / row["kept_high"])
        assert row["absorbed_error2"] >= row["direct_error2"] - 1e-9
        share = row["kept"] / (32 * 24)
        assert row["mean_error2"] == pytest.approx((1 - share) * row["absorbed_error2"])
        assert row["bits_per_scalar"] == pytest.approx(float(bits_per_scalar(share, block_scalars=256)))
    inner = [row["slope"] for row in rows[2:-2]]
    assert all(slope < 0 for slope in inner)


def test_bands_widen_with_confidence() -> None:
    def width(confidence: float) -> float:
        curve = fusion_curve(Spherical(24), requests=64, blocks=32, thresholds=[0.4], confidence=confidence)
        return float(curve.kept_high[0] - curve.kept_low[0])

    assert width(0.5) < width(0.9) < width(0.99)


def test_transitivity_is_a_hard_core_for_any_law() -> None:
    def kept(**options: float) -> float:
        curve = fusion_curve(
            Gaussian(0.3, 0.12), requests=64, blocks=16, thresholds=[0.5], variant="tree", **options
        )
        return float(curve.kept[0])

    assert kept(transitivity=0.3) < 0.97 * kept()
    assert kept(transitivity=0.0) == pytest.approx(kept())


def test_record() -> None:
    curves = [
        fusion_curve(
            Spherical(64), requests=16, blocks=8, thresholds=THRESHOLDS, variant=variant, block_scalars=4096
        )
        for variant in ("leader", "tree")
    ]
    simulated = [[{"simulated_kept": 1.0, "simulated_kept_se": 0.1}] * 11, [{}] * 11]
    record = curve_record(curves, simulated=simulated, layers=32, fused_layers=28, seed=3)
    assert record.schema == CURVE_RECORD_SCHEMA
    assert [row["variant"] for row in record.rows] == ["leader"] * 11 + ["tree"] * 11
    assert record.rows[10]["simulated_kept"] == 1.0
    assert "simulated_kept" not in record.rows[11]
    for row in record.rows:
        # Of 32 layers 28 keep a share; table and scales add 12 bytes to a block of 4·4096.
        share = 28 * (row["kept"] / 128 + 12 / (4 * 4096)) + 4
        assert row["whole_compression"] == pytest.approx(32 / share)
    assert curve_record(curves, layers=32).rows[0]["whole_compression"] > record.rows[0]["whole_compression"]
    assert [entry["kind"] for entry in record.summary] == ["hull", "hull", "bound", "limit", "quantisation"]
    for entry in record.summary:
        assert len(RateDistortionCurve.from_dict(entry["curve"])) > 1
    assert record.provenance["law"] == {"name": "spherical", "dim": 64.0}
    assert record.provenance["seed"] == 3
    record.to_json()
    other = curve_record([fusion_curve(Gaussian(0.3, 0.1), requests=4, blocks=4, thresholds=[0.5])])
    assert [entry["kind"] for entry in other.summary] == ["hull", "quantisation"]


def _agree(curve: FusionCurve, rows: list[dict[str, float]], field: str, slack: float) -> None:
    for predicted, row in zip(getattr(curve, field), rows, strict=True):
        error = row[f"simulated_{field}_se"]
        assert abs(row[f"simulated_{field}"] - predicted) < 4 * error + slack * predicted


@pytest.mark.parametrize(
    ("variant", "law"),
    [
        ("leader", Gaussian(0.3, 0.1)),
        ("tree", Gaussian(0.3, 0.1)),
        ("centroid", Gaussian(0.0, 0.15)),
        ("components", Gaussian(0.0, 0.15)),
        ("leader", Spherical(24)),
        ("tree", Spherical(24)),
    ],
    ids=str,
)
def test_simulated_rows_agree_with_the_curve(variant: str, law: Gaussian | Spherical) -> None:
    """simulated_rows within 4 standard errors and what the closed forms state of their own closure."""
    curve = fusion_curve(law, requests=32, blocks=16, thresholds=[0.45, 0.55, 0.6], variant=variant)
    ticks: list[int] = []
    rows = simulated_rows(curve, 300, 7, lambda: ticks.append(1))
    assert len(ticks) == 3
    _agree(curve, rows, "kept", 0.003)
    _agree(curve, rows, "compression", 0.003)
    for row in rows:
        assert row["simulated_runs"] == 300
        # ln(compression) is −ln(kept) and a constant, so that relative errors agree.
        assert row["simulated_compression"] == pytest.approx(512 / row["simulated_kept"])
        assert row["simulated_compression_se"] / row["simulated_compression"] == pytest.approx(
            row["simulated_kept_se"] / row["simulated_kept"]
        )
        assert 0.75 < row["simulated_coverage"] <= 1
    if curve.hard_core is None and variant != "components":
        _agree(curve, rows, "absorbed_error2", 0.04 if variant == "centroid" else 0.005)
    if curve.hard_core is None and variant in ("leader", "tree"):
        _agree(curve, rows, "direct_error2", 0.003)
    assert rows == simulated_rows(curve, 300, 7)
    assert rows != simulated_rows(curve, 300, 8)


@pytest.mark.parametrize("variant", ["leader", "tree", "centroid"])
def test_simulated_directions_agree_with_the_curve(variant: str) -> None:
    """Real vectors where fusion is dense: kept within 2 %, the final error within 3 % (centroids 6 %)."""
    curve = fusion_curve(Spherical(12), requests=16, blocks=16, thresholds=[0.55, 0.65], variant=variant)
    rows = simulated_rows(curve, 60, 5, method="directions")
    _agree(curve, rows, "kept", 0.02)
    _agree(curve, rows, "absorbed_error2", 0.06 if variant == "centroid" else 0.03)
    if variant != "centroid":
        _agree(curve, rows, "direct_error2", 0.01)


def test_components_have_no_error_and_no_rate_distortion() -> None:
    curve = fusion_curve(
        Gaussian(0.0, 0.15), requests=16, blocks=8, thresholds=[0.4, 0.5], variant="components"
    )
    assert all(row["mean_error2"] is None and row["absorbed_error2"] is None for row in curve.rows())
    with pytest.raises(InputError, match=r"variant = 'components': has no known error"):
        curve.rate_distortion()
    assert [entry["kind"] for entry in curve_record([curve]).summary] == ["quantisation"]


def test_centroids_are_nearer_than_representatives() -> None:
    def curve(variant: str) -> FusionCurve:
        return fusion_curve(Spherical(64), requests=64, blocks=32, thresholds=[0.35, 0.4], variant=variant)

    assert (curve("centroid").mean_error2 < 0.8 * curve("tree").mean_error2).all()


def curve_with(**changes: object) -> object:
    options: dict[str, object] = {"requests": 4, "blocks": 4, "thresholds": [0.4, 0.5], **changes}
    return fusion_curve(Spherical(16), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 0}, r"requests = 0: must be a whole number of at least 1"),
        ({"requests": 2.5}, r"requests = 2\.5: must be a whole number of at least 1"),
        ({"blocks": 0}, r"blocks = 0: must be a whole number of at least 1"),
        ({"thresholds": []}, r"thresholds = 'shape \(0,\)': must be one number or a list"),
        ({"thresholds": [0.5, 0.4]}, r"thresholds = \[0\.5, 0\.4\]: must be sorted from low to high"),
        ({"thresholds": [0.4, 0.4]}, r"thresholds = 0\.4: is given twice"),
        ({"thresholds": [0.4, 1.2]}, r"thresholds = 1\.2: must be finite and lie in \[-1, 1\]"),
        ({"thresholds": [np.nan]}, r"thresholds = nan: must be finite"),
        ({"variant": "forest"}, r"variant = 'forest': must be one of leader, tree, centroid, components"),
        ({"confidence": 0.0}, r"confidence = 0\.0: must be finite and lie in \(0, 1\]"),
        ({"confidence": 1.0}, r"confidence = 1\.0: must be below 1"),
        ({"transitivity": 1.5}, r"transitivity = 1\.5: must be finite and lie in \[0, 1\]"),
        ({"transitivity": 0.2, "hard_core": False}, r"transitivity = 0\.2: belongs to the hard core"),
        (
            {"variant": "components", "transitivity": 0.2},
            r"transitivity = 0\.2: has no part in the recursion",
        ),
        ({"scalar_bits": 0}, r"scalar_bits = 0\.0: must be finite and above 0"),
        ({"block_scalars": 0}, r"block_scalars = 0: must be a whole number of at least 1"),
    ],
)
def test_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        curve_with(**changes)


def test_simulation_refusals() -> None:
    curve = fusion_curve(Spherical(16), requests=4, blocks=4, thresholds=[0.4])
    with pytest.raises(InputError, match=r"runs = 1: must be a whole number of at least 2"):
        simulated_rows(curve, 1, 0)
    with pytest.raises(InputError, match=r"method = 'guess': must be one of process, directions"):
        simulated_rows(curve, 5, 0, method="guess")
    other = fusion_curve(Gaussian(0.0, 0.1), requests=4, blocks=4, thresholds=[0.4])
    with pytest.raises(InputError, match=r"method = 'directions': needs the spherical law .* not Gaussian"):
        simulated_rows(other, 5, 0, method="directions")
    chains = fusion_curve(Spherical(16), requests=4, blocks=4, thresholds=[0.4], variant="components")
    with pytest.raises(InputError, match=r"method = 'directions': does not know components"):
        simulated_rows(chains, 5, 0, method="directions")
    with pytest.raises(InputError, match=r"seed = -1: must be a whole number of at least 0"):
        simulated_rows(curve, 5, -1)


def test_record_refusals() -> None:
    with pytest.raises(InputError, match=r"curves = \[\]: needs at least one curve"):
        curve_record([])
    curve = fusion_curve(Spherical(16), requests=4, blocks=4, thresholds=[0.4])
    with pytest.raises(InputError, match=r"layers = 32: needs block_scalars"):
        curve_record([curve], layers=32)
