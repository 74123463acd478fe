"""validate.measure, validate.calibrate and validate.compare on synthetic captures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import BlockTable, PagedLayer
from ratedist.predictors import PairSample, predictor_class
from ratedist.validate.calibrate import pair_sample
from ratedist.validate.compare import (
    SCHEMA,
    THRESHOLDS,
    Plan,
    compare,
    count_exceedances,
    default_layers,
    split_requests,
)
from ratedist.validate.measure import measure, runtime_for
from ratedist.validate.summary import summarise

ROW_FIELDS = [
    *("model", "workload", "layer", "mode", "variant", "criterion", "threshold", "predictor"),
    *("backend", "device", "interpreted", "requests", "blocks", "kept_measured", "kept_predicted"),
    *("compression_measured", "compression_predicted", "k_error_measured", "k_error_predicted"),
    *("v_error_measured", "v_error_predicted", "calibration_exceedances"),
]


def shuffled(layer: PagedLayer, seed: int) -> PagedLayer:
    """The same cache with its physical blocks in another order."""
    order = torch.randperm(layer.k.shape[0], generator=torch.Generator().manual_seed(seed))
    place = torch.argsort(order).int()
    entries = torch.where(layer.table.entries >= 0, place[layer.table.entries.clamp(min=0).long()], -1)
    table = dataclasses.replace(layer.table, entries=entries)
    return PagedLayer(layer.k[order], layer.v[order], table)


def test_sample_is_that_of_the_blocks(make_capture) -> None:
    """pair_sample against PairSample.from_vectors on the blocks read one by one; partial blocks left out."""
    capture = make_capture(lengths=(64, 40, 15, 50, 33))
    layer = shuffled(capture.layer(2), 3)
    sample = pair_sample(layer)
    where = [(r, b) for r, full in enumerate(layer.table.full_blocks.tolist()) for b in range(full)]
    k, v = (
        torch.stack([pool[layer.table.entries[r, b]] for r, b in where]).flatten(1).numpy()
        for pool in (layer.k, layer.v)
    )
    requests, positions = zip(*where, strict=True)
    expected = PairSample.from_vectors(k, v, requests, positions)
    np.testing.assert_allclose(sample.s_k, expected.s_k, atol=1e-5)
    np.testing.assert_allclose(sample.s_v, expected.s_v, atol=1e-5)
    np.testing.assert_allclose(sample.k_norm, expected.k_norm, rtol=1e-5)
    np.testing.assert_array_equal(sample.request, expected.request)
    np.testing.assert_array_equal(sample.position, expected.position)
    np.testing.assert_array_equal(sample.exact, expected.exact)
    assert sample.exact[sample.comparable].any()


@pytest.mark.parametrize("criterion", ["keys", "both"])
def test_exceedances_are_pairs_that_may_share_above_the_threshold(make_capture, criterion: str) -> None:
    sample = pair_sample(make_capture(lengths=(64, 40, 50, 33), domains=(0, 0, 1, 0)).layer(2))
    score, thresholds = sample.scores(criterion), (-1.0, 0.2, 0.6, 0.95, 1.0)
    size = len(sample.request)
    pairs = [
        score[i, j]
        for i in range(size)
        for j in range(i)
        if sample.request[i] != sample.request[j] and sample.domain[i] == sample.domain[j]
    ]
    expected = [sum(s > threshold for s in pairs) for threshold in thresholds]
    assert count_exceedances(sample, thresholds, criterion) == expected
    assert len(set(expected)) > 3
    assert expected[-1] == 0


@pytest.mark.parametrize("variant", ["leader", "tree"])
@pytest.mark.parametrize("scale", ["own-norm", "projection", "raw"])
def test_measured_errors_are_those_of_the_restored_cache(make_capture, variant: str, scale: str) -> None:
    layer = make_capture(lengths=(64, 40, 50, 64)).layer(2)
    (measured,) = measure(layer, [0.7], variant=variant, scale=scale)
    fusion = fuse(layer, threshold=0.7, variant=variant, scale=scale, backend="reference")
    assert measured.kept == fusion.kept < measured.candidates
    assert measured.exact == 3
    total = {"k": 0.0, "v": 0.0}
    for request, full in enumerate(layer.table.full_blocks.tolist()):
        for block in range(full):
            for name in total:
                original = getattr(layer, name)[layer.table.entries[request, block]]
                factor = getattr(fusion.layer, f"{name}_scale")[request, block]
                restored = factor * getattr(layer, name)[fusion.layer.table.entries[request, block]]
                total[name] += float((restored - original).square().sum() / original.square().sum())
    assert measured.k_error == pytest.approx((total["k"] / measured.candidates) ** 0.5, rel=1e-4)
    assert measured.v_error == pytest.approx((total["v"] / measured.candidates) ** 0.5, rel=1e-4)


def test_record_has_every_row_with_every_field(make_capture) -> None:
    captures = [
        make_capture("one"),
        make_capture("two", seed=1, lengths=(70, 64, 50, 48, 64, 64, 49, 80, 64)),
    ]
    names = ("gaussian", "position-marked", "accumulation")
    plan = Plan(variants=("leader", "tree"), criteria=("keys", "both"), predictors=names, seed=4)
    steps: list[tuple[int, int, str]] = []
    record = compare(captures, plan, progress=lambda *step: steps.append(step), command=["a", "command"])
    assert record.schema == SCHEMA
    assert len(record.rows) == 2 * 2 * 2 * 2 * len(THRESHOLDS) * 3
    assert all(set(ROW_FIELDS) <= set(row) for row in record.rows)
    keys = [tuple(row[f] for f in ROW_FIELDS[:8]) for row in record.rows]
    assert len(set(keys)) == len(keys)
    json.loads(record.to_json())
    held_out = {e["predictor"]: e["held_out_error"] for e in record.summary if e["workload"] == "all"}
    assert set(held_out) == set(plan.predictors)
    assert record.summary == summarise(record.rows, held_out)
    assert sum(e.get("chosen", False) for e in record.summary) == 1
    assert record.provenance["command"] == ["a", "command"]
    assert steps == [
        (1, 4, "one, layer 2"),
        (2, 4, "one, layer 3"),
        (3, 4, "two, layer 2"),
        (4, 4, "two, layer 3"),
    ]
    for row in record.rows:
        banded = row["compression_predicted_low"] is not None
        assert banded == (row["predictor"] == "accumulation")
        if banded:
            assert row["compression_predicted_low"] <= row["compression_predicted"] + 1e-9
            assert row["compression_predicted"] <= row["compression_predicted_high"] + 1e-9
        assert row["mode"] == "bff"
        assert row["compression_measured"] == row["blocks"] / row["kept_measured"]
        assert row["compression_predicted"] == pytest.approx(row["blocks"] / row["kept_predicted"])
        assert (row["backend"], row["device"], row["interpreted"]) == ("cpu", "cpu", False)
        assert 0 < row["cache_compression_measured"] < row["compression_measured"] + 1e-9
    assert {row["requests"] for row in record.rows if row["workload"] == "two"} == {5}


def test_measured_side_is_the_fusion_of_the_held_out_requests(make_capture) -> None:
    capture = make_capture()
    record = compare([capture], Plan(layers=(3,), thresholds=(0.7,), seed=9))
    split = split_requests(capture.manifest, 9)
    fusion = fuse(capture.layer(3, split.held_out), threshold=0.7)
    assert {row["kept_measured"] for row in record.rows} == {fusion.kept}
    assert {row["blocks"] for row in record.rows} == {fusion.candidates}
    described = record.provenance["captures"][0]
    assert described["held_out"] == list(split.held_out)
    assert described["calibration"] == list(split.calibration)


def test_predicted_side_and_whole_cache_are_those_of_the_parts(make_capture) -> None:
    """Two domains, ragged lengths and projection: predictions by hand; bytes of the cache by hand."""
    capture = make_capture(lengths=(64, 70, 50, 64, 48, 64, 64, 90), domains=(0, 0, 0, 0, 1, 1, 1, 1))
    plan = Plan(thresholds=(0.72,), scale="projection", predictors=("position-marked",), seed=2)
    record = compare([capture], plan)
    split = split_requests(capture.manifest, 2)
    kept = {"measured": [], "predicted": []}
    for row in record.rows:
        layer = capture.layer(row["layer"], split.held_out)
        predictor = predictor_class("position-marked")(
            pair_sample(capture.layer(row["layer"], split.calibration)), scale="projection"
        )
        full, domains = layer.table.full_blocks.numpy(), layer.table.domains.numpy()
        prediction = predictor.predict(full, 0.72, domains=domains)
        assert row["kept_predicted"] == pytest.approx(prediction.kept[0])
        assert row["kept_predicted"] > predictor.predict(full, 0.72).kept[0]
        assert row["v_error_predicted"] == pytest.approx(prediction.v_error[0])
        for side in kept:
            kept[side].append(row[f"kept_{side}"])
    assert len(set(kept["measured"])) == 2
    lengths = [capture.manifest.lengths[request] for request in split.held_out]
    block = 2 * 16 * 2 * 8 * 4
    full, partial = sum(n // 16 for n in lengths), sum(n % 16 > 0 for n in lengths)
    whole = 6 * (full + partial) * block
    for side, counts in kept.items():
        fused = whole - sum(full - count for count in counts) * block + 2 * full * (4 + 8)
        assert record.rows[0][f"cache_compression_{side}"] == pytest.approx(whole / fused)


def test_prediction_knows_the_calibration_half_only(make_capture) -> None:
    """Held-out requests of another content: measured changes, predicted does not."""
    capture = make_capture()
    split = split_requests(capture.manifest, 0)

    class Altered:
        manifest, folder = capture.manifest, capture.folder

        def layer(self, index: int, requests) -> PagedLayer:
            layer = capture.layer(index, requests)
            if tuple(requests) == split.held_out:
                noise = torch.randn(layer.k.shape, generator=torch.Generator().manual_seed(1))
                return PagedLayer(layer.k + 3 * noise, layer.v, layer.table)
            return layer

    plan = Plan(layers=(2,), thresholds=(0.7,))
    before, after = (compare([c], plan).rows for c in (capture, Altered()))
    assert [r["kept_predicted"] for r in before] == [r["kept_predicted"] for r in after]
    assert before[0]["kept_measured"] != after[0]["kept_measured"]


def test_split_is_seeded_and_halves_every_domain(make_capture) -> None:
    manifest = make_capture(lengths=(64,) * 10 + (8,), domains=(0,) * 6 + (1,) * 4 + (0,)).manifest
    split = split_requests(manifest, 3)
    assert split == split_requests(manifest, 3)
    assert sorted(split.calibration + split.held_out) == list(range(10))
    assert sum(r < 6 for r in split.calibration) == 3
    assert sum(r >= 6 for r in split.calibration) == 2
    assert len({split_requests(manifest, seed) for seed in range(8)}) > 3


def test_default_layers_leave_two_at_each_end(make_capture) -> None:
    capture = make_capture(layers=(0, 1, 2, 3, 4, 5), model_layers=7)
    assert default_layers(capture.manifest) == (2, 3, 4)


@pytest.mark.parametrize("lengths", [(64, 64, 64), (64, 64, 64, 15)])
def test_too_small_a_workload_is_refused(make_capture, lengths: tuple[int, ...]) -> None:
    capture = make_capture(lengths=lengths, shared_tokens=4)
    with pytest.raises(InputError, match="requests = 3: workload 'synthetic' is too small to split"):
        compare([capture])


def test_requests_of_many_domains_are_too_few(make_capture) -> None:
    with pytest.raises(InputError, match=r"requests = 2: .*a domain needs four requests"):
        compare([make_capture(domains=(0, 0, 1, 1, 2, 2, 3, 3))])


def test_captures_that_do_not_fit_each_other_are_refused(make_capture) -> None:
    one = make_capture("one")
    with pytest.raises(InputError, match=r"captures = .*is of model 'other' .*compare one model at a time"):
        compare([one, make_capture("two", model="other")])
    with pytest.raises(InputError, match=r"captures = .*weights 111111111111"):
        compare([one, make_capture("three", weights_hash="1" * 64)])
    with pytest.raises(InputError, match=r"captures = .*is of workload 'one' like"):
        compare([one, one])
    with pytest.raises(InputError, match="workload = 'all': is the name of the summary"):
        compare([make_capture("all")])
    with pytest.raises(InputError, match=r"captures = .*at least one"):
        compare([])


def test_layers_that_are_not_there_are_refused(make_capture) -> None:
    with pytest.raises(
        InputError, match=r"layers = 9: is not in the capture of 'synthetic'; it holds \[1, 2, 3, 4\]"
    ):
        compare([make_capture()], Plan(layers=(2, 9)))
    ends = make_capture("ends", layers=(0, 1, 4, 5))
    with pytest.raises(InputError, match=r"layers = \[0, 1, 4, 5\]: .*name the layers to fuse"):
        compare([ends])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("forest",)}, "variant = 'forest': unknown; choose one of leader, tree"),
        ({"criteria": ("values",)}, "criterion = 'values': unknown; choose one of keys, both"),
        ({"scale": "half"}, "scale = 'half': unknown"),
        (
            {"predictors": ("oracle",)},
            "predictor = 'oracle': unknown; choose one of gaussian, empirical",
        ),
        ({"thresholds": (0.5, 1.5)}, r"threshold = 1.5: must lie in \[-1, 1\]"),
        ({"thresholds": (float("nan"),)}, "threshold = nan"),
        ({"thresholds": ()}, r"thresholds = \(\): must name at least one"),
        ({"layers": (2, 2)}, r"layers = \[2, 2\]: names one twice"),
        ({"seed": -1}, "seed = -1: must not be negative"),
    ],
)
def test_plans_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(**options)


def test_a_layer_without_a_full_block_is_refused() -> None:
    table = BlockTable(torch.zeros(1, 1, dtype=torch.int32), torch.tensor([3]), torch.tensor([0]), 16)
    layer = PagedLayer(torch.ones(1, 16, 1, 4), torch.ones(1, 16, 1, 4), table)
    with pytest.raises(InputError, match=r"layer = 'lengths \[3\]': no request fills a block of 16 tokens"):
        list(measure(layer, [0.5]))


def test_runtime_says_what_will_run() -> None:
    with pytest.raises(
        InputError, match="backend = 'cuda': unknown; choose one of auto, reference, cpu, triton"
    ):
        runtime_for("cuda")
    assert runtime_for("reference").device_name == "cpu"
    if not torch.cuda.is_available():
        assert runtime_for("auto").backend == "cpu"
        assert runtime_for("triton").interpreted


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_backends_measure_the_same(make_capture, backend: str) -> None:
    capture = make_capture(lengths=(48,) * 6)
    plan = Plan(layers=(2,), thresholds=(0.65, 0.8))
    expected = compare([capture], plan).rows
    rows = compare([capture], plan, runtime=runtime_for(backend)).rows
    for row, other in zip(rows, expected, strict=True):
        assert row["backend"] == backend
        assert row["interpreted"] == (backend == "triton" and not torch.cuda.is_available())
        assert row["kept_measured"] == other["kept_measured"]
        assert row["v_error_measured"] == pytest.approx(other["v_error_measured"], rel=1e-4)


def test_processes_of_their_own_give_the_same_record(make_capture) -> None:
    capture = make_capture()
    plan = Plan(thresholds=(0.6, 0.8), layers=(1, 2))
    alone, shared = (compare([capture], plan, command=["test"], jobs=jobs) for jobs in (1, 2))
    assert alone.rows == shared.rows
    assert alone.summary == shared.summary
    with pytest.raises(InputError, match="jobs = 0: must be at least 1"):
        compare([capture], plan, jobs=0)
