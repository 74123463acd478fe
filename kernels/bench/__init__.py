"""Benchmarks of the kernels beside floors measured in the same run, and what only a GPU can show."""
