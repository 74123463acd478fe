"""Whether Triton can serve here, and how: nothing in this module imports it at start-up.

Triton decides once, when it is first imported, whether kernels are compiled for a GPU or interpreted on
the CPU (``TRITON_INTERPRET=1``). Everything that depends on that decision asks here.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import warnings

import torch

from ratedist.errors import InputError

__all__ = ["choose_backend", "interpreted", "interpreter_if_no_gpu", "triton_installed"]

_SWITCH = "TRITON_INTERPRET"


def triton_installed() -> bool:
    """Whether Triton can be found; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run (or, before Triton's first import, would run) in its interpreter."""
    if "triton" in sys.modules and triton_installed():
        from ratedist.kernels._launch_triton import INTERPRETED

        return INTERPRETED
    return os.environ.get(_SWITCH, "0").lower() in ("1", "true", "on", "y", "yes")


def interpreter_if_no_gpu() -> bool:
    """Make the Triton kernels usable without a GPU, where that is still possible.

    Sets ``TRITON_INTERPRET=1`` if torch sees no GPU and Triton is not imported yet. Call it before
    anything imports Triton (a transformers model does).

    Returns:
        Whether kernels run interpreted from here on.

    Raises:
        InputError: Triton was already imported for compiling and there is no GPU to compile for.
    """
    if torch.cuda.is_available() or interpreted():
        return interpreted()
    if "triton" in sys.modules:
        raise InputError(
            "backend",
            "triton",
            f"without a GPU it needs {_SWITCH}=1 set before Triton is first imported; set it in the "
            "environment, or choose backend 'cpu' or 'reference'",
        )
    os.environ[_SWITCH] = "1"
    return True


def choose_backend(
    backend: str,
    device: torch.device,
    known: tuple[str, ...] = ("auto", "reference", "cpu", "triton"),
) -> str:
    """The implementation to use for tensors on ``device``; "auto" is resolved, the others are checked.

    "auto" takes Triton for tensors on a GPU and the vectorised torch path ("cpu", which runs on any
    device) elsewhere, or where Triton is not installed, which it says once.

    Raises:
        InputError: an unknown backend, or "triton" where Triton cannot run on ``device``.
    """
    if backend not in known:
        raise InputError("backend", backend, f"must be one of {', '.join(known)}")
    on_gpu = device.type == "cuda"
    if backend == "auto":
        if on_gpu and not triton_installed():
            _say_once("Triton is not installed: the torch path serves on the GPU instead")
        return "triton" if on_gpu and triton_installed() else "cpu"
    if backend == "triton":
        if not triton_installed():
            raise InputError("backend", backend, "Triton is not installed; use 'auto', 'cpu' or 'reference'")
        if not on_gpu and not interpreted():
            raise InputError(
                "backend",
                backend,
                f"compiled kernels need tensors on a GPU, these are on {device}; move them, set {_SWITCH}=1 "
                "before Triton is first imported, or use 'cpu' or 'reference'",
            )
    return backend


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
