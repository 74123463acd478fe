"""Capture caches of real models, fuse them, and compare what was predicted with what is measured."""
