"""Fusion of similar blocks: criteria, variants, the space in which blocks are matched, what came of it."""
