"""Ahead-of-time compilation of every kernel for GPUs that need not be there, and what came out of it.

Everything that a launcher can pick is a `Specialisation` (``ratedist.kernels._launch_triton``); the same
objects are compiled here. What is reported is read off the results: registers and stack from the binary
that would be loaded, matrix instructions and the width of loads from its assembly.

A process whose Triton interprets kernels (``TRITON_INTERPRET=1``) cannot compile any.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratedist.errors import InputError
from ratedist.kernels.roofline import Roofline, estimate
from ratedist.kernels.triton_support import interpreted, triton_installed

if TYPE_CHECKING:
    from ratedist.kernels._launch_triton import Specialisation

__all__ = ["TARGETS", "KernelReport", "Target", "compile_kernel", "compile_kernels", "specialisations"]


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        backend: Triton's backend, "cuda" or "hip".
        arch: compute capability times ten, or the name of the AMD architecture.
        warp_size: threads per warp.
        shared_limit: bytes of shared memory that one program can have (CUDA Programming Guide, technical
            specifications per compute capability; AMD CDNA 3 instruction set architecture, local data share).
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int


TARGETS = {
    "cuda:80": Target("cuda", 80, 32, 163 * 1024),
    "cuda:90": Target("cuda", 90, 32, 227 * 1024),
    "hip:gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}
"""By the names that the command line takes: A100, H100 and MI300."""


@dataclass(frozen=True)
class KernelReport:
    """What a kernel became.

    Attributes:
        name: kernel, with the parameters that tell its specialisations apart.
        dtype: of the data that it reads in bulk.
        target: one of ``TARGETS``.
        registers: per thread (on AMD the vector registers).
        spills: bytes per thread of stack, which these kernels only have where registers did not suffice.
        shared_bytes: shared memory per program.
        shared_limit: what the target has for one program.
        load_bytes: narrowest load from a pool of keys or values (per thread and instruction).
        loads: the same per pool, by the name of the kernel's argument.
        matrix_instructions: in the program's text; a loop's count once.
        has_product: whether the kernel multiplies matrices.
        arithmetic_intensity: useful operations per byte of the nominal problem that ``roofline`` names.
        roofline: what that problem can at best take, an estimate from published peaks.
    """

    name: str
    dtype: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    shared_limit: int
    load_bytes: int
    loads: dict[str, int]
    matrix_instructions: int
    has_product: bool
    arithmetic_intensity: float
    roofline: Roofline

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def specialisations() -> tuple[Specialisation, ...]:
    """Everything that the launchers can pick.

    Raises:
        InputError: Triton is not installed.
    """
    if not triton_installed():
        raise InputError("triton", None, "is not installed; install ratedist[kernels] on Linux")
    from ratedist.kernels.attention import _attention_triton
    from ratedist.kernels.fusion import _blocks_triton, _match_triton, _space_triton

    return (
        *_blocks_triton.SPECIALISATIONS,
        *_space_triton.SPECIALISATIONS,
        *_match_triton.SPECIALISATIONS,
        *_attention_triton.SPECIALISATIONS,
    )


def compile_kernels(target: str) -> Iterator[KernelReport]:
    """Compile every specialisation of every kernel for ``target``, one by one.

    Args:
        target: one of ``TARGETS``.

    Raises:
        InputError: an unknown target, Triton is absent, or this process interprets kernels.
    """
    for specialisation in specialisations():
        yield compile_kernel(specialisation, target)


def compile_kernel(specialisation: Specialisation, target: str) -> KernelReport:
    """Compile one specialisation; arguments and errors as ``compile_kernels``."""
    if target not in TARGETS:
        raise InputError("target", target, f"must be one of {', '.join(TARGETS)}")
    if interpreted():
        raise InputError(
            "TRITON_INTERPRET", "1", "this process interprets kernels; compile in one started without it"
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    gpu = TARGETS[target]
    kernel = specialisation.kernel
    signature = {
        name: "constexpr" if name in specialisation.constexprs else specialisation.types[name]
        for name in kernel.arg_names
    }
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in specialisation.aligned}
    compiled = triton.compile(
        ASTSource(kernel, signature, dict(specialisation.constexprs), aligned),
        target=GPUTarget(gpu.backend, gpu.arch, gpu.warp_size),
        options=specialisation.options,
    )
    assembly = compiled.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]
    if gpu.backend == "cuda":
        registers, spills = _cuda_resources(compiled.asm["cubin"])
    else:
        registers, spills = _amd_resources(assembly)
    loads = pool_loads(assembly, Path(inspect.getfile(kernel.fn)))
    arithmetic_intensity, roofline = estimate(specialisation, target)
    return KernelReport(
        name=specialisation.name,
        dtype=str(specialisation.dtype).removeprefix("torch."),
        target=target,
        registers=registers,
        spills=spills,
        shared_bytes=compiled.metadata.shared,
        shared_limit=gpu.shared_limit,
        load_bytes=min(loads.values()),
        loads=loads,
        matrix_instructions=count_matrix_instructions(assembly),
        has_product=specialisation.has_product,
        arithmetic_intensity=arithmetic_intensity,
        roofline=roofline,
    )


_MATRIX = re.compile(r"^\s*(?:@!?%\w+\s+)?(?:mma\.sync|wgmma\.mma_async|v_s?mfmac?_)", re.MULTILINE)


def count_matrix_instructions(assembly: str) -> int:
    """Matrix instructions in PTX (mma, wgmma) or AMD (mfma) assembly."""
    return len(_MATRIX.findall(assembly))


_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]+)"')
_LOCATION = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
_POOL_LOAD = re.compile(r"tl\.load\(\s*(\w*pool)\b")
_PTX_LOAD = re.compile(r"\bld\.global(?:\.\w+|::\w+)*?(?:\.v(\d))?\.[a-z](\d+)\s")
_PTX_ASYNC = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^\[]*\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)")
_AMD_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(dword|[us]?short|[us]byte)(?:x(\d))?(?:_\w+)?\s")
_AMD_WIDTH = {"dword": 4, "ushort": 2, "sshort": 2, "short": 2, "ubyte": 1, "sbyte": 1}


def pool_loads(assembly: str, source: Path) -> dict[str, int]:
    """Bytes of the narrowest load from each pool.

    An instruction belongs to the source line that the compiler's line information names last before
    it; a line loads from a pool where it reads ``tl.load(… pool``.

    Args:
        assembly: PTX or AMD assembly with line information.
        source: the file that the kernel stands in.

    Raises:
        InputError: nothing is found, as the compiler was told to leave line information out.
    """
    pools = {
        number: match.group(1)
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := _POOL_LOAD.search(line))
    }
    files: set[str] = {
        match.group(1)
        for line in assembly.splitlines()
        if (match := _FILE.match(line)) and Path(match.group(2)).name == source.name
    }
    widths: dict[str, int] = {}
    pool: str | None = None
    inline = False
    for line in assembly.splitlines():
        if line.lstrip().startswith(("// begin inline asm", "// end inline asm")):
            inline = "begin" in line
        elif location := _LOCATION.match(line):
            # Within inline assembly LLVM counts up from its own line; the first one says where it stands.
            if inline:
                continue
            pool = pools.get(int(location.group(2))) if location.group(1) in files else None
        elif pool is not None and (width := load_width(line)) is not None:
            widths[pool] = min(width, widths.get(pool, width))
    if not widths:
        raise InputError(
            "TRITON_DISABLE_LINE_INFO",
            "1",
            "loads are told apart by line information; unset it and clear Triton's cache",
        )
    return widths


def load_width(instruction: str) -> int | None:
    """Bytes per thread that a global load reads; None for any other instruction."""
    if match := _PTX_LOAD.search(instruction):
        return int(match.group(1) or 1) * int(match.group(2)) // 8
    if match := _PTX_ASYNC.search(instruction):
        return int(match.group(1), 0)
    if match := _AMD_LOAD.search(instruction):
        return _AMD_WIDTH[match.group(1)] * int(match.group(2) or 1)
    return None


def _cuda_resources(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        shown = subprocess.run(
            [_cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    assert match, shown
    return int(match.group(1)), int(match.group(2))


def _cuobjdump() -> str:
    """The tool that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        raise InputError("triton", triton.__version__, "comes without cuobjdump; install a wheel from PyPI")
    return str(tool)


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory per thread, from the kernel's metadata."""
    found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly))
    return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])
