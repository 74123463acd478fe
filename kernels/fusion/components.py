"""The components variant: whatever is linked by a chain of scores above the threshold shares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LowestLabel", "fuse_components"]

LowestLabel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of candidates (by position), their units and labels (int32): the lowest label among those of other units
whose score with each exceeds the threshold, or a larger number than any label."""


def fuse_components(units: list[Tensor], lowest_label: LowestLabel, absorber: Tensor) -> None:
    """Every connected component of the graph of scores above the threshold takes its lowest block.

    Blocks of different units are neighbours where their score exceeds the threshold. Every block starts
    as a component of its own; in a round, each component joins the lowest one that it is next to, and
    chains of joins are followed to their ends. All but the components lower than all their neighbours join
    in a round, so few rounds suffice (one more finds nothing to do); each scores all pairs once, both ways.
    Writes the absorber of every block of ``units``.
    """
    blocks = torch.cat(units)
    sizes = torch.tensor([len(unit) for unit in units], device=blocks.device)
    unit = torch.arange(len(units), device=blocks.device).repeat_interleave(sizes).int()
    own = torch.arange(len(blocks), device=blocks.device)
    label = own
    while True:
        near = torch.minimum(lowest_label(blocks, unit, label.int()).long(), label)
        parent = own.scatter_reduce(0, label, near, "amin")
        if torch.equal(parent[label], label):
            break
        # Parents are never higher, so this ends.
        while not torch.equal(parent[parent], parent):
            parent = parent[parent]
        label = parent[label]
    absorber[blocks] = blocks[label]
