"""Paged KV caches, and the kernels that fuse their blocks and attend over the fused result."""
