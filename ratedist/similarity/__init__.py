"""Laws of the similarity of two blocks, one per file."""
