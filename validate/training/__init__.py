"""Training small models from random weights, so that other architectures can be captured anywhere."""
