"""The plan: a small versioned JSON file with one setting per layer, for programs that fuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ratedist.errors import InputError, RatedistError
from ratedist.records import write_atomic
from ratedist.validate.captures.manifest import Manifest
from ratedist.validate.models import LoadedModel
from ratedist.validate.quality.methods import Method

__all__ = ["SCHEMA", "CachePlan", "read_plan", "write_plan"]

SCHEMA = "ratedist/plan/1"


@dataclass(frozen=True)
class CachePlan:
    """What to do to each layer of one model's cache.

    Attributes:
        model: name of the model that it was made for.
        weights_hash: of its weights.
        layers: number of the model's layers.
        block_size: tokens per block.
        settings: method per layer; layers that are not named stay as they are.
        goal: what was asked for, by name.
        predicted: what is expected of unseen requests: ``compression`` of the whole cache, ``kl`` in nats
            with ``kl_low`` and ``kl_high``, and what the best uniform setting would give.
        provenance: what made it.
    """

    model: str
    weights_hash: str
    layers: int
    block_size: int
    settings: dict[int, Method]
    goal: dict[str, float]
    predicted: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def check(self, loaded: LoadedModel) -> None:
        """Raise InputError where the plan was made for another model, or other weights of it."""
        self._check("the model", loaded.name, loaded.weights_hash, loaded.layers)

    def check_capture(self, manifest: Manifest) -> None:
        """Raise InputError where a capture is of other weights, or lacks a layer that the plan names."""
        self._check("the capture", manifest.model, manifest.weights_hash, manifest.model_layers)
        missing = sorted(set(self.settings) - set(manifest.layers))
        if missing:
            raise InputError(
                "capture",
                f"{manifest.workload}, layers {list(manifest.layers)}",
                f"lacks layers {missing} of the plan; capture them too",
            )

    def _check(self, what: str, name: str, weights_hash: str, layers: int) -> None:
        if (weights_hash, layers) != (self.weights_hash, self.layers):
            raise InputError(
                "plan",
                f"made for {self.model!r} ({self.layers} layers, weights {self.weights_hash[:12]})",
                f"{what} is {'of ' if what == 'the capture' else ''}{name!r} ({layers} layers, weights "
                f"{weights_hash[:12] or 'unknown'}); plan again for this one",
            )

    def with_drift(self, drift: Mapping[str, Any]) -> CachePlan:
        """The same plan, its sensitivity with what mixtures with other traffic gave
        (``ratedist.validate.planning.drift.drift_of``)."""
        sensitivity = {**self.predicted.get("sensitivity", {}), "drift": dict(drift)}
        return replace(self, predicted={**self.predicted, "sensitivity": sensitivity})

    def with_service(self, service: Mapping[str, Any]) -> CachePlan:
        """The same plan with what it is predicted to save with more requests in the cache
        (``ratedist.validate.planning.service.foresee_service``)."""
        return replace(self, predicted={**self.predicted, "service": dict(service)})

    def to_json(self) -> str:
        """The file's text."""
        data = asdict(self) | {"settings": {str(n): m.to_json() for n, m in sorted(self.settings.items())}}
        return json.dumps({"schema": SCHEMA, **data}, indent=1, allow_nan=False) + "\n"


def write_plan(plan: CachePlan, path: Path, *, force: bool = False) -> None:
    """Write a plan; raises InputError where ``path`` exists and ``force`` is false."""
    if path.exists() and not force:
        raise InputError("out", str(path), "exists already; choose another path or pass --force")
    write_atomic(path, plan.to_json())


def read_plan(path: Path) -> CachePlan:
    """Read a plan.

    Raises:
        InputError: no such file.
        RatedistError: it is no plan, or one of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("plan", str(path), "no such file; make one with ratedist plan") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RatedistError(f"{path} is not a plan: {error}") from error
    found = data.get("schema") if isinstance(data, dict) else type(data).__name__
    if found != SCHEMA:
        raise RatedistError(f"{path} has schema {found!r}; this version of ratedist reads {SCHEMA!r}")
    values: Mapping[str, Any] = {key: value for key, value in data.items() if key != "schema"}
    try:
        settings = {int(layer): Method(**method) for layer, method in values["settings"].items()}
        return CachePlan(**{**values, "settings": settings})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RatedistError(f"{path} is damaged ({error}); make it again with ratedist plan") from error
