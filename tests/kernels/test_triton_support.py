"""Choosing a backend, with and without Triton, a GPU and the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ratedist.errors import InputError
from ratedist.kernels import triton_support

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def run(script: str) -> str:
    """Standard output of a script in a fresh process, in which Triton has not been imported."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_auto_goes_by_device() -> None:
    assert triton_support.choose_backend("auto", CPU) == "cpu"
    assert triton_support.choose_backend("auto", GPU) == "triton"
    for backend in ("cpu", "reference", "triton"):
        assert triton_support.choose_backend(backend, CPU) == backend


def test_unknown_backend() -> None:
    with pytest.raises(InputError, match="backend = 'numpy': must be one of auto, reference, cpu, triton"):
        triton_support.choose_backend("numpy", CPU)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, it is refused; left to choose, the torch path serves and says so once."""
    monkeypatch.setattr(triton_support, "triton_installed", lambda: False)
    triton_support._say_once.cache_clear()
    with pytest.raises(InputError, match="backend = 'triton': Triton is not installed; use 'auto', 'cpu'"):
        triton_support.choose_backend("triton", GPU)
    with pytest.warns(UserWarning, match="the torch path serves on the GPU instead"):
        assert triton_support.choose_backend("auto", GPU) == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert triton_support.choose_backend("auto", GPU) == "cpu"
        assert triton_support.choose_backend("auto", CPU) == "cpu"


def test_compiled_kernels_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "interpreted", lambda: False)
    with pytest.raises(InputError, match="backend = 'triton': compiled kernels need tensors on a GPU"):
        triton_support.choose_backend("triton", CPU)


def test_attention_without_triton() -> None:
    """The module loads, the reference and the torch path run, and Triton is never looked at."""
    script = """
import sys
sys.modules["triton"] = None  # an import of it fails from here on
import torch
from ratedist.kernels.attention import paged_decode_attention
from ratedist.kernels.layout import BlockTable, PagedLayer
pool = torch.ones(1, 4, 1, 8)
entries, domains = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
table = BlockTable(entries, torch.tensor([3]), domains, 4)
for backend in ("auto", "cpu", "reference"):
    out, lse = paged_decode_attention(torch.ones(1, 2, 8), PagedLayer(pool, pool, table), backend=backend)
    print(round(out.sum().item(), 3), end=" ")
try:
    paged_decode_attention(torch.ones(1, 2, 8), PagedLayer(pool, pool, table), backend="triton")
except ValueError as error:
    print(error)
"""
    assert (
        run(script)
        == "16.0 16.0 16.0 backend = 'triton': Triton is not installed; use 'auto', 'cpu' or 'reference'"
    )


@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="a GPU is visible, so nothing is interpreted; hide it with CUDA_VISIBLE_DEVICES=",
)
def test_the_interpreter_is_switched_on_in_time() -> None:
    script = """
from ratedist.kernels.triton_support import interpreted, interpreter_if_no_gpu
before = interpreted()
asked = interpreter_if_no_gpu()
import triton
print(before, asked, interpreted(), interpreter_if_no_gpu())
"""
    assert run(script) == "False True True True"
    # This process was started with it.
    assert triton_support.interpreted()
    assert triton_support.interpreter_if_no_gpu()


@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="a GPU is visible, so nothing is interpreted; hide it with CUDA_VISIBLE_DEVICES=",
)
def test_too_late_for_the_interpreter() -> None:
    script = """
import os, triton
from ratedist.kernels.triton_support import interpreter_if_no_gpu
try:
    interpreter_if_no_gpu()
except ValueError as error:
    print(error)
"""
    assert "without a GPU it needs TRITON_INTERPRET=1 set before Triton is first imported" in run(script)


def test_the_switch_must_not_change() -> None:
    script = """
import os, triton
os.environ["TRITON_INTERPRET"] = "1"
try:
    from ratedist.kernels import _launch_triton
except ValueError as error:
    print(error)
"""
    assert "TRITON_INTERPRET = '1': was changed after Triton was first imported" in run(script)
