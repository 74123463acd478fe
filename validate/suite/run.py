"""Running a suite: every cell that is not finished yet, then the record of all that are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ratedist.errors import InputError
from ratedist.kernels.layout import PagedLayer
from ratedist.validate.captures.capture import capture_cache
from ratedist.validate.captures.manifest import MANIFEST, Manifest, without_files
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import check_captures, default_layers
from ratedist.validate.models import LoadedModel
from ratedist.validate.parallel import absolute, check_jobs, run_tasks
from ratedist.validate.suite.chunks import as_chunks
from ratedist.validate.suite.folder import CAPTURES, SETTINGS, CellKey, SuiteFolder
from ratedist.validate.suite.noise_cell import REORDERED, noise_cell
from ratedist.validate.suite.protocol import (
    CHOICE_SPLITS,
    Calibration,
    recheck,
    split_cell,
)
from ratedist.validate.suite.scored_layer import ScoredLayer, select_requests
from ratedist.validate.suite.splits import check_size, draw_calibration, draw_split
from ratedist.validate.suite.tasks import CellSize, Suite
from ratedist.validate.workloads import build_prompts

__all__ = [
    "LayerWork",
    "capture_suite",
    "fingerprint",
    "plan_work",
    "read_by",
    "run_cells",
    "suite_settings",
]

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, and what was done last."""


@dataclass(frozen=True)
class LayerWork:
    """All cells of one layer of one capture, finished or not.

    Attributes:
        capture: the capture.
        layer: the layer's index.
        sizes: what is compared.
        seeds: of every split.
        sources: captures of the other workloads that calibrate, by name.
    """

    capture: Capture
    layer: int
    sizes: tuple[CellSize, ...]
    seeds: tuple[int, ...]
    sources: dict[str, Capture] = field(default_factory=dict)

    @property
    def splits(self) -> list[CellKey]:
        """Keys of the cells of splits."""
        own = self.capture.manifest.workload
        return [
            CellKey(own, self.layer, m, n, seed, None if source == own else source, mode)
            for n, m, source, mode in self.sizes
            for seed in self.seeds
        ]

    @property
    def noise(self) -> list[CellKey]:
        """Keys of the cells of noise."""
        workload = self.capture.manifest.workload
        sizes = sorted({(size.mode, size.m) for size in self.sizes})
        return [CellKey(workload, self.layer, m, mode=mode) for mode, m in sizes]

    def resolved(self) -> LayerWork:
        """The same on captures at absolute paths."""
        sources = {name: capture.resolved() for name, capture in self.sources.items()}
        return replace(self, capture=self.capture.resolved(), sources=sources)

    @property
    def cost(self) -> float:
        """Work in all its cells, in arbitrary units, for the time left."""
        manifest = self.capture.manifest
        blocks = sum(length // manifest.block_size for length in manifest.lengths)
        # Found on the embedded model: predicting takes about as long as fusing a few hundred requests.
        fused = len(self.seeds) * sum(200 + size.m for size in self.sizes)
        fused += 8 * sum(key.m for key in self.noise)
        return (blocks / 1000) ** 2 + fused / 100


def capture_suite(
    suite: Suite,
    loaded: LoadedModel,
    folder: Path,
    workloads: Sequence[str],
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Capture]:
    """Capture the workloads as the suite needs them, or use what is captured alike under ``folder``.

    Args:
        suite: tokens, seed, and how many requests each workload needs.
        loaded: the model; its weights are loaded only if something is left to capture.
        folder: of the suite; captures go below ``CAPTURES``.
        workloads: names of built-in workloads.
        progress: called with tokens done and in all, and the workload's name.

    Raises InputError where a workload has not text enough, or where a capture of other settings is there:
    captures are not deleted, move it away or name another folder.
    """
    sizes = {name: suite.requests(name) * suite.tokens for name in workloads}
    whole = sum(sizes.values())
    # All of them before the first is captured: a workload that cannot be built shows at once.
    prompts = {
        name: build_prompts(
            name,
            loaded.tokenizer,
            requests=suite.requests(name),
            tokens=suite.tokens,
            seed=suite.capture_seed,
        )
        for name in workloads
    }
    captures: list[Capture] = []
    before = 0
    for name in workloads:

        def report(done: int, total: int, name: str = name, before: int = before) -> None:
            if progress is not None:
                progress(before + done, whole, name)

        captures.append(capture_cache(loaded, prompts[name], folder / CAPTURES / name, progress=report))
        before += sizes[name]
        report(0, 0, name, before)
    return captures


def suite_settings(suite: Suite, captures: Sequence[Capture]) -> dict[str, Any]:
    """What the numbers of every cell depend on, beside its key and its capture; JSON data.

    Workloads, layers, splits and seeds are not among it: a suite that names more goes on in the same folder.
    """
    check_captures(captures)
    first = captures[0].manifest
    return {
        "model": first.model,
        "weights_hash": first.weights_hash,
        "thresholds": list(suite.thresholds),
        "variants": list(suite.variants),
        "criteria": list(suite.criteria),
        "scale": suite.scale,
        "predictors": list(suite.predictors),
        "noise_draws": suite.noise_draws,
        "noise_orders": REORDERED,
        "chunk_blocks": suite.chunk_blocks,
        "choice_splits": CHOICE_SPLITS,
        "version": metadata.version("ratedist"),
    }


def plan_work(suite: Suite, captures: Sequence[Capture]) -> list[LayerWork]:
    """The cells of a suite on these captures, by workload and layer.

    Raises InputError where captures do not fit each other or the suite: another model, a workload that the
    suite does not name, a layer that was not captured, or too few requests for a split.
    """
    check_captures(captures)
    by_name = {capture.manifest.workload: capture for capture in captures}
    names = tuple(by_name)
    chosen = suite.workloads(names)
    work = []
    for name, capture in by_name.items():
        manifest = capture.manifest
        if name not in chosen:
            raise InputError("captures", str(capture.folder), f"is of workload {name!r}, not of the suite")
        layers = suite.cells(name, names, default_layers(manifest), manifest.layers)
        for layer, sizes in layers.items():
            others = {size.source: by_name[size.source] for size in sizes if size.source != name}
            for n, m, source, _ in sizes:
                check_size(manifest, n, m)
                check_size(by_name[source].manifest, n, 0)
                if layer not in by_name[source].manifest.layers:
                    raise InputError("tasks.layers", layer, f"is not in the capture of {source!r}")
            work.append(LayerWork(capture, layer, tuple(sizes), suite.seeds, others))
    return work


def run_cells(
    suite: Suite,
    work: Sequence[LayerWork],
    folder: SuiteFolder,
    *,
    jobs: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute every cell that is not in the folder yet; each is stored as soon as it is finished.

    Args:
        suite: thresholds, variants, criteria and predictors.
        work: from ``plan_work``.
        folder: claimed with ``suite_settings``.
        jobs: layers at a time, each in a process of its own where more than one; the cells are the same.
        dask: address of a Dask scheduler whose workers compute the cells instead and write them into the
            folder, see ``ratedist.validate.parallel.run_tasks``; the cells are the same.
        progress: called after every layer.

    Raises:
        InputError: ``jobs`` below 1, a layer without two requests that can be compared, or a cluster that
            does not answer or would not give the same cells.
        RatedistError: a cell cannot be written; those before it stay.
    """
    check_jobs(jobs)
    folder = SuiteFolder(absolute(folder.path, dask))
    left = []
    for item in work:
        missing = [key for key in (*item.splits, *item.noise) if not folder.has(key)]
        if missing:
            left.append((item, missing))
    whole = sum(item.cost for item in work)
    done = whole - sum(item.cost for item, _ in left)
    if progress is not None:
        progress(done / whole, "cells of an earlier run")
    if dask is not None:
        left = [(item.resolved(), missing) for item, missing in left]
    results = run_tasks(
        _run_layer,
        [(suite, item, missing, folder) for item, missing in left],
        jobs=jobs,
        # Nothing is left to do in a suite that is run again, which needs no cluster then.
        dask=dask if left else None,
        files=read_by([item for item, _ in left], folder),
    )
    for (item, _), _ in zip(left, results, strict=True):
        done += item.cost
        if progress is not None:
            progress(min(1.0, done / whole), f"{item.capture.manifest.workload}, layer {item.layer}")


def read_by(work: Sequence[LayerWork], folder: SuiteFolder) -> list[Path]:
    """Files that name all that the cells of some layers depend on."""
    captures = {capture.folder for item in work for capture in (item.capture, *item.sources.values())}
    return [folder.path / SETTINGS, *(path / MANIFEST for path in sorted(captures))]


def _run_layer(suite: Suite, item: LayerWork, missing: Sequence[CellKey], folder: SuiteFolder) -> None:
    import torch

    torch.set_num_threads(1)  # the layers run beside each other
    manifest = item.capture.manifest
    layer = item.capture.layer(item.layer)
    for mode in dict.fromkeys(key.mode for key in missing):
        chunk_blocks = suite.chunk_blocks if mode == "cff" else None
        try:
            scored = ScoredLayer(layer, chunk_blocks)
        except InputError as error:
            raise InputError(
                error.argument,
                error.value,
                f"workload {manifest.workload!r}, layer {item.layer}, {mode}: {error.remedy}",
            ) from error
        smallest = min(
            (key for key in item.splits if key.source is None and key.mode == mode),
            key=lambda key: (key.m, key.n, suite.seeds.index(key.seed or 0)),
            default=None,
        )
        for key in missing:
            if key.mode != mode:
                continue
            if key.n is None or key.seed is None:
                cell = noise_cell(manifest, scored, item.layer, key.m, suite, mode)
            else:
                calibration = _calibration(item, layer, key, chunk_blocks)
                size = (key.n, key.m)
                cell = split_cell(manifest, scored, item.layer, size, suite, key.seed, calibration, mode)
                if key == smallest:
                    cell["rechecked"] = recheck(layer, cell, suite)
            folder.write(key, cell)


def _calibration(item: LayerWork, layer: PagedLayer, key: CellKey, chunk_blocks: int | None) -> Calibration:
    assert key.n is not None
    assert key.seed is not None
    manifest = item.capture.manifest
    if key.source is None:
        requests = draw_split(manifest, key.n, key.m, key.seed).calibration
        chosen = select_requests(layer, requests)
    else:
        capture = item.sources[key.source]
        requests = draw_calibration(capture.manifest, key.n, key.seed)
        chosen = capture.layer(item.layer, requests)
    if chunk_blocks is not None:
        chosen = as_chunks(chosen, chunk_blocks)
    return Calibration(key.source or manifest.workload, requests, chosen)


def fingerprint(manifest: Manifest) -> str:
    """sha256 over what a capture holds and what made it, the packages' versions aside."""
    data = replace(without_files(manifest), versions={}).to_json()
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
