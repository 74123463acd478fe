"""Versions of one content, found in residuals."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.sim.atoms import byte_groups, find_atoms


def directions(count: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def versions(
    contents: int, each: int, correlation: float, dimension: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    centres = np.repeat(directions(contents, dimension, rng), each, axis=0)
    own = directions(contents * each, dimension, rng)
    rows = np.sqrt(correlation) * centres + np.sqrt(1 - correlation) * own
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(contents), each)


def test_finds_planted_versions_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    planted, of = versions(12, 4, 0.85, 200, rng)
    keys = np.concatenate([planted, directions(150, 200, rng)])
    values = np.concatenate([versions(12, 4, 0.6, 200, rng)[0], directions(150, 200, rng)])
    atoms = find_atoms(keys, values)
    coarse = atoms.groups[:, 0]
    assert np.array_equal(coarse[:48, None] == coarse[:48], of[:, None] == of)
    assert np.unique(coarse[48:]).size == 150
    # 0.85 lies between two cuts: the pairs' finest common group is of the lower one.
    level = int(np.flatnonzero(atoms.cuts <= 0.85)[-1])
    assert atoms.keys[level] == pytest.approx(0.85, abs=0.02)
    assert atoms.values[level] == pytest.approx(0.6, abs=0.05)


def test_low_dimension_makes_no_versions_by_chance() -> None:
    rng = np.random.default_rng(1)
    for dimension in (10, 40):
        rows = directions(300, dimension, rng)
        assert np.unique(find_atoms(rows, rows).groups[:, 0]).size > 290


def test_finer_groups_lie_within_coarser_ones() -> None:
    rng = np.random.default_rng(2)
    keys = np.concatenate([versions(6, 5, c, 100, rng)[0] for c in (0.55, 0.75, 0.95)])
    groups = find_atoms(keys, keys).groups
    for level in range(groups.shape[1] - 1):
        pairs = np.unique(groups[:, level : level + 2], axis=0)
        assert len(pairs) == np.unique(groups[:, level + 1]).size


def test_one_block() -> None:
    row = np.ones((1, 4), dtype=np.float32) / 2
    assert find_atoms(row, row).groups.shape[0] == 1


def test_byte_groups_need_keys_and_values() -> None:
    a = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [0.0, -0.0]])
    b = np.array([[5.0], [6.0], [5.0], [5.0]])
    assert byte_groups(a, b).tolist() == [0, 1, 0, 3]
