"""Which requests calibrate and which are measured, drawn at random from a capture's."""

from __future__ import annotations

import zlib

import numpy as np

from ratedist.errors import InputError
from ratedist.validate.captures.manifest import Manifest
from ratedist.validate.compare import Split

__all__ = ["DRAWN_AS", "check_size", "draw_calibration", "draw_split", "generator", "with_full_blocks"]

DRAWN_AS = "drawn_as"
"""In a manifest's origin, the workload whose random draws its requests follow; its own where absent."""


def draw_split(manifest: Manifest, n: int, m: int, seed: int) -> Split:
    """n requests to calibrate on and m others to measure, drawn and ordered at random.

    Only requests with a full block are drawn. The same seed draws the same n requests for every m.

    Raises InputError as ``check_size`` does.
    """
    check_size(manifest, n, m)
    order = generator(manifest, seed).permutation(with_full_blocks(manifest))
    return Split(tuple(order[:n].tolist()), tuple(order[n : n + m].tolist()))


def draw_calibration(manifest: Manifest, n: int, seed: int) -> tuple[int, ...]:
    """The n requests that ``draw_split`` calibrates on with this seed, for measuring another workload.

    Raises InputError where there are fewer.
    """
    check_size(manifest, n, 0)
    return tuple(generator(manifest, seed).permutation(with_full_blocks(manifest))[:n].tolist())


def check_size(manifest: Manifest, n: int, m: int) -> None:
    """Raises InputError where a workload has fewer than n + m requests with a full block."""
    there = len(with_full_blocks(manifest))
    if there < n + m:
        raise InputError(
            "requests",
            there,
            f"workload {manifest.workload!r} is too small for {n} → {m}: it needs {n + m} requests of "
            f"at least {manifest.block_size} tokens; capture more, or take smaller splits",
        )


def with_full_blocks(manifest: Manifest) -> list[int]:
    """Requests of a capture that have one."""
    return [request for request, length in enumerate(manifest.lengths) if length >= manifest.block_size]


def generator(manifest: Manifest, *numbers: int) -> np.random.Generator:
    """The source of random draws of a workload's requests; another one for other numbers."""
    # Workloads draw apart from each other: the same requests by number would tie their errors together.
    # One workload of several models draws alike (``ratedist.validate.transfer``).
    name = manifest.origin.get(DRAWN_AS, manifest.workload)
    return np.random.default_rng([zlib.crc32(name.encode()), *numbers])
