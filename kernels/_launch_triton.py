"""What the Triton kernels' launchers and ahead-of-time compilation share: the specialisations.

A `Specialisation` fixes everything that makes one compiled kernel differ from another: the types of the
runtime arguments, which pointers are promised to be aligned, the constexprs and the launch options. A
launcher picks one and starts its kernel through `Specialisation.launch`, which refuses arguments that do
not fit; `ratedist.kernels.compile` compiles the very same objects for a GPU that need not be there.

Triton would also specialise on what the arguments happen to be: integers of 1 or multiples of 16, pointers
that happen to be aligned. `kernel` switches that off for all but the pointers to pools, whose alignment
the launchers check, and the types of integers are annotated. That a pool's rows and strides are whole
vectors is carried by their unit: they are passed in units of ``UNIT`` elements and multiplied in the
kernel, which tells the compiler as much, whatever the number is.

Interpreted, a kernel differs in its constexprs: tiles as large as the data, as time goes by operations
there; ``UNIT`` 1 where a pool is not aligned; and ``UPCAST`` for bfloat16, whose arithmetic the interpreter
does on bit patterns. With ``UPCAST`` operands become float32 right after they are loaded; without it they
enter products as they are, which is what puts them on matrix instructions. The product of two float16 or
bfloat16 numbers is exact in float32, so both forms sum the same terms. Interpreted results are stored as
float32 and rounded by torch, because the interpreter cuts float32 off to bfloat16.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ratedist.errors import InputError

__all__ = [
    "DTYPES",
    "INTERPRETED",
    "POOL_ALIGNMENT",
    "UNIT",
    "Specialisation",
    "kernel",
    "pool_unit",
    "power_of_two",
]

INTERPRETED: bool = not isinstance(tl.sum, triton.JITFunction)
"""Whether kernels run in Triton's interpreter; decided when Triton was first imported."""


def kernel(*aligned: str) -> Callable[[Callable[..., None]], Any]:
    """``triton.jit`` that specialises on the alignment of the named pointers and on nothing else."""

    def decorate(function: Callable[..., None]) -> Any:
        others = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in aligned and "constexpr" not in str(parameter.annotation)
        ]
        return triton.jit(do_not_specialize=others)(function)

    return decorate


@triton.jit
def _probe() -> None:
    pass


if isinstance(_probe, triton.JITFunction) == INTERPRETED:
    # Triton's own functions and the kernels here would be of two kinds, which fails at the first call.
    raise InputError(
        "TRITON_INTERPRET",
        os.environ.get("TRITON_INTERPRET", ""),
        "was changed after Triton was first imported; set it before the process starts",
    )

DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
"""Pool dtypes and what Triton calls them."""

POOL_ALIGNMENT = 16
"""Bytes that a compiled kernel loads from a pool at once."""

UNIT = 8
"""Elements in which strides and extents of an aligned pool are counted: 16 bytes of the smallest dtype."""

_POINTEES = {
    **DTYPES,
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
_INTEGER_RANGE = {"i32": 2**31, "i64": 2**63}


@dataclass(frozen=True)
class Specialisation:
    """One compiled form of one kernel.

    Attributes:
        kernel: the jitted function.
        name: what is shown to people, with the parameters that tell its specialisations apart.
        dtype: dtype of the data that it reads in bulk.
        types: Triton type of every runtime argument, in order; the types that are annotated in the kernel
            included.
        aligned: pointers promised to be multiples of 16 bytes: the pools that are read in bulk.
        constexprs: value of every constexpr parameter, and None for arguments that a form does without.
        has_product: whether it multiplies matrices, so that low precision belongs on matrix instructions.
        num_warps, num_stages: launch options.
    """

    kernel: Any
    name: str
    dtype: torch.dtype
    types: Mapping[str, str]
    aligned: tuple[str, ...]
    constexprs: Mapping[str, int | bool | None]
    has_product: bool
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int | bool]:
        """Options of the compiler."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # Multiply-adds round once. Said outright, as the default differs between versions.
            "enable_fp_fusion": True,
        }

    def with_constexprs(self, **changes: int | bool) -> Specialisation:
        """The same with other constexprs, for the interpreter alone."""
        assert INTERPRETED, "a specialisation that ahead-of-time compilation does not know"
        assert changes.keys() <= self.constexprs.keys(), changes
        return replace(self, constexprs={**self.constexprs, **changes})

    def launch(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Run the kernel; asserts that the arguments are the ones this specialisation was made for."""
        assert arguments.keys() == self.types.keys(), (
            f"{self.name}: {sorted(arguments.keys() ^ self.types.keys())}"
        )
        for argument, value in arguments.items():
            kind = self.types[argument]
            if kind.startswith("*"):
                assert isinstance(value, Tensor), f"{self.name}: {argument} must be a tensor"
                assert _POINTEES[value.dtype] == kind[1:], f"{self.name}: {argument} is {value.dtype}"
            elif kind in _INTEGER_RANGE:
                assert isinstance(value, int), f"{self.name}: {argument} is {type(value)}"
                assert abs(value) < _INTEGER_RANGE[kind], f"{self.name}: {argument} = {value}"
        if not INTERPRETED:
            for argument in self.aligned:
                assert arguments[argument].data_ptr() % POOL_ALIGNMENT == 0, f"{self.name}: {argument}"
        if 0 in grid:
            return
        device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
        # Triton launches on the current GPU, which need not be the one that holds the tensors.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[grid](**arguments, **self.constexprs, **self.options)


def pool_unit(argument: str, pool: Tensor, *extents: int) -> int:
    """Elements in which to count the strides and extents of ``pool``: ``UNIT``, or 1 in the interpreter.

    Args:
        argument: what the user calls the pool, for the message.
        pool: the tensor that the kernel reads.
        extents: strides and row lengths, in elements, that must be whole units.

    Raises:
        InputError: a compiled kernel cannot read the pool with 16-byte loads. (The interpreter can read
            any pool; it takes element for element there.)
    """
    aligned = pool.data_ptr() % POOL_ALIGNMENT == 0
    if aligned and all(extent % UNIT == 0 for extent in extents):
        return UNIT
    if not INTERPRETED:
        raise InputError(
            argument,
            f"{tuple(pool.shape)} with strides {pool.stride()}",
            f"the compiled kernels read {POOL_ALIGNMENT} bytes at a time: head_dim (for fusion the scalars "
            f"per block) and strides must be multiples of {UNIT} and the data aligned to {POOL_ALIGNMENT} "
            "bytes; use backend 'cpu', which runs on any device",
        )
    return 1


def power_of_two(number: int, lowest: int, highest: int) -> int:
    """The lowest power of two that holds ``number``, within two given powers of two."""
    return max(lowest, min(highest, 1 << max(0, number - 1).bit_length()))
