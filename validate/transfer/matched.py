"""Captures of different models made comparable: the same number of requests, layers matched by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ratedist.errors import InputError
from ratedist.kernels.layout import PagedLayer
from ratedist.validate.captures.manifest import BatchFile
from ratedist.validate.captures.store import Capture
from ratedist.validate.compare import default_layers
from ratedist.validate.suite.splits import DRAWN_AS

__all__ = ["MatchedCapture", "match_captures", "matched_layers", "pairs_of"]


class MatchedCapture(Capture):
    """Some layers of the first requests of a capture, as a capture of its own.

    Its layers are numbered 0, 1, … from the first to the last that was chosen, and its workload is named
    after model and workload, so that captures of several models stand beside each other as workloads of one.

    Attributes:
        source: the capture.
        chosen: the layers of the source, ascending.
    """

    def __init__(self, source: Capture, requests: int, layers: Sequence[int]) -> None:
        super().__init__(source.folder, source.manifest)
        whole = source.manifest
        first = [(f, tuple(r for r in f.requests if r < requests)) for f in whole.files]
        self.source = source
        self.chosen = tuple(layers)
        self.manifest = replace(
            whole,
            workload=f"{whole.model} · {whole.workload}",
            layers=tuple(range(len(self.chosen))),
            layer_types=tuple(whole.layer_types[whole.layers.index(layer)] for layer in self.chosen)
            if whole.layer_types
            else (),
            lengths=whole.lengths[:requests],
            domains=whole.domains[:requests],
            token_hashes=whole.token_hashes[:requests],
            generated=whole.generated[:requests],
            origin={**whole.origin, DRAWN_AS: whole.workload},
            files=tuple(BatchFile(f.name, kept, f.size, f.sha256) for f, kept in first if kept),
        )

    def resolved(self) -> MatchedCapture:
        """As ``Capture.resolved``."""
        return MatchedCapture(self.source.resolved(), self.manifest.requests, self.chosen)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.manifest.model

    @property
    def own_workload(self) -> str:
        """Name of the workload, without the model's."""
        return self.source.manifest.workload

    def layer(
        self, index: int, requests: Sequence[int] | None = None, block_size: int | None = None
    ) -> PagedLayer:
        """A chosen layer, as ``Capture.layer`` gives it."""
        chosen = self._check(index, requests)
        return self.source.layer(self.chosen[index], chosen, block_size)

    def queries(self, index: int, requests: Sequence[int] | None = None) -> Tensor:
        """Queries of a chosen layer, as ``Capture.queries`` gives them."""
        chosen = self._check(index, requests)
        return self.source.queries(self.chosen[index], chosen)

    def query_scale(self, index: int) -> float:
        """Of a chosen layer, as ``Capture.query_scale`` gives it."""
        self._check(index, None)
        return self.source.query_scale(self.chosen[index])


def match_captures(captures: Sequence[Capture], layers: int) -> list[MatchedCapture]:
    """Captures of one or several models with as many requests and layers each.

    The requests are the first of each, as many as the smallest capture has, and one workload is split alike
    for every model. A built-in workload of one seed gives the same texts in the same order whatever the
    model, so that the texts that calibrate on one model are not those that are measured on another. The
    layers are spread evenly from the first to the last layer that is fused by default, which is what matches
    them across models of different depth.

    Raises InputError for fewer than two captures, two of one model and workload, one model's name for
    different weights, different block sizes, more layers than a capture has, or captures of which no two
    share their model or their workload.
    """
    if len(captures) < 2:
        raise InputError(
            "capture",
            [str(capture.folder) for capture in captures],
            "transfer needs at least two captures: of several models, or of several workloads of one",
        )
    seen: dict[tuple[str, str], Capture] = {}
    weights: dict[str, Capture] = {}
    for capture in captures:
        manifest = capture.manifest
        name = (manifest.model, manifest.workload)
        if name in seen:
            raise InputError(
                "capture",
                str(capture.folder),
                f"is of workload {manifest.workload!r} of model {manifest.model!r} like "
                f"{seen[name].folder}; leave one out",
            )
        seen[name] = capture
        other = weights.setdefault(manifest.model, capture)
        if other.manifest.weights_hash != manifest.weights_hash:
            raise InputError(
                "capture",
                str(capture.folder),
                f"is of other weights than {other.folder}, and both models are called {manifest.model!r}; "
                "rename the folder of one model and capture again",
            )
        if manifest.block_size != captures[0].manifest.block_size:
            raise InputError(
                "capture",
                str(capture.folder),
                f"has blocks of {manifest.block_size} tokens, {captures[0].folder} of "
                f"{captures[0].manifest.block_size}; capture them alike",
            )
    requests = min(capture.manifest.requests for capture in captures)
    matched = [MatchedCapture(capture, requests, matched_layers(capture, layers)) for capture in captures]
    if not any(source is not target for source, target in pairs_of(matched)):
        raise InputError(
            "capture",
            [capture.manifest.workload for capture in matched],
            "no two share their model or their workload, so nothing can be compared; capture one workload "
            "with both models",
        )
    return matched


def matched_layers(capture: Capture, count: int) -> list[int]:
    """So many of the layers that are fused by default, spread evenly; raises InputError for more than there
    are, or none."""
    fused = default_layers(capture.manifest)
    if not 1 <= count <= len(fused):
        raise InputError(
            "layers", count, f"must lie in 1 … {len(fused)}, the layers of {capture.folder} that are fused"
        )
    if count == 1:
        return [fused[len(fused) // 2]]
    return [fused[round(number * (len(fused) - 1) / (count - 1))] for number in range(count)]


def pairs_of(captures: Sequence[MatchedCapture]) -> list[tuple[MatchedCapture, MatchedCapture]]:
    """Pairs (source, target) that share their model or their workload, each with itself too, by target."""
    return [
        (source, target)
        for target in captures
        for source in captures
        if source.model == target.model or source.own_workload == target.own_workload
    ]
