"""Attention over a paged cache, fused or not: its definition, vectorised torch, and Triton kernels."""

from ratedist.kernels.attention.operations import (
    BACKENDS,
    merge_attention,
    paged_attention,
    paged_decode_attention,
)

__all__ = ["BACKENDS", "merge_attention", "paged_attention", "paged_decode_attention"]
