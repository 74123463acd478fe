"""Capturing a model's cache, and captures on disk."""
