"""The benchmark of fusion counts what it says, and its data fuse as they should."""

from __future__ import annotations

import pytest
import torch
from caches import generator

from ratedist.errors import InputError
from ratedist.kernels.bench.allocations import peak_extra_bytes
from ratedist.kernels.bench.fusion import DATASETS, bench_fusion, needed_products, replay, synthetic_layer
from ratedist.kernels.fusion import _match_cpu
from ratedist.kernels.fusion.fuse import Fusion, fuse
from ratedist.kernels.layout import PagedLayer

CPU = torch.device("cpu")
SMALL = {"block_size": 4, "kv_heads": 2, "head_dim": 32}


def layer(requests: int = 24, blocks: int = 12, dataset: str = "fusing", seed: int = 0) -> PagedLayer:
    return synthetic_layer(requests, blocks, cosines=DATASETS[dataset], seed=seed, **SMALL)


def kept_before(fusion: Fusion, low: int, high: int) -> int:
    """Blocks of requests ``low`` … ``high - 1`` that are kept."""
    rows = fusion.representative[low:high]
    own = torch.arange(fusion.representative.numel()).view_as(fusion.representative)[low:high]
    return int((rows == own).sum())


@pytest.mark.parametrize("threshold", [0.5, 0.75, 1.0])
def test_products_of_the_leader_are_those_of_the_definition(threshold: float) -> None:
    made = layer(requests=13)
    fusion = fuse(made, threshold=threshold, variant="leader")
    needed = sum(12 * kept_before(fusion, 0, unit) for unit in range(1, 13))
    shapes = needed_products(_match_cpu, made, threshold, "leader")
    assert sum(rows * cols for rows, cols in shapes) == needed
    # Few products: one for each inner node of the binary tree over the units.
    assert len(shapes) == 12


def test_products_of_the_tree_are_those_of_the_definition() -> None:
    made = layer(requests=8)
    shapes = needed_products(_match_cpu, made, 0.6, "tree")
    needed = 0
    for width in (1, 2, 4):
        for low in range(0, 8, 2 * width):
            sides = []
            for start in (low, low + width):
                part = PagedLayer(made.k, made.v, subset(made, start, start + width))
                sides.append(fuse(part, threshold=0.6, variant="tree").kept)
            needed += sides[0] * sides[1]
    assert sum(rows * cols for rows, cols in shapes) == needed


def subset(made: PagedLayer, low: int, high: int):  # type: ignore[no-untyped-def]
    table = made.table
    return type(table)(
        table.entries[low:high], table.lengths[low:high], table.domains[low:high], table.block_size
    )


def test_replay_is_the_same_number_of_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    multiply = torch.mm

    def counting(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        done.append(a.shape[0] * a.shape[1] * b.shape[1])
        assert a.is_contiguous()
        assert b.T.is_contiguous()
        return multiply(a, b, out=out)

    made = layer()
    for variant in ("leader", "tree"):
        shapes = needed_products(_match_cpu, made, 0.75, variant)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "mm", counting)
            done.clear()
            replay(made, shapes)
            needed = sum(done)
            done.clear()
            fuse(made, threshold=0.75, variant=variant, backend="cpu")
            # The fusion computes every score once and none in vain.
            assert sum(done) == needed == 256 * sum(rows * cols for rows, cols in shapes)


@pytest.mark.parametrize("variant", ["leader", "tree"])
def test_data_sets_fuse_as_their_names_say(variant: str) -> None:
    fusing = synthetic_layer(128, 64, cosines=DATASETS["fusing"], seed=0, **SMALL)
    assert 1.5 <= fuse(fusing, threshold=0.75, variant=variant).compression <= 4
    apart = synthetic_layer(128, 64, cosines=DATASETS["apart"], seed=0, **SMALL)
    assert fuse(apart, threshold=0.6, variant=variant).absorbed == 0


def test_synthetic_layer_has_a_common_mean_and_a_position_effect() -> None:
    made = synthetic_layer(40, 6, cosines=((1.0, 0.8, 0.8),), seed=3, block_size=16)
    flat = made.k[made.table.entries.flatten().long()].flatten(1).double().view(40, 6, -1)
    direction = flat / flat.norm(dim=-1, keepdim=True)
    same = torch.einsum("ibd,jbd->ijb", direction, direction)[~torch.eye(40, dtype=torch.bool)]
    # 0.8² at one position; 0.8 of this at two, up to the chance similarity of the positions' own parts.
    assert float(same.mean()) == pytest.approx(0.64, abs=0.005)
    mean = direction.mean(0) / 0.8
    across = (mean @ mean.T)[~torch.eye(6, dtype=torch.bool)]
    assert float(across.mean()) == pytest.approx(0.8, abs=0.02)
    assert sorted(made.table.entries.flatten().tolist()) == list(range(240))
    assert made.table.entries.flatten().tolist() != list(range(240))
    assert float(flat.norm(dim=-1).log().std()) == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("variant", "criterion", "dtype"),
    [
        ("leader", "keys", torch.float32),
        ("tree", "both", torch.float32),
        ("leader", "both", torch.float16),
        ("tree", "keys", torch.bfloat16),
    ],
    ids=str,
)
def test_extra_memory_is_a_tenth_of_the_layer(variant: str, criterion: str, dtype: torch.dtype) -> None:
    made = synthetic_layer(32, 32, cosines=DATASETS["fusing"], seed=0, head_dim=32, kv_heads=2)
    # Half of the requests once more, so that exact duplicates are hashed and compared as well.
    slots = made.table.entries.view(2, -1).long()
    for pool in (made.k, made.v):
        pool[slots[1]] = pool[slots[0]]
    # Values like the keys, so that both criteria fuse.
    made = PagedLayer(made.k.to(dtype), (made.k + 1e-3 * made.v).to(dtype), made.table)
    size = 2 * made.k.numel() * made.k.element_size()

    def run(scale: str) -> Fusion:
        return fuse(made, threshold=0.6, variant=variant, criterion=criterion, scale=scale, backend="cpu")

    assert run("own-norm").exact == 32 * 16
    assert run("own-norm").absorbed > 32 * 16
    for scale in ("own-norm", "projection"):
        assert peak_extra_bytes(lambda scale=scale: run(scale), CPU) <= 0.1 * size


def test_peak_counts_temporaries_and_forgets_what_was_freed() -> None:
    def call() -> torch.Tensor:
        a = torch.empty(1000, 1000)
        b = torch.empty(500, 1000)
        del a
        c = torch.empty(1000, 250)
        assert len(c) == 1000
        return b

    assert peak_extra_bytes(call, CPU) == 6_000_000
    x = torch.randn(1000, 1000, generator=generator(0))
    # Sorting returns values (4 bytes each) and indices (8), and works in place on them.
    assert peak_extra_bytes(lambda: x.sort(dim=0), CPU) == pytest.approx(12_000_000, rel=0.01)
    # The temporary sum is held until the product is there.
    assert peak_extra_bytes(lambda: (x + x) * x, CPU) == pytest.approx(8_000_000, rel=0.01)
    assert peak_extra_bytes(lambda: None, CPU) == 0


def test_rows_of_the_benchmark() -> None:
    rows = list(
        bench_fusion(requests=4, blocks=3, thresholds=(0.5,), datasets=("dense",), repeats=1, **SMALL)
    )
    assert [row["name"] for row in rows] == ["fusion/dense/leader/0.5", "fusion/dense/tree/0.5"]
    for row in rows:
        assert row["ratio"] == row["seconds"] / row["floor_seconds"]
        assert row["extra_share"] == row["extra_bytes"] / (2 * 4 * 12 * 256)
        assert row["compression"] == row["candidates"] / row["kept"]
        assert (row["candidates"], row["products"]) == (12, 3)
        assert (row["backend"], row["device"]) == ("cpu", "cpu")
        assert row["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("leader", "components")}, "variant = 'components': must be one of leader, tree"),
        ({"requests": 1}, "requests = 1: must be at least 2"),
        ({"blocks": -1}, "blocks = -1: must be at least 1"),
        ({"repeats": 0}, "repeats = 0: must be at least 1"),
        ({"datasets": ("real",)}, "dataset = 'real': must be one of fusing, apart, dense"),
        ({"backend": "reference"}, "backend = 'reference': is not measured"),
        ({"backend": "gpu"}, "backend = 'gpu': must be one of"),
        ({"variants": ("star",)}, "variant = 'star': must be one of leader, tree"),
        ({"thresholds": (0.5, 2.0)}, "threshold = 2.0: must lie within"),
        ({"device": "abacus"}, "device = 'abacus': must be a device that torch can use here"),
    ],
)
def test_bad_input(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_fusion(**{"requests": 2, "blocks": 2, **SMALL, **options})  # type: ignore[arg-type]
