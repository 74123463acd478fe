"""Reading captures: what ``layer`` returns, and every way in which a capture can be unfit to read."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from ratedist.errors import CaptureError, InputError
from ratedist.kernels.layout import UNUSED
from ratedist.validate.captures._batch_file import write_batch_file
from ratedist.validate.captures.manifest import DTYPES, BatchFile, Manifest, token_hash
from ratedist.validate.captures.store import Capture
from ratedist.validate.captures.writer import CaptureWriter, finished_capture

HEADS, DIM = 2, 3
Data = dict[tuple[int, int, str], Tensor]


def make_plan(lengths: Sequence[int], batches: Sequence[Sequence[int]], **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "model": "random",
        "weights_hash": "",
        "dtype": "float32",
        "layers": (1, 3),
        "model_layers": 5,
        "kv_heads": HEADS,
        "query_heads": 2 * HEADS,
        "head_dim": DIM,
        "lengths": tuple(lengths),
        "domains": tuple(request % 2 for request in range(len(lengths))),
        "workload": "noise",
        "files": tuple(BatchFile(f"part-{n}.safetensors", tuple(batch)) for n, batch in enumerate(batches)),
    }
    return Manifest(**values | changes)


def noise(plan: Manifest) -> Data:
    """K and V by (layer, request, name), in the plan's dtype."""
    generator = torch.Generator().manual_seed(3)
    return {
        (layer, request, name): torch.randn(length, HEADS, DIM, generator=generator).to(DTYPES[plan.dtype])
        for layer in plan.layers
        for request, length in enumerate(plan.lengths)
        for name in "kv"
    }


def batch_of(plan: Manifest, data: Data, batch: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    for layer in plan.layers:
        k, v = (torch.cat([data[layer, r, name] for r in plan.files[batch].requests]) for name in "kv")
        yield layer, k, v


def write(folder: Path, plan: Manifest, data: Data) -> Capture:
    with CaptureWriter(folder, plan) as writer:
        for batch in writer.pending:
            writer.write(batch, batch_of(plan, data, batch))
        return writer.finish()


@pytest.fixture
def written(tmp_path: Path) -> Capture:
    plan = make_plan((20, 7, 33), ((2, 0), (1,)))
    return write(tmp_path / "capture", plan, noise(plan))


@st.composite
def plans(draw: st.DrawFn) -> Manifest:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    order = draw(st.permutations(range(len(lengths))))
    cuts = sorted(draw(st.sets(st.integers(1, len(lengths)))) | {len(lengths)})
    batches = [order[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]
    return make_plan(lengths, batches, dtype=draw(st.sampled_from(list(DTYPES))))


@settings(max_examples=30)
@given(plan=plans(), data=st.data())
def test_layer_gives_back_what_was_written(plan: Manifest, data: st.DataObject) -> None:
    """Bit for bit, in the order asked for, whatever the batches, lengths, dtype and block size."""
    block = data.draw(st.integers(1, 20), label="block_size")
    wanted = data.draw(
        st.lists(st.sampled_from(range(plan.requests)), min_size=1, unique=True), label="requests"
    )
    stored = noise(plan)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "c", plan, stored)
        capture = Capture.open(Path(folder) / "c")
        assert capture.manifest.lengths == plan.lengths
        for index in plan.layers:
            layer = capture.layer(index, wanted, block)
            assert layer.table.lengths.tolist() == [plan.lengths[request] for request in wanted]
            assert layer.table.domains.tolist() == [plan.domains[request] for request in wanted]
            assert layer.k.dtype == DTYPES[plan.dtype]
            seen = []
            for row, request in enumerate(wanted):
                used = int(layer.table.used_blocks[row])
                assert (layer.table.entries[row, used:] == UNUSED).all()
                blocks = layer.table.entries[row, :used].long()
                seen += blocks.tolist()
                for name, pool in (("k", layer.k), ("v", layer.v)):
                    flat = pool[blocks].flatten(0, 1)
                    length = plan.lengths[request]
                    assert torch.equal(flat[:length], stored[index, request, name])
                    assert not flat[length:].any(), "what lies behind the end must be zero"
            assert seen == list(range(layer.k.shape[0])), "every block of the pool is used, in order"


def test_all_requests_and_the_recorded_block_size_by_default(tmp_path: Path) -> None:
    plan = make_plan((20, 7), ((0, 1),), block_size=4)
    layer = write(tmp_path / "c", plan, noise(plan)).layer(3)
    assert layer.table.block_size == 4
    assert layer.table.lengths.tolist() == [20, 7]


def test_files_are_safetensors_without_padding(written: Capture) -> None:
    file = written.manifest.files[0]
    with safe_open(written.folder / file.name, framework="pt") as stored:
        assert sorted(stored.keys()) == ["layers.1.k", "layers.1.v", "layers.3.k", "layers.3.v"]
        assert stored.get_tensor("layers.3.v").shape == (20 + 33, HEADS, DIM)
    data = 4 * (20 + 33) * HEADS * DIM * 4
    assert data < file.size < data + 600
    assert written.manifest.captured_bytes == 4 * (20 + 33 + 7) * HEADS * DIM * 4


def test_only_the_files_asked_for_are_read(written: Capture) -> None:
    (written.folder / written.manifest.files[0].name).unlink()
    assert written.layer(1, [1]).table.lengths.tolist() == [7]
    with pytest.raises(CaptureError, match=r"part-0\.safetensors cannot be read .* run the command"):
        written.layer(1, [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 2}, r"index = 2: is not captured; the layers are \[1, 3\]"),
        ({"index": 1, "requests": []}, r"requests = \[\]: must name at least one request"),
        ({"index": 1, "requests": [3]}, r"requests = 3: must lie in 0 … 2"),
        ({"index": 1, "requests": [-1]}, r"requests = -1: must lie in 0 … 2"),
        ({"index": 1, "requests": [1, 0, 1]}, r"requests = \[1, 0, 1\]: must be different requests"),
        ({"index": 1, "block_size": 0}, r"block_size = 0: must be at least 1"),
    ],
)
def test_bad_arguments_of_layer(written: Capture, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        written.layer(**arguments)


def test_tokens(tmp_path: Path, written: Capture) -> None:
    ids = torch.arange(27, dtype=torch.int32)
    hashes = (token_hash(ids[7:]), token_hash(ids[:7].tolist()))
    plan = make_plan((20, 7), ((1, 0),), token_hashes=hashes)
    with CaptureWriter(tmp_path / "with ids", plan) as writer:
        writer.write(0, batch_of(plan, noise(plan), 0), ids)
        capture = writer.finish()
    assert capture.tokens(0).tolist() == ids[7:].tolist()
    assert capture.tokens(1).tolist() == ids[:7].tolist()
    with pytest.raises(CaptureError, match="without token ids"):
        written.tokens(0)


# --- captures that are unfit


def edit(capture: Capture, **changes: Any) -> None:
    path = capture.folder / "capture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_capture(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            CaptureError, match=r"holds no capture \(capture.json is missing\); make one with"
        ):
            Capture.open(folder)


def test_incomplete(tmp_path: Path) -> None:
    plan = make_plan((5, 6, 7), ((0,), (1,), (2,)))
    with CaptureWriter(tmp_path / "c", plan) as writer:
        writer.write(1, batch_of(plan, noise(plan), 1))
    with pytest.raises(CaptureError, match=r"incomplete: 1 of 3 batches are finished; run the command that"):
        Capture.open(tmp_path / "c")


def test_truncated(written: Capture) -> None:
    path = written.folder / "part-1.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    for verify in (True, False):
        with pytest.raises(
            CaptureError,
            match=rf"part-1.safetensors is truncated \({size - 1} of {size} bytes\); run the command",
        ):
            Capture.open(written.folder, verify=verify)
    path.write_bytes(path.read_bytes() + b"12")
    with pytest.raises(CaptureError, match="is too long"):
        Capture.open(written.folder)


@pytest.mark.parametrize("place", [0, 40, -1])
def test_corrupted(written: Capture, place: int) -> None:
    path = written.folder / "part-0.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=r"part-0.safetensors is corrupted \(its sha256 differs"):
        Capture.open(written.folder)
    Capture.open(written.folder, verify=False)


def test_file_missing(written: Capture) -> None:
    (written.folder / "part-0.safetensors").unlink()
    with pytest.raises(CaptureError, match=r"part-0.safetensors is missing; run the command"):
        Capture.open(written.folder)


def test_other_schema_version(written: Capture) -> None:
    for version in (3, 0, "2", None, [1]):
        edit(written, schema_version=version)
        expected = re.escape(
            f"schema version {version!r}; this version of ratedist reads 1, 2. Capture again"
        )
        with pytest.raises(CaptureError, match=expected):
            Capture.open(written.folder)


def test_captures_of_version_1_are_read_and_belong_to_their_plan(tmp_path: Path) -> None:
    """Version 1 had neither generated tokens nor queries."""
    plan = make_plan((20, 7), ((0, 1),))
    written = write(tmp_path / "c", plan, noise(plan))
    path = written.folder / "capture.json"
    data = json.loads(path.read_text())
    del data["generated"], data["queries"]
    path.write_text(json.dumps(data | {"schema_version": 1}))
    capture = Capture.open(written.folder)
    assert capture.manifest == written.manifest
    assert (capture.manifest.generated, capture.manifest.queries) == ((), 0)
    assert torch.equal(capture.layer(3).k, written.layer(3).k)
    found = finished_capture(written.folder, plan)
    assert found is not None, "the command that made it would use it again"
    del data["seed"]
    path.write_text(json.dumps(data | {"schema_version": 1}))
    with pytest.raises(CaptureError, match=r"damaged \(missing fields: \['seed'\], unknown fields: \[\]\)"):
        Capture.open(written.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generated": (1,)},
            r"generated = \(1,\): must hold, for each of 2 requests, fewer tokens than its",
        ),
        ({"generated": (5, 7)}, r"generated = \(5, 7\): must hold, for each of 2 requests, fewer tokens"),
        ({"generated": (-1, 0)}, r"generated = \(-1, 0\): must hold"),
        ({"queries": 8}, r"queries = 8: must lie in 0 … 7, the shortest request's tokens"),
        ({"queries": -1}, r"queries = -1: must lie in 0 … 7"),
    ],
)
def test_plans_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan((20, 7), ((0, 1),), **changes)
    make_plan((20, 7), ((0, 1),), generated=(19, 6), queries=7)


def test_queries_that_are_not_as_planned(tmp_path: Path) -> None:
    plan = make_plan((20, 7), ((0, 1),), queries=3)
    made, data = list(queries_of(plan, 0)), noise(plan)
    (first, q, scale), second = made
    spoiled = q.clone()
    spoiled[4] = float("nan")  # the second of the last three of request 1
    with CaptureWriter(tmp_path / "c", plan) as writer:
        for given, message in (
            ([second, made[0]], r"queries = \[3\]: must come in the order of the plan, \[1, 3\]"),
            ([made[0]], r"queries = \[1\]: must be all of the plan's, \[1, 3\]"),
            ([(first, q[1:], scale), second], r"q = \(5, 4, 3\): must have shape \(6, 4, 3\) in layer 1"),
            ([(first, spoiled, scale), second], r"q = 'layer 1, request 1, block 0': holds NaN or infinity"),
        ):
            with pytest.raises(InputError, match=message):
                writer.write(0, batch_of(plan, data, 0), queries=given)
        assert writer.pending == [0]


def queries_of(plan: Manifest, batch: int) -> Iterator[tuple[int, Tensor, float]]:
    """Queries that name their layer, request and place."""
    for layer in plan.layers:
        parts = [
            torch.full((plan.queries, plan.query_heads, DIM), 100.0 * layer + request)
            + torch.arange(plan.queries)[:, None, None] / 8
            for request in plan.files[batch].requests
        ]
        yield layer, torch.cat(parts), 0.5 + layer


def test_queries_come_back_by_layer_and_request(tmp_path: Path) -> None:
    plan = make_plan((20, 7, 33), ((2, 0), (1,)), queries=4)
    data = noise(plan)
    with CaptureWriter(tmp_path / "c", plan) as writer:
        for batch in writer.pending:
            writer.write(batch, batch_of(plan, data, batch), queries=queries_of(plan, batch))
        capture = writer.finish()
    for layer in (1, 3):
        found = capture.queries(layer, [2, 1, 0])
        assert found.shape == (3, 4, 2 * HEADS, DIM)
        expected = torch.tensor([2.0, 1, 0])[:, None] + 100 * layer + torch.arange(4) / 8
        assert torch.equal(found, expected[:, :, None, None].expand_as(found))
        assert torch.equal(capture.queries(layer), found.flip(0))
        assert capture.query_scale(layer) == 0.5 + layer
    assert torch.equal(capture.layer(3, [1]).k.flatten(0, 1)[:7], data[3, 1, "k"])
    with pytest.raises(InputError, match="index = 2: is not captured"):
        capture.queries(2)
    with pytest.raises(InputError, match="requests = 3: must lie in 0 … 2"):
        capture.queries(1, [3])


def test_a_capture_without_queries(written: Capture) -> None:
    for call in (written.queries, written.query_scale):
        with pytest.raises(CaptureError, match="was made without queries; capture again with --queries"):
            call(1)


def test_manifest_of_something_else(written: Capture) -> None:
    edit(written, format="holiday pictures")
    with pytest.raises(CaptureError, match="not the manifest of a capture"):
        Capture.open(written.folder)
    (written.folder / "capture.json").write_text("[]")
    with pytest.raises(CaptureError, match="not the manifest of a capture"):
        Capture.open(written.folder)


def test_manifest_damaged(written: Capture) -> None:
    path = written.folder / "capture.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CaptureError, match=r"capture.json is damaged \(.*\); capture again with --force"):
        Capture.open(written.folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CaptureError, match="cannot be read"):
        Capture.open(written.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "dtype = 'int8': must be one of float32, float16, bfloat16"),
        ({"lengths": [20, 7, 0]}, "lengths"),
        ({"lengths": [20, 7]}, "domains"),
        ({"lengths": ["a", 1, 2]}, "invalid literal"),
        ({"files": []}, "must hold each of the requests 0 … 2 exactly once"),
        ({"files": [{"name": "../x", "requests": [0, 1, 2], "size": 1, "sha256": ""}]}, "plain file names"),
        ({"files": [{"name": "x"}]}, "requests"),
        ({"kv_heads": 3}, "query_heads = 4: must be a multiple of kv_heads = 3"),
        ({"head_dim": 0}, "head_dim = 0: must be at least 1"),
        ({"layers": [3, 1]}, "ascending"),
        ({"layers": [1, 5]}, "must lie in 0 … 4"),
        ({"layer_types": ["full_attention"]}, "one type per captured layer"),
        ({"token_hashes": ["a"]}, "must be one for each of 3 requests, or none"),
        ({"surprise": 1}, r"unknown fields: \['surprise'\]"),
    ],
)
def test_manifest_that_contradicts_itself(written: Capture, changes: dict[str, Any], message: str) -> None:
    edit(written, **changes)
    with pytest.raises(CaptureError, match=rf"capture.json is damaged \(.*{message}"):
        Capture.open(written.folder)


def test_not_finite(tmp_path: Path) -> None:
    """A file that another program wrote: the writer itself refuses these values."""
    plan = make_plan((40,), ((0,),), layers=(2,))
    k, v = torch.zeros(40, HEADS, DIM), torch.zeros(40, HEADS, DIM)
    v[37, 1, 2] = float("inf")
    header = {f"layers.2.{name}": ((40, HEADS, DIM), torch.float32) for name in "kv"}
    size, digest = write_batch_file(tmp_path / "part-0.safetensors", header, [k, v])
    whole = replace(plan, files=(replace(plan.files[0], size=size, sha256=digest),))
    (tmp_path / "capture.json").write_text(json.dumps(whole.to_json()))
    capture = Capture.open(tmp_path)
    with pytest.raises(CaptureError, match=r"NaN or infinity in layer 2, request 0, block 2 \(v\)"):
        capture.layer(2)
    with pytest.raises(CaptureError, match=r"request 0, block 9 \(v\)"):
        capture.layer(2, block_size=4)


def test_token_hash_is_of_four_little_endian_bytes() -> None:
    expected = hashlib.sha256(bytes([1, 0, 0, 0, 2, 1, 0, 0])).hexdigest()
    assert token_hash([1, 258]) == expected
    assert token_hash(torch.tensor([1, 258])) == expected
