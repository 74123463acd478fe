"""Running the real fusion on captured caches, and measuring what it saved and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import BACKENDS, fuse
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.restore import block_errors
from ratedist.kernels.triton_support import interpreted, interpreter_if_no_gpu

__all__ = ["Measurement", "Runtime", "measure", "on_device", "runtime_for"]

LayerT = TypeVar("LayerT", PagedLayer, FusedLayer)


@dataclass(frozen=True)
class Runtime:
    """Where and with which implementation fusion runs.

    Attributes:
        backend: ``"reference"``, ``"cpu"`` or ``"triton"``.
        device: torch device that the layers are moved to.
        device_name: what a record calls it.
        interpreted: whether Triton kernels run in its interpreter.
    """

    backend: str
    device: torch.device
    device_name: str
    interpreted: bool


@dataclass(frozen=True)
class Measurement:
    """What fusing one layer at one threshold gave.

    Errors are root mean squares over **all** candidate blocks, sqrt(sum of e² / candidates), with
    e = ‖restored − original‖ / ‖original‖ of a block recomputed from the restored cache: the same quantity as
    in ``ratedist.predictors.Prediction``.

    Attributes:
        threshold: fused where the score exceeds it.
        candidates: full blocks.
        kept: candidates that still have their own physical block.
        exact: candidates absorbed as byte-equal.
        k_error: relative error of keys.
        v_error: relative error of values.
    """

    threshold: float
    candidates: int
    kept: int
    exact: int
    k_error: float
    v_error: float

    @property
    def compression(self) -> float:
        """Candidates per kept candidate."""
        return self.candidates / self.kept


def runtime_for(backend: str) -> Runtime:
    """Choose the device for a backend; ``"triton"`` without a GPU runs in the interpreter.

    ``"auto"`` is Triton on a GPU where there is one, else the CPU path. Call it before anything imports
    Triton (a transformers model does), or the interpreter cannot be switched on any more.

    Raises InputError for an unknown backend, or where Triton was imported for compiling and there is no GPU.
    """
    if backend not in BACKENDS:
        raise InputError("backend", backend, f"unknown; choose one of {', '.join(BACKENDS)}")
    gpu = torch.cuda.is_available()
    if backend == "auto":
        backend = "triton" if gpu else "cpu"
    if backend != "triton":
        return Runtime(backend, torch.device("cpu"), "cpu", False)
    if interpreter_if_no_gpu() or not gpu or interpreted():
        return Runtime(backend, torch.device("cpu"), "cpu", True)
    return Runtime(backend, torch.device("cuda"), torch.cuda.get_device_name(), False)


def measure(
    layer: PagedLayer,
    thresholds: Sequence[float],
    *,
    variant: str = "leader",
    criterion: str = "keys",
    scale: str = "own-norm",
    runtime: Runtime | None = None,
    layer_name: str | int | None = None,
) -> Iterator[Measurement]:
    """Fuse ``layer`` at every threshold with the real kernels; one measurement each, in the order given.

    Args:
        layer: paged keys and values with at least one full block.
        thresholds: each within [-1, 1].
        variant, criterion, scale: as in ``ratedist.kernels.fusion.fuse.fuse``.
        runtime: from ``runtime_for``; the CPU path by default.
        layer_name: the layer's index, for messages.

    Raises InputError for what ``fuse`` refuses, and for a layer without a full block.
    """
    where = runtime_for("cpu") if runtime is None else runtime
    if int(layer.table.full_blocks.sum()) == 0:
        raise InputError(
            "layer",
            f"lengths {layer.table.lengths.tolist()}",
            f"no request fills a block of {layer.table.block_size} tokens; give longer requests",
        )
    placed = on_device(layer, where.device)
    for threshold in thresholds:
        fusion = fuse(
            placed,
            threshold=float(threshold),
            variant=variant,
            criterion=criterion,
            scale=scale,
            backend=where.backend,
            layer_name=layer_name,
        )
        errors = [
            float((squared.double().sum() / fusion.candidates).sqrt())
            for squared in block_errors(placed, fusion.layer)
        ]
        yield Measurement(
            threshold=float(threshold),
            candidates=fusion.candidates,
            kept=fusion.kept,
            exact=fusion.exact,
            k_error=errors[0],
            v_error=errors[1],
        )


def on_device(layer: LayerT, device: torch.device) -> LayerT:
    """The same layer with all of its tensors on ``device``."""
    if layer.k.device == device:
        return layer
    table = layer.table
    moved: dict[str, Any] = {
        item.name: value.to(device)
        for item in fields(layer)
        if isinstance(value := getattr(layer, item.name), torch.Tensor)
    }
    moved["table"] = replace(
        table,
        entries=table.entries.to(device),
        lengths=table.lengths.to(device),
        domains=table.domains.to(device),
    )
    return replace(layer, **moved)
