"""Rows of a quality record: what one method did to one workload, with the requests that suffered most."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ratedist.validate.quality.continuation import Quality
from ratedist.validate.quality.methods import Method, settings

__all__ = ["clustered_error", "quality_row", "worst_requests"]

WORST = 5
"""Requests that a row lists, and merges that it lists of each."""


def quality_row(workload: str, method: Method, quality: Quality, layers: tuple[int, ...]) -> dict[str, Any]:
    """The row of one method.

    Errors are root mean squares: ``k_error`` and ``v_error`` over all full blocks of the layers to fuse,
    ``attention_error`` over layers and requests; the lists beside them the same by layer and by request.
    Standard errors take requests as the clusters, since the tokens of one request are not independent.

    Args:
        workload: its name.
        method: what was done.
        quality: what it did.
        layers: layers to fuse.
    """
    row: dict[str, Any] = {
        "workload": workload,
        **settings(method),
        "requests": len(quality.bytes),
        "continuation": quality.kl.shape[1],
        "bytes": float(quality.bytes.sum()),
        "unfused_bytes": float(quality.unfused_bytes.sum()),
        "compression": quality.compression,
    }
    errors = {"k": quality.k_error2, "v": quality.v_error2, "attention": quality.attention_error2}
    for name, error2 in errors.items():
        row[f"{name}_error"] = None if error2 is None else _finite(np.sqrt(error2.mean()))
    row |= {
        "kl_mean": float(quality.kl.mean()),
        "kl_mean_se": clustered_error(quality.kl),
        "kl_p99": float(np.quantile(quality.kl, 0.99)),
        "same_top1": float(quality.same_top1.mean()),
        "delta_log_ppl": float(quality.delta_nll.mean()),
        "delta_log_ppl_se": clustered_error(quality.delta_nll),
        "kl_by_position": quality.kl.mean(0).tolist(),
        "by_request": {
            "bytes": quality.bytes.tolist(),
            "unfused_bytes": quality.unfused_bytes.tolist(),
            "kl": quality.kl.mean(1).tolist(),
            "same_top1": quality.same_top1.mean(1).tolist(),
            "delta_log_ppl": quality.delta_nll.mean(1).tolist(),
        },
        "by_layer": {"layer": list(layers)},
    }
    for name, error2 in errors.items():
        row["by_request"][f"{name}_error"] = None if error2 is None else _finites(error2.mean(0))
        row["by_layer"][f"{name}_error"] = None if error2 is None else _finites(error2.mean(1))
    row["worst_requests"] = worst_requests(quality)
    return row


def worst_requests(quality: Quality, count: int = WORST, merges: int = WORST) -> list[dict[str, Any]]:
    """The requests of highest mean KL, with what was merged into them.

    Args:
        quality: what a method did.
        count: requests to list.
        merges: blocks to list of each, of the lowest score.

    Returns:
        By falling KL ``{request, kl_mean, delta_log_ppl, absorbed, exact, partners, merges}``: blocks over
        all fused layers that are read from another request's block, and of score 1 among them (byte-equal);
        the requests read from most, with the number of blocks; and single blocks ``{layer, block,
        with_request, with_block, score}`` by rising score against the block that stands for them.
    """
    kl = quality.kl.mean(1)
    found = []
    for request in np.argsort(-kl, kind="stable")[:count].tolist():
        lost: list[dict[str, Any]] = []
        exact = 0
        for layer, fusion in quality.fusions.items():
            blocks = fusion.representative.shape[1]
            own = torch.arange(blocks, device=fusion.score.device) + request * blocks
            by = fusion.representative[request]
            for block in torch.nonzero((by >= 0) & (by != own)).flatten().tolist():
                score = float(fusion.score[request, block])
                exact += score == 1.0
                lost.append(
                    {
                        "layer": layer,
                        "block": block,
                        "with_request": int(by[block]) // blocks,
                        "with_block": int(by[block]) % blocks,
                        "score": score,
                    }
                )
        partners = Counter(merge["with_request"] for merge in lost if merge["score"] < 1.0)
        found.append(
            {
                "request": request,
                "kl_mean": float(kl[request]),
                "delta_log_ppl": float(quality.delta_nll[request].mean()),
                "absorbed": len(lost),
                "exact": exact,
                "partners": [list(partner) for partner in partners.most_common(3)],
                "merges": sorted(lost, key=lambda merge: merge["score"])[:merges],
            }
        )
    return found


def clustered_error(values: ArrayLike) -> float | None:
    """Standard error of the mean of (requests, tokens), with requests as clusters of equal size.

    sqrt(Σ (m_r − m)² / (R (R − 1))) over the requests' means m_r
    (tests/validate/quality/test_quality_rows.py::test_clustered_error_covers); None for a single request.
    """
    means: NDArray[np.float64] = np.asarray(values, dtype=np.float64).mean(1)
    if len(means) < 2:
        return None
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def _finite(error: float) -> float | None:
    """None where a block of zeros was read back as something else: no relative error exists."""
    return float(error) if np.isfinite(error) else None


def _finites(error2: NDArray[np.float64]) -> list[float | None]:
    return [_finite(error) for error in np.sqrt(error2)]
