"""What lies behind a captured layer's curve: counts of matches, similarity by position, the worst merges."""
