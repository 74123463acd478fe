"""The demonstration: the embedded model on four workloads, predicted beside measured, kernels checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ratedist.errors import InputError
from ratedist.validate.agreement import Agreement, check_agreement
from ratedist.validate.captures.capture import capture_cache
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import default_layers, split_requests
from ratedist.validate.measure import Runtime
from ratedist.validate.models import LoadedModel
from ratedist.validate.workloads import build_prompts

__all__ = [
    "CAPTURES",
    "CHECKED_THRESHOLD",
    "RECORD",
    "WORKLOADS",
    "agreements",
    "capture_workloads",
    "claim_demo_folder",
]

WORKLOADS = ("unrelated", "system-prompt", "documents", "templates")
"""Workloads of the demonstration: from nothing in common to near-duplicates."""

CAPTURES = "captures"
"""Subfolder of the demonstration's captures, one folder per workload."""

RECORD = "validation.json"
"""The demonstration's record."""

CHECKED_THRESHOLD = 0.8
"""Threshold at which the kernels are compared with the CPU path."""


def claim_demo_folder(folder: Path) -> Path:
    """Take an empty folder, or one of an earlier demonstration, whose captures are used again.

    Raises InputError where it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("out", str(folder), "is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CAPTURES).is_dir():
        raise InputError(
            "out", str(folder), "holds something else; name a new folder, which the demo will own"
        )
    (folder / CAPTURES).mkdir(parents=True, exist_ok=True)
    return folder


def capture_workloads(
    loaded: LoadedModel,
    folder: Path,
    *,
    requests: int,
    tokens: int,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Capture]:
    """Capture the demonstration's workloads under ``folder``, or use what an earlier run captured alike.

    Args:
        loaded: the model; its weights are loaded only if something is left to capture.
        folder: claimed by ``claim_demo_folder``.
        requests: per workload.
        tokens: per request.
        seed: of the prompts.
        progress: called with tokens done and in all over the workloads, and the workload's name.
    """
    captures: list[Capture] = []
    whole = requests * tokens * len(WORKLOADS)
    for index, name in enumerate(WORKLOADS):

        def report(done: int, total: int, name: str = name, before: int = index * requests * tokens) -> None:
            if progress is not None:
                progress(before + done, whole, name)

        prompts = build_prompts(name, loaded.tokenizer, requests=requests, tokens=tokens, seed=seed)
        captures.append(capture_cache(loaded, prompts, folder / CAPTURES / name, force=True, progress=report))
        report(requests * tokens, whole)
    return captures


def agreements(
    captures: Sequence[Capture],
    runtime: Runtime,
    *,
    threshold: float = CHECKED_THRESHOLD,
    variants: Sequence[str] = ("leader", "tree"),
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[tuple[str, int, Agreement]]:
    """Fuse the middle fused layer of every capture, and attend over it, on ``runtime`` and on the CPU path.

    It takes the requests that ``compare`` with this seed measures.

    Returns:
        (workload, layer, agreement) for every capture and variant.
    """
    results = []
    for capture in captures:
        layers = default_layers(capture.manifest)
        chosen = layers[len(layers) // 2]
        paged = capture.layer(chosen, split_requests(capture.manifest, seed).held_out)
        for variant in variants:
            agreement = check_agreement(
                paged,
                runtime,
                group_size=capture.manifest.group_size,
                threshold=threshold,
                variant=variant,
                seed=seed,
            )
            results.append((capture.manifest.workload, chosen, agreement))
            if progress is not None:
                name = f"{capture.manifest.workload}, layer {chosen}, {variant}"
                progress(len(results), len(captures) * len(variants), name)
    return results
