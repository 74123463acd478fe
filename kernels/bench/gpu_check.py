"""What only a GPU can show, in a few minutes: that the compiled kernels are right, and how fast they are.

Checks come first and compare the Triton kernels on the device with plain torch in float32 on the CPU; the
benchmarks follow. Where Triton interprets its kernels the checks run too, at small sizes, and are not timed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch

from ratedist.kernels.attention.operations import paged_attention
from ratedist.kernels.bench.arguments import usable_device
from ratedist.kernels.bench.attention import bench_attention, random_cache
from ratedist.kernels.bench.fusion import bench_fusion, synthetic_layer
from ratedist.kernels.bench.matching import bench_matching
from ratedist.kernels.fusion.fuse import fuse, matcher_of
from ratedist.kernels.fusion.matching import Centring, Turns
from ratedist.kernels.layout import FusedLayer, PagedLayer
from ratedist.kernels.rotary import Rotary

__all__ = ["TOLERANCES", "check_attention", "check_fusion", "check_gpu", "check_space"]

TOLERANCES = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Largest error of attention relative to the root mean square of its result, by dtype of the cache."""

_CLOSE = 1e-4
"""Scores nearer than this to the threshold or to a rival leave an implementation the choice."""

_FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 100},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True},
}


def check_gpu(device: str = "cuda", *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Checks, then benchmarks.

    Args:
        device: a GPU; "cpu" runs the checks alone, in Triton's interpreter.
        seed: of all data.

    Returns:
        Rows as they are done: ``kind`` "check" with ``name, passed, error, tolerance, seconds``, or "bench"
        with what ``bench_fusion``, ``bench_matching`` and ``bench_attention`` say.

    Raises:
        InputError: no such device here, or Triton cannot run on it.
    """
    place = usable_device(
        device, "torch finds no such device here; --device cpu checks the interpreted kernels"
    )
    timed = place.type == "cuda"

    def measure() -> Iterator[dict[str, Any]]:
        for check in (check_attention, check_fusion, check_space):
            for row in check(place, small=not timed, seed=seed):
                yield {"kind": "check", "device": str(place), **row}
        if timed:
            options: dict[str, Any] = {"backend": "triton", "device": device, "seed": seed}
            for row in itertools.chain(
                bench_fusion(**options),
                bench_matching(blocks=(1024, 8192), dtypes=("float32", "float16", "bfloat16"), **options),
                bench_attention(requests=64, tokens=4096, kv_heads=8, group=4, head_dim=128, **options),
            ):
                yield {"kind": "bench", **row}

    return measure()


def check_attention(device: torch.device, *, small: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Triton on ``device`` against plain torch on the CPU, by dtype, head dimension and form.

    Args:
        device: where Triton runs.
        small: fewer and shorter requests, and one head dimension.
        seed: of the data.
    """
    dims = (40,) if small else (64, 72, 96, 128, 256)
    requests, tokens, queries = (2, 40, 3) if small else (9, 1000, 37)
    for name, head_dim, (form, chosen) in itertools.product(TOLERANCES, dims, _FORMS.items()):
        dtype: torch.dtype = getattr(torch, name)
        cpu = torch.device("cpu")
        options = {
            "kv_heads": 2,
            "head_dim": head_dim,
            "dtype": dtype,
            "device": cpu,
            "seed": seed,
            "compression": 2.0,
        }
        _, layer = random_cache(requests, tokens, **options)
        generator = torch.Generator().manual_seed(seed + 1)
        for kind, count in (("decode", 1), ("prefill", queries)):
            q = torch.randn(requests * count, 6, head_dim, generator=generator).to(dtype)
            counts = torch.full((requests,), count, dtype=torch.int64)
            form_options = dict(chosen)
            if form_options.pop("sinks", False):
                form_options["sinks"] = torch.randn(6, generator=generator)
            started = time.perf_counter()
            expected, _ = paged_attention(q, layer, counts, backend="cpu", **form_options)
            if "sinks" in form_options:
                form_options["sinks"] = form_options["sinks"].to(device)
            out, _ = paged_attention(
                q.to(device), _moved(layer, device), counts.to(device), backend="triton", **form_options
            )
            difference = (out.cpu().float() - expected.float()).abs().max()
            error = float(difference / expected.float().square().mean().sqrt())
            yield {
                "name": f"attention/{kind}/{form}/{name}/{head_dim}",
                # Both results are rounded to the dtype.
                "passed": error <= 2 * TOLERANCES[name],
                "error": error,
                "tolerance": 2 * TOLERANCES[name],
                "seconds": time.perf_counter() - started,
            }


def check_fusion(device: torch.device, *, small: bool, seed: int) -> Iterator[dict[str, Any]]:
    """The mapping of Triton on ``device`` against the torch path on the CPU; ``error`` is the share of blocks
    that another block represents although no score decides it by less than 1e-4.

    Args:
        device: where Triton runs.
        small: a small layer.
        seed: of the data.
    """
    requests, blocks = (4, 3) if small else (32, 16)
    layer = synthetic_layer(
        requests,
        blocks,
        cosines=((1.0, 0.6, 0.98),),
        seed=seed,
        block_size=4 if small else 16,
        head_dim=8 if small else 64,
    )
    for variant, criterion, name in itertools.product(("leader", "tree"), ("keys", "both"), TOLERANCES):
        dtype: torch.dtype = getattr(torch, name)
        typed = replace(layer, k=layer.k.to(dtype), v=layer.v.to(dtype))
        started = time.perf_counter()
        options: dict[str, Any] = {"threshold": 0.7, "variant": variant, "criterion": criterion}
        expected = fuse(typed, backend="cpu", **options)
        found = fuse(_moved(typed, device), backend="triton", **options)
        differs = found.representative.cpu() != expected.representative
        near = (found.score.cpu() - expected.score).abs() < _CLOSE
        undecided = near | ((expected.score - 0.7).abs() < _CLOSE)
        wrong = float((differs & ~undecided).sum()) / expected.candidates
        yield {
            "name": f"fusion/{variant}/{criterion}/{name}",
            "passed": wrong == 0,
            "error": wrong,
            "tolerance": 0.0,
            "seconds": time.perf_counter() - started,
        }


def check_space(device: torch.device, *, small: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Blocks without positions and means, and the means: Triton on ``device`` against torch on the CPU.

    ``error`` is the largest difference relative to the root mean square; means are rounded to the dtype.

    Args:
        device: where Triton runs.
        small: fewer blocks, and one head dimension.
        seed: of the data.
    """
    dims, chosen, groups = ((40,), 20, 2) if small else ((64, 72, 128, 256), 3000, 7)
    generator = torch.Generator().manual_seed(seed)
    for name, head_dim in itertools.product(TOLERANCES, dims):
        dtype: torch.dtype = getattr(torch, name)
        pool = torch.randn(chosen, 16, 2, head_dim, generator=generator).to(dtype)
        ids = torch.randint(chosen, (chosen,), generator=generator)
        tokens = torch.randint(-9999, 9999, (chosen,), generator=generator)
        group = torch.arange(chosen) % groups
        for form, rotary in (
            ("still", None),
            ("half", Rotary.from_base(1e4, head_dim)),
            ("interleaved", Rotary.from_base(1e4, head_dim // 2, "interleaved")),
        ):
            started = time.perf_counter()
            found: list[tuple[torch.Tensor, torch.Tensor]] = []
            for matcher, place in ((matcher_of("cpu"), torch.device("cpu")), (matcher_of("triton"), device)):
                stored, which, of = pool.to(place), ids.to(place), group.to(place)
                turns = None if rotary is None else Turns(rotary, tokens.to(place))
                means = matcher.group_means(stored, which, turns, of, groups)
                # Of the same means, as rounding may differ.
                centring = Centring(found[0][0].to(place) if found else means, of)
                blocks = matcher.matched_blocks(stored, which, turns, centring)
                found.append((means.cpu(), blocks.cpu()))
            for what, expected, actual, tolerance in (
                ("means", found[0][0], found[1][0], 2 * TOLERANCES[name]),
                ("blocks", found[0][1], found[1][1], TOLERANCES["float32"]),
            ):
                difference = (actual.float() - expected.float()).abs().max()
                error = float(difference / expected.float().square().mean().sqrt())
                yield {
                    "name": f"space/{what}/{form}/{name}/{head_dim}",
                    "passed": error <= tolerance,
                    "error": error,
                    "tolerance": tolerance,
                    "seconds": time.perf_counter() - started,
                }


def _moved(layer: PagedLayer | FusedLayer, device: torch.device) -> Any:
    """The same layer on another device."""
    table = layer.table
    tensors = {
        item.name: getattr(layer, item.name).to(device)
        for item in fields(layer)
        if isinstance(getattr(layer, item.name), torch.Tensor)
    }
    moved = replace(
        table,
        entries=table.entries.to(device),
        lengths=table.lengths.to(device),
        domains=table.domains.to(device),
    )
    return replace(layer, table=moved, **tensors)
