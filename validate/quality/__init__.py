"""What a compressed cache does to a model's output, beside rivals at equal bytes."""
