"""Figures, drawn from result records alone."""
