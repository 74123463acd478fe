"""Fusion where all pairs are too many: hashing nominates pairs, and each of them is checked."""
