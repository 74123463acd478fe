"""Serving engines' paged layouts, in and out."""
