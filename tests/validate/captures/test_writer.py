"""Writing captures: interrupted, resumed, repaired, refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ratedist.errors import CaptureError, InputError
from ratedist.validate.captures._batch_file import file_sha256, write_batch_file
from ratedist.validate.captures.manifest import BatchFile, Manifest, token_hash
from ratedist.validate.captures.store import Capture
from ratedist.validate.captures.writer import CaptureWriter, finished_capture

HEADS, DIM = 2, 4
LENGTHS = (5, 18, 9)
Layers = list[tuple[int, Tensor, Tensor]]


@pytest.fixture
def plan() -> Manifest:
    return Manifest(
        model="random",
        weights_hash="",
        dtype="float32",
        layers=(0, 2),
        model_layers=3,
        kv_heads=HEADS,
        query_heads=HEADS,
        head_dim=DIM,
        lengths=LENGTHS,
        domains=(0, 0, 0),
        workload="noise",
        files=tuple(BatchFile(f"b{n}.safetensors", requests) for n, requests in enumerate(((1,), (0, 2)))),
        origin={"tokens": 5},
    )


def tensors(plan: Manifest, batch: int) -> Layers:
    generator = torch.Generator().manual_seed(batch)
    shape = (sum(plan.lengths[request] for request in plan.files[batch].requests), HEADS, DIM)
    return [(layer, *(torch.randn(shape, generator=generator) for _ in range(2))) for layer in plan.layers]


def write(folder: Path, plan: Manifest, **options: Any) -> Capture:
    with CaptureWriter(folder, plan, **options) as writer:
        for batch in writer.pending:
            writer.write(batch, tensors(plan, batch))
        return writer.finish()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- one file


@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int32]),
)
def test_batch_file_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype
) -> None:
    """The independent oracle is the safetensors library, also for tensors that are not contiguous."""
    from safetensors.torch import load_file

    made = {
        f"t{n}": torch.randint(-99, 99, shape).to(dtype).transpose(0, -1) for n, shape in enumerate(shapes)
    }
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    header = {name: (tuple(tensor.shape), dtype) for name, tensor in made.items()}
    size, digest = write_batch_file(path, header, made.values())
    assert (size, digest) == (path.stat().st_size, file_sha256(path))
    read = load_file(path)
    assert set(read) == set(made)
    assert all(torch.equal(read[name], made[name]) for name in made)
    assert [path] == list(path.parent.iterdir())


def test_batch_file_failing_half_way_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Tensor]:
        yield torch.zeros(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_batch_file(tmp_path / "x", dict.fromkeys("ab", ((2,), torch.float32)), broken())
    assert not list(tmp_path.iterdir())


# --- interruption and resumption


@pytest.mark.parametrize("finished", [[], [0], [1], [1, 0]])
def test_resumed_is_byte_identical(tmp_path: Path, plan: Manifest, finished: list[int]) -> None:
    """Whatever was finished when a writer stopped, the result is as if it had never stopped."""
    write(tmp_path / "straight", plan)
    with CaptureWriter(tmp_path / "resumed", plan) as writer:
        for batch in finished:
            writer.write(batch, tensors(plan, batch))
    with CaptureWriter(tmp_path / "resumed", plan) as writer:
        assert writer.pending == sorted({0, 1} - set(finished))
        for batch in writer.pending:
            writer.write(batch, tensors(plan, batch))
        writer.finish()
    assert content(tmp_path / "resumed") == content(tmp_path / "straight")
    assert set(content(tmp_path / "straight")) == {"capture.json", "b0.safetensors", "b1.safetensors"}


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path, plan: Manifest) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for name in (".b0.safetensors.partial", ".capture.partial.json.x1y2", ".capture.json.abc"):
        (folder / name).write_bytes(b"half")
    write(folder, plan)
    assert set(content(folder)) == {"capture.json", "b0.safetensors", "b1.safetensors"}


def test_finished_file_damaged_before_resuming_is_written_again(tmp_path: Path, plan: Manifest) -> None:
    with CaptureWriter(tmp_path / "c", plan) as writer:
        writer.write(0, tensors(plan, 0))
    (tmp_path / "c" / "b0.safetensors").write_bytes(b"rubbish")
    with CaptureWriter(tmp_path / "c", plan) as writer:
        assert writer.pending == [0, 1]


def test_finished_capture_is_left_alone_and_a_damaged_one_repaired(tmp_path: Path, plan: Manifest) -> None:
    folder = tmp_path / "c"
    write(folder, plan)
    before = content(folder)
    assert finished_capture(folder, plan) is not None
    with CaptureWriter(folder, plan) as writer:
        assert writer.pending == []
        writer.finish()
    assert content(folder) == before

    (folder / "b1.safetensors").write_bytes(before["b1.safetensors"][:-1] + b"?")
    assert finished_capture(folder, plan) is None
    with CaptureWriter(folder, plan) as writer:
        assert writer.pending == [1]
        with pytest.raises(CaptureError, match="incomplete: 1 of 2"):
            Capture.open(folder)
        writer.write(1, tensors(plan, 1))
        writer.finish()
    assert content(folder) == before


def test_finished_capture_needs_the_same_plan(tmp_path: Path, plan: Manifest) -> None:
    assert finished_capture(tmp_path / "c", plan) is None
    write(tmp_path / "c", plan)
    assert finished_capture(tmp_path / "c", replace(plan, seed=1)) is None


def test_not_finished_before_all_batches(tmp_path: Path, plan: Manifest) -> None:
    with CaptureWriter(tmp_path / "c", plan) as writer:
        writer.write(1, tensors(plan, 1))
        with pytest.raises(CaptureError, match="1 of 2 batches are not written yet"):
            writer.finish()
    assert not (tmp_path / "c" / "capture.json").exists()


# --- refusals


@pytest.mark.parametrize("whole", [True, False])
def test_another_plan_is_refused_and_forced(tmp_path: Path, plan: Manifest, whole: bool) -> None:
    folder = tmp_path / "c"
    with CaptureWriter(folder, plan) as writer:
        for batch in (0, 1) if whole else (0,):
            writer.write(batch, tensors(plan, batch))
        if whole:
            writer.finish()
    (folder / "notes.txt").write_text("mine")
    before = content(folder)
    other = replace(plan, workload="other", token_hashes=("a" * 64,) * 3)
    with pytest.raises(
        InputError, match=r"other settings \(different: workload: 'noise' → 'other', token_hashes\); choose"
    ):
        CaptureWriter(folder, other)
    assert content(folder) == before
    with CaptureWriter(folder, other, force=True) as writer:
        assert writer.pending == [0, 1]
        names = {path.name for path in folder.iterdir()}
        assert names == {"notes.txt", "capture.partial.json"}, "its own files go, others stay"


def test_folder_with_other_files_is_refused_and_forced(tmp_path: Path, plan: Manifest) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        InputError, match=r"out = .*: is not empty and holds no capture; choose another folder"
    ):
        CaptureWriter(tmp_path, plan)
    write(tmp_path, plan, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_unreadable_manifest_is_refused_and_forced(tmp_path: Path, plan: Manifest) -> None:
    write(tmp_path / "c", plan)
    (tmp_path / "c" / "capture.json").write_text("{")
    with pytest.raises(CaptureError, match="is damaged"):
        CaptureWriter(tmp_path / "c", plan)
    write(tmp_path / "c", plan, force=True)


def test_out_is_a_file(tmp_path: Path, plan: Manifest) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; name a folder"):
        CaptureWriter(tmp_path / "file", plan)
    with pytest.raises(CaptureError, match=r"cannot be made: Not a directory; name another folder"):
        CaptureWriter(tmp_path / "file" / "below", plan)


def test_two_writers_in_one_folder(tmp_path: Path, plan: Manifest) -> None:
    pytest.importorskip("fcntl")
    with (
        CaptureWriter(tmp_path / "c", plan),
        pytest.raises(InputError, match="is being written by another process"),
    ):
        CaptureWriter(tmp_path / "c", plan)
    CaptureWriter(tmp_path / "c", plan).close()


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="no /dev/full to stand for a full disk; run it on Linux"
)
def test_no_space_left(tmp_path: Path, plan: Manifest) -> None:
    """The second batch meets a full device (for real: its temporary file leads to /dev/full)."""
    folder = tmp_path / "c"
    with CaptureWriter(folder, plan) as writer:
        writer.write(0, tensors(plan, 0))
        (folder / ".b1.safetensors.partial").symlink_to("/dev/full")
        with pytest.raises(
            CaptureError, match=r"No space left on device; 1 of 2 batches are finished and kept\. Make room"
        ):
            writer.write(1, tensors(plan, 1))
    with CaptureWriter(folder, plan) as writer:
        assert writer.pending == [1]


@pytest.mark.parametrize(
    ("token", "request_", "block"), [(0, 0, 0), (4, 0, 1), (5, 2, 0), (8, 2, 0), (9, 2, 1), (13, 2, 2)]
)
def test_values_that_are_no_numbers(
    tmp_path: Path, plan: Manifest, token: int, request_: int, block: int
) -> None:
    """Batch 1 holds 5 tokens of request 0, then 9 of request 2; blocks of 4."""
    bad = tensors(plan, 1)
    bad[1][2][token, 1, 3] = float("nan")
    with CaptureWriter(tmp_path / "c", replace(plan, block_size=4)) as writer:
        where = f"'layer 2, request {request_}, block {block}'"
        with pytest.raises(InputError, match=f"v = {where}: holds NaN or infinity"):
            writer.write(1, bad)
        assert writer.pending == [0, 1]
    assert set(content(tmp_path / "c")) == {"capture.partial.json"}


def test_values_too_large_for_float16(tmp_path: Path, plan: Manifest) -> None:
    bad = tensors(plan, 0)
    bad[0][1][17] = 70000.0
    half = replace(plan, dtype="float16")
    with (
        CaptureWriter(tmp_path / "c", half) as writer,
        pytest.raises(InputError, match=r"k = 'layer 0, request 1, block 1': is larger than float16 holds"),
    ):
        writer.write(0, bad)


def test_tensors_that_do_not_fit_the_plan(tmp_path: Path, plan: Manifest) -> None:
    good = tensors(plan, 0)
    with CaptureWriter(tmp_path / "c", plan) as writer:
        with pytest.raises(InputError, match=r"layers = \[2\]: must come in the order of the plan, \[0, 2\]"):
            writer.write(0, good[::-1])
        with pytest.raises(InputError, match=r"layers = \[0\]: must be all of the plan's"):
            writer.write(0, good[:1])
        with pytest.raises(InputError, match=r"k = \(17, 2, 4\): must have shape \(18, 2, 4\) in layer 0"):
            writer.write(0, [(0, good[0][1][:-1], good[0][2])])
        assert writer.pending == [0, 1]


def test_token_ids_are_checked(tmp_path: Path, plan: Manifest) -> None:
    ids = [torch.arange(length) for length in LENGTHS]
    hashed = replace(plan, token_hashes=tuple(map(token_hash, ids)))
    with CaptureWriter(tmp_path / "c", hashed) as writer:
        with pytest.raises(InputError, match=r"tokens = None: must have shape \(14,\)"):
            writer.write(1, tensors(plan, 1))
        with pytest.raises(InputError, match="tokens = 'request 0': must be the ids that the plan's hash"):
            writer.write(1, tensors(plan, 1), torch.cat([ids[0] + 1, ids[2]]))
        writer.write(1, tensors(plan, 1), torch.cat([ids[0], ids[2]]))


def test_plan_that_json_cannot_hold(tmp_path: Path, plan: Manifest) -> None:
    with pytest.raises(InputError, match=r"origin = .*nan.*: must be JSON data"):
        CaptureWriter(tmp_path / "c", replace(plan, origin={"x": float("nan")}))


def test_the_library_writes_the_same_tensors(tmp_path: Path, plan: Manifest) -> None:
    """A batch file that safetensors itself wrote reads the same, whatever the order of its tensors."""
    capture = write(tmp_path / "c", plan)
    path = tmp_path / "c" / "b1.safetensors"
    layers = tensors(plan, 1)
    save_file({f"layers.{i}.{n}": t for i, *kv in layers for n, t in zip("kv", kv, strict=True)}, path)
    expected = layers[1][1]
    layer = capture.layer(2, [0, 2])
    assert torch.equal(layer.k[0, :5], expected[:5])
    assert torch.equal(layer.k[1, :9], expected[5:])
