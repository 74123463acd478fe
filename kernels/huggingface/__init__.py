"""A fused cache for Hugging Face models, and what makes their attention read it."""

from ratedist.kernels.huggingface.cache import (
    ATTENTION,
    CacheReport,
    FusedCache,
    LayerReport,
    default_layers,
    fused_generation,
)

__all__ = ["ATTENTION", "CacheReport", "FusedCache", "LayerReport", "default_layers", "fused_generation"]
