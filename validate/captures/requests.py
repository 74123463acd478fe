"""The requests of a capture, to be run through its model again."""

from __future__ import annotations

from pathlib import Path

from ratedist.errors import InputError
from ratedist.validate.captures.store import Capture
from ratedist.validate.models import LoadedModel
from ratedist.validate.workloads.prompts import Prompt, PromptSet

__all__ = ["captured_requests"]


def captured_requests(
    folder: Path, loaded: LoadedModel, *, requests: int | None = None, tokens: int | None = None
) -> PromptSet:
    """Token ids and domains of a capture's requests, generated tokens included.

    Args:
        folder: of the capture.
        loaded: the model whose cache it holds.
        requests: the first so many; all where None, or where it holds fewer.
        tokens: cut every request to its first so many; uncut where None.

    Raises:
        InputError: a capture of other weights.
        CaptureError: no capture, a damaged one, or one made without token ids.
    """
    held = Capture.open(folder)
    manifest = held.manifest
    if manifest.weights_hash != loaded.weights_hash:
        raise InputError(
            "capture",
            str(folder),
            f"is of {manifest.model} with weights {manifest.weights_hash[:12] or 'unknown'}, the model "
            f"is {loaded.name} with {loaded.weights_hash[:12]}; name the capture's own with --model",
        )
    chosen = range(manifest.requests if requests is None else min(requests, manifest.requests))
    return PromptSet(
        manifest.workload,
        tuple(Prompt(tuple(held.tokens(r).tolist()[:tokens]), manifest.domains[r]) for r in chosen),
        manifest.seed,
        {"capture": folder.name},
    )
