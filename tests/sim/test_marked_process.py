"""Monte Carlo of the position-marked process."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.errors import InputError
from ratedist.fusion import leader_marked, tree_marked
from ratedist.sim.marked_process import simulate_marked


@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_agrees_with_the_recursion(variant: str) -> None:
    """``simulate_marked`` against ``leader_marked`` and ``tree_marked``, unequal lengths included."""
    recursion = leader_marked if variant == "leader" else tree_marked
    rng = np.random.default_rng(0)
    for chance in (0.005 * rng.random((6, 6)), 0.05 * np.exp(-np.abs(np.subtract.outer(range(6), range(6))))):
        lengths = [6, 3, 6, 6, 1, 6, 6, 5, 6]
        kept = simulate_marked(chance, lengths, variant=variant, runs=4000, rng=rng)
        expected = float(recursion(chance[None], lengths, thresholds=[0.5], matches=False).total_kept[0])
        error = kept.std(ddof=1) / np.sqrt(kept.size)
        # The recursion closes the moments: half a per mille of bias is within its own accuracy.
        assert abs(kept.mean() - expected) < 4 * error + 5e-4 * expected


@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_agrees_with_a_simulation_pair_by_pair(variant: str) -> None:
    """An oracle that draws one exceedance per pair of blocks."""
    rng = np.random.default_rng(1)
    chance = np.array([[0.3, 0.1], [0.0, 0.2]])
    lengths = [2, 2, 1]

    def absorb(kept: list[int], arriving: list[int]) -> list[int]:
        return kept + [i for i in arriving if not any(rng.random() < chance[i, j] for j in kept)]

    oracle = []
    for _ in range(6000):
        kept = [0, 1]
        kept = absorb(kept, [0, 1])
        oracle.append(len(absorb(kept, [0])))
    kept_runs = simulate_marked(chance, lengths, variant=variant, runs=6000, rng=rng)
    spread = np.sqrt((np.var(oracle) + kept_runs.var()) / 6000)
    assert abs(kept_runs.mean() - np.mean(oracle)) < 4 * spread


def test_certain_exceedance_keeps_the_first_request_only() -> None:
    kept = simulate_marked(np.ones((3, 3)), [3, 3, 2], variant="tree", runs=5, rng=np.random.default_rng(2))
    assert kept.tolist() == [3] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exceedance": np.zeros((2, 3))}, r"exceedance = \(2, 3\): must be a square matrix"),
        ({"exceedance": np.full((2, 2), 1.5)}, r"exceedance .* must be chances within \[0, 1\]"),
        ({"full_blocks": [3]}, r"full_blocks = \[3\]: must lie in 1 … 2"),
        ({"full_blocks": []}, r"full_blocks = \[\]: must lie in"),
        ({"runs": 1}, r"runs = 1: must be at least 2"),
        ({"variant": "bush"}, r"variant = 'bush': must be leader or tree"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    arguments = {
        "exceedance": np.zeros((2, 2)),
        "full_blocks": [2, 2],
        "runs": 2,
        "variant": "leader",
        **changes,
    }
    with pytest.raises(InputError, match=message):
        simulate_marked(
            arguments["exceedance"],
            arguments["full_blocks"],
            variant=arguments["variant"],
            runs=arguments["runs"],
            rng=np.random.default_rng(0),
        )
