"""The rows of a comparison brought together over layers, for reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["over_layers"]

_KEY = ("workload", "variant", "criterion", "threshold", "predictor")


def over_layers(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per workload, variant, criterion, threshold and predictor, in order of first appearance.

    ``compression_*`` is blocks over kept blocks of all fused layers together, ``cache_compression_*`` that of
    the whole cache in bytes, ``k_error_*`` and ``v_error_*`` root mean squares over all blocks of them.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[field] for field in _KEY), []).append(row)
    entries = []
    for key, members in groups.items():
        entry: dict[str, Any] = {**dict(zip(_KEY, key, strict=True)), "layers": len(members)}
        blocks = np.array([row["blocks"] for row in members], dtype=np.float64)
        for side in ("measured", "predicted"):
            kept = sum(row[f"kept_{side}"] for row in members)
            entry[f"compression_{side}"] = float(blocks.sum() / kept)
            entry[f"cache_compression_{side}"] = members[0][f"cache_compression_{side}"]
            for which in ("k_error", "v_error"):
                errors = np.array([row[f"{which}_{side}"] for row in members])
                entry[f"{which}_{side}"] = float(np.sqrt((blocks * errors**2).sum() / blocks.sum()))
        entries.append(entry)
    return entries
