"""Simulation of the point process behind every recursion, and of real directions, without any block."""
