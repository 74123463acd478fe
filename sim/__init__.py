"""Synthetic KV blocks and workloads."""
