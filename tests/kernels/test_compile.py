"""Every kernel compiled ahead of time for GPUs that are not there, and what the launchers would launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ratedist.errors import InputError
from ratedist.kernels import compile as compiling
from ratedist.records import read_record

pytest.importorskip("triton")

CLI = Path(sys.executable).parent / "ratedist"


def without_interpreter() -> dict[str, str]:
    """This process interprets; kernels are compiled in one that does not."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.parametrize("target", compiling.TARGETS)
def test_every_kernel_compiles(target: str, tmp_path: Path) -> None:
    """As a user asks for it. The variable is left set: the command takes it off itself."""
    out = tmp_path / "kernels.json"
    command = [CLI, "kernels", "--target", target, "--json", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)["kernels"]
    record = read_record(out, "ratedist/kernels/1")
    assert record.rows == kernels
    (extremes,) = record.summary
    assert (extremes["target"], extremes["kernels"]) == (target, len(kernels))
    for name in ("registers", "spills", "shared_bytes"):
        assert extremes[f"most_{name}"] == max(kernel[name] for kernel in kernels)
    assert extremes["narrowest_load_bytes"] == min(kernel["load_bytes"] for kernel in kernels)
    assert extremes["of_them_without_matrix_instructions"] == 0 < extremes["low_precision_products"]
    # Refused before anything is compiled.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "exists already; choose another path or pass --force" in done.stderr
    shown = {(kernel["name"], kernel["dtype"]) for kernel in kernels}
    floats = {"float32", "float16", "bfloat16"}
    names = ("block_norms", "best_match[keys]", "best_match[distance]", "attention[16x64]")
    names += ("matched_blocks[flat]", "matched_blocks[turned 128]", "group_sums[turned 128]")
    assert shown >= {(name, dtype) for name in (*names, "attention_merge") for dtype in floats}
    assert len(shown) == len(kernels) == len(compiling.specialisations())
    for kernel in kernels:
        label = f"{kernel['name']} {kernel['dtype']}"
        assert kernel["arithmetic_intensity"] >= 0, label
        assert kernel["roofline"]["bound"] in ("memory", "matrix", "vector"), label
        assert kernel["roofline"]["seconds"] > 0, label
        assert kernel["target"] == target
        assert 0 < kernel["registers"] <= (255 if target.startswith("cuda") else 512), label
        assert kernel["spills"] == 0, label
        # Under the limit of every target, so that tiles need not depend on it.
        assert kernel["shared_bytes"] <= kernel["shared_limit"], label
        # Two of AMD's warps are as wide as four of NVIDIA's: a tile of codes is half as wide per thread.
        codes = "_int" in kernel["name"] and target.startswith("hip")
        assert kernel["load_bytes"] >= (8 if codes else 16), label
        low = kernel["dtype"] in ("float16", "bfloat16")
        if kernel["has_product"] and low:
            assert kernel["matrix_instructions"] > 0, label
        if target.startswith("cuda") and not (kernel["has_product"] and low):
            # float32 products are IEEE, for which NVIDIA has no matrix instructions.
            assert kernel["matrix_instructions"] == 0, label
        if kernel["name"].startswith("matched_blocks["):
            assert kernel["loads"] == {"pool": 16, "mean_pool": 16}, label
        if kernel["name"].startswith("attention["):
            assert kernel["loads"] == {"k_pool": 16, "v_pool": 16}, label
        if kernel["name"].startswith("attention_reading["):
            assert kernel["loads"].keys() == {"k_pool", "v_pool", "k_mean_pool", "v_mean_pool"}, label


# Runs every launcher on CPU tensors with the start of a kernel replaced by a note of what Triton's own
# just-in-time compiler would have compiled for those arguments, and holds it against what is declared.
LAUNCHES = """
import dataclasses
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit
from ratedist.kernels import _launch_triton, compile as compiling
from ratedist.kernels.attention import _attention_triton
from ratedist.kernels.fusion import _match_triton, matching, scoring
from ratedist.kernels.attention import paged_attention
from ratedist.kernels.layout import BlockTable, FusedLayer, PagedLayer
from ratedist.kernels.quantised import quantise
from ratedist.kernels.reading import Means, Reading
from ratedist.kernels.rotary import Rotary

# CPU tensors stand for a GPU's, and this process does not interpret.
import ratedist.kernels.attention.operations as attention
attention.choose_backend = lambda *arguments: "triton"
known = compiling.specialisations()
current, seen, binders = None, [], {}
backend = make_backend(GPUTarget("cuda", 90, 32))

def note(self, *args, grid, warmup, **kwargs):
    if self not in binders:
        binders[self] = jit.create_function_from_signature(self.signature, self.params, backend)
    _, specialisation, options = binders[self](*args, **kwargs)
    assert options == current.options, (options, current.options)
    for parameter, (kind, key) in zip(self.params, specialisation, strict=True):
        if kind == "constexpr":
            assert key == current.constexprs[parameter.name], parameter.name
            continue
        assert kind == current.types[parameter.name], (current.name, parameter.name, kind)
        promised = "D" if parameter.name in current.aligned else ""
        assert (key or "") == promised, (current.name, parameter.name, key)
    seen.append(known.index(current))

launch = _launch_triton.Specialisation.launch
def launched(self, grid, **arguments):
    global current
    current = self
    launch(self, grid, **arguments)

triton.JITFunction.run = note
_launch_triton.Specialisation.launch = launched

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for head_dim in (8, 72, 256):
        pool = torch.zeros(5, 16, 2, head_dim, dtype=dtype)
        # Lengths and entries at addresses that are not multiples of 16, and sizes of 1 and 16.
        entries = torch.zeros(7, 2, dtype=torch.int32)[1:]
        lengths = torch.ones(7, dtype=torch.int64)[1:]
        table = BlockTable(entries, lengths, torch.zeros(6, dtype=torch.int64), 16)
        scale = torch.ones(13)[1:].view(6, 2)
        fused = FusedLayer(pool, pool, table, scale, scale)
        means = Means(pool, pool, entries, entries)
        turned = Reading(torch.ones_like(entries), Rotary.from_base(1e4, 8))
        forms = [
            PagedLayer(pool, pool, table),
            fused,
            dataclasses.replace(fused, reading=turned),
            dataclasses.replace(fused, reading=dataclasses.replace(turned, means=means)),
            quantise(fused, 8),
            quantise(fused, 8 if head_dim == 256 else 4),
        ]
        if dtype == torch.float32:
            # The last two, and turned blocks of 256 channels, are refused.
            for layer in forms[-4 if head_dim == 256 else -2:]:
                try:
                    paged_attention(torch.zeros(6, 4, head_dim), layer)
                except compiling.InputError as error:
                    print(error)
            del forms[-4 if head_dim == 256 else -2:]
        for layer in forms:
            for group in (4, 17):
                # Queries at an address that is no multiple of 16.
                q = torch.zeros(2 * 6 * group * head_dim + 1, dtype=dtype)[1:].view(6, 2 * group, -1)
                paged_attention(q[..., :head_dim], layer)
                _attention_triton.choose_splits = lambda *arguments: 2
                paged_attention(q[:2, :, :head_dim], layer, torch.tensor([1, 1, 0, 0, 0, 0]))
        norm = _match_triton.block_norms(pool)
        for count in (1, 16, 33):
            ids = torch.zeros(count + 1, dtype=torch.int64)[1:]
            _match_triton.gather_blocks(pool, ids)
            turns = matching.Turns(Rotary.from_base(1e4, 8), ids)
            centring = matching.Centring(pool, ids)
            for turned in (None, turns):
                _match_triton.matched_blocks(pool, ids, turned, None)
                _match_triton.matched_blocks(pool, ids, turned, centring)
                _match_triton.group_means(pool, ids, turned, ids, 1)
            one = scoring.Pools(scoring.Part(pool, norm), scoring.Part(pool, norm))
            for criterion in scoring.CRITERIA:
                for layers in ([one], [one, one]):
                    scored = scoring.make_scoring(criterion, layers)
                    _match_triton.best_match(scored, ids, ids)
                    if criterion != "distance":
                        _match_triton.lowest_label(scored, ids, ids.int(), ids.int(), 0.5)
missed = [known[i].name for i in range(len(known)) if i not in seen]
assert not missed, missed

unaligned = torch.zeros(5, 4, 1, 5)
try:
    _match_triton.block_norms(unaligned)
except compiling.InputError as error:
    print(error)
"""


def test_what_is_compiled_is_what_would_be_launched() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES],
        capture_output=True,
        text=True,
        check=False,
        env=without_interpreter(),
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert "the compiled kernels read 16 bytes at a time" in done.stdout
    for refused in ("reading", "int8", "int4"):
        assert f"layer = '{refused} in torch.float32 with head_dim" in done.stdout


BROKEN = """
import dataclasses, json, torch
from ratedist.kernels.attention import _attention_triton
from ratedist.kernels.compile import compile_kernel

good = _attention_triton._specialisation(torch.float16, 16, 64, "")
half_aligned = dataclasses.replace(good, aligned=("q", "k_pool", "out", "partial"))
upcast = dataclasses.replace(good, constexprs={**good.constexprs, "UPCAST": True})
print(json.dumps([compile_kernel(broken, "cuda:90").to_dict() for broken in (half_aligned, upcast)]))
"""


def test_the_report_shows_what_is_wrong() -> None:
    """Without promised alignment a pool loses its wide loads; float32 operands lose matrix instructions."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        capture_output=True,
        text=True,
        check=False,
        env=without_interpreter(),
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    half_aligned, upcast = json.loads(done.stdout)
    assert half_aligned["loads"] == {"k_pool": 16, "v_pool": 2}
    assert half_aligned["load_bytes"] == 2
    assert upcast["matrix_instructions"] == 0
    assert upcast["spills"] > 0


def test_tables_of_the_command() -> None:
    done = subprocess.run([CLI, "kernels", "--help"], capture_output=True, text=True, check=True)
    assert "ratedist kernels --target cuda:90 --json" in " ".join(done.stdout.split())
    done = subprocess.run(
        [CLI, "kernels", "--target", "cuda:91"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: target = 'cuda:91': must be one of cuda:80, cuda:90, hip:gfx942"
    assert done.stdout == ""


def test_a_process_that_interprets_cannot_compile() -> None:
    with pytest.raises(InputError, match="TRITON_INTERPRET = '1': this process interprets kernels"):
        next(compiling.compile_kernels("cuda:90"))
    with pytest.raises(InputError, match="target = 'cuda:75': must be one of cuda:80, cuda:90, hip:gfx942"):
        next(compiling.compile_kernels("cuda:75"))


@pytest.mark.parametrize(
    ("instruction", "width"),
    [
        ("ld.global.b32 %r1, [ %rd1 + 0 ];", 4),
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", 16),
        ("ld.global.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd3 + 0 ];", 16),
        ("ld.global.nc.u16 %rs1, [%rd1];", 2),
        ("@%p1 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", 16),
        ("cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 4;", 4),
        ("global_load_dwordx4 v[0:3], v[4:5], off", 16),
        ("buffer_load_dword v0, v1, s[0:3], 0 offen", 4),
        ("global_load_ushort v1, v[2:3], off", 2),
        ("ld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r5 ];", None),
        ("st.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };", None),
        ("s_load_dwordx4 s[0:3], s[4:5], 0x0", None),
        ("global_store_dwordx4 v[0:1], v[2:5], off", None),
    ],
)
def test_width_of_a_load(instruction: str, width: int | None) -> None:
    assert compiling.load_width(f"\t{instruction}") == width


def test_matrix_instructions_are_counted() -> None:
    assembly = """
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
    @%p1 wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%r1}, %rd1, %rd2, %p2, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    // mma.sync in a comment
    v_mfma_f32_16x16x16_f16 v[0:3], v[4:5], v[6:7], v[0:3]
    v_mac_f32 v0, v1, v2
    fma.rn.f32 %r1, %r2, %r3, %r4;
    """
    assert compiling.count_matrix_instructions(assembly) == 3


def test_loads_are_attributed_by_line(tmp_path: Path) -> None:
    """The narrowest load of each pool; inline assembly counts its lines up from where it stands."""
    source = tmp_path / "kernel.py"
    source.write_text("a\nb = tl.load(k_pool + i)\nc = tl.load(table + i)\nd = tl.load(v_pool + i)\n")
    assembly = """
    .loc 1 2 8
    // begin inline asm
    .loc 1 2 8
    mov.u32 %r1, 0;
    .loc 1 3 8
    ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    // end inline asm
    .loc 1 3 8
    ld.global.b32 %r1, [ %rd1 + 0 ];
    .loc 2 2 8
    ld.global.b16 %rs1, [ %rd1 + 0 ];
    .loc 1 4 8
    ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.b64 %rd1, [ %rd1 + 0 ];
    .file 1 "/elsewhere/kernel.py"
    .file 2 "/elsewhere/standard.py"
    """
    assert compiling.pool_loads(assembly, source) == {"k_pool": 16, "v_pool": 8}
    with pytest.raises(InputError, match="TRITON_DISABLE_LINE_INFO = '1': loads are told apart by line"):
        compiling.pool_loads("ld.global.b32 %r1, [ %rd1 + 0 ];", source)
