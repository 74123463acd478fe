"""A small serving loop: continuous batching over a fixed pool of KV blocks, with and without fusion."""
