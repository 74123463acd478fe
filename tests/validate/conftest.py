"""A small synthetic capture, written as real ones are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from ratedist.validate.captures.manifest import BatchFile, Manifest
from ratedist.validate.captures.store import Capture
from ratedist.validate.captures.writer import CaptureWriter

CaptureMaker = Callable[..., Capture]


@pytest.fixture
def make_capture(tmp_path: Path) -> CaptureMaker:
    """A function that writes a capture of random blocks around a common mean and one mean per position."""

    def make(
        workload: str = "synthetic",
        *,
        lengths: Sequence[int] = (64,) * 8,
        domains: Sequence[int] | None = None,
        layers: Sequence[int] = (1, 2, 3, 4),
        model_layers: int = 6,
        model: str = "random",
        weights_hash: str = "0" * 64,
        shared_tokens: int = 16,
        seed: int = 0,
    ) -> Capture:
        heads, head_dim = 2, 8
        plan = Manifest(
            model=model,
            weights_hash=weights_hash,
            dtype="float32",
            layers=tuple(layers),
            model_layers=model_layers,
            kv_heads=heads,
            query_heads=2 * heads,
            head_dim=head_dim,
            lengths=tuple(lengths),
            domains=tuple(domains) if domains is not None else (0,) * len(lengths),
            workload=workload,
            files=(BatchFile("batch-00000.safetensors", tuple(range(len(lengths)))),),
        )
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        def tensors() -> list[tuple[int, torch.Tensor, torch.Tensor]]:
            made = []
            for layer in layers:
                parts = []
                for strength in (1.5, 0.7):
                    mean = strength * draw(max(lengths), heads, head_dim)
                    prefix = draw(shared_tokens, heads, head_dim)
                    requests = [mean[:length] + draw(length, heads, head_dim) for length in lengths]
                    for request in requests:
                        request[:shared_tokens] = prefix[: len(request)]
                    parts.append(torch.cat(requests))
                made.append((layer, *parts))
            return made

        with CaptureWriter(tmp_path / "captures" / workload, plan) as writer:
            for batch in writer.pending:
                writer.write(batch, tensors())
            return writer.finish()

    return make
