"""From the blocks of a few captured requests to the sample of similarities that predictors are fitted to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratedist.kernels.fusion.candidates import find_candidates
from ratedist.kernels.fusion.exact import byte_classes
from ratedist.kernels.layout import PagedLayer
from ratedist.predictors import PairSample

__all__ = ["pair_sample"]


def pair_sample(layer: PagedLayer) -> PairSample:
    """Similarities of all pairs of full blocks of ``layer``, keys and values.

    Products are float32 like those of the kernels, whatever the dtype of the cache. With N full
    blocks it takes two (N, N) float32 matrices and one float32 copy of the keys or values.

    Raises InputError where no two requests of one domain have a full block.
    """
    blocks = find_candidates(layer)
    max_blocks = layer.table.entries.shape[1]
    ids, content = torch.unique(blocks.physical, return_inverse=True)
    duplicate = byte_classes(layer.k, layer.v, ids)[content]
    s_k, k_norm = _cosines(layer.k[blocks.physical])
    s_v, v_norm = _cosines(layer.v[blocks.physical])
    return PairSample(
        s_k=s_k,
        s_v=s_v,
        request=blocks.request.cpu().numpy(),
        position=(blocks.logical % max(1, max_blocks)).cpu().numpy(),
        k_norm=k_norm,
        v_norm=v_norm,
        duplicate=duplicate.cpu().numpy(),
        domain=blocks.domain.cpu().numpy(),
    )


def _cosines(pool: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, N) cosine similarities and (N,) norms of N blocks; similarity 0 with a block of norm zero."""
    flat = pool.float().flatten(1)
    norm = torch.linalg.vector_norm(flat, dim=1)
    inverse = torch.where(norm > 0, norm.reciprocal(), 0.0)
    similarity = (flat @ flat.T).mul_(inverse[:, None]).mul_(inverse).clamp_(-1.0, 1.0)
    return similarity.cpu().numpy(), norm.cpu().numpy()
