"""What fuse refuses, and how it says so."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from caches import make_layer
from strategies import EXAMPLES

from ratedist.errors import InputError
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import FusedLayer, PagedLayer


def layer(**options: object) -> PagedLayer:
    made = make_layer([9, 0, 4], fused=False, **options)  # type: ignore[arg-type]
    assert isinstance(made, PagedLayer)
    return made


@pytest.fixture(params=EXAMPLES)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("threshold", [float("nan"), 1.0000001, -1.5, float("inf")])
def test_threshold_outside_the_range(threshold: float) -> None:
    with pytest.raises(
        InputError, match=rf"threshold = {re.escape(repr(threshold))}: must lie within \[-1, 1\]"
    ):
        fuse(layer(), threshold=threshold)


@pytest.mark.parametrize("threshold", ["0.5", None, True])
def test_threshold_that_is_no_number(threshold: object) -> None:
    with pytest.raises(InputError, match="must be a number within"):
        fuse(layer(), threshold=threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [-1, 1, np.float32(0.5), np.float64(0.25)])
def test_threshold_of_any_number_type(threshold: float) -> None:
    assert fuse(layer(), threshold=threshold).candidates == 3


@pytest.mark.parametrize(
    ("argument", "known"),
    [
        ("variant", "leader, tree"),
        ("criterion", "keys, both"),
        ("scale", "own-norm, raw, projection"),
        ("backend", "auto, reference, cpu, triton"),
    ],
)
def test_unknown_name_lists_the_known_ones(argument: str, known: str) -> None:
    with pytest.raises(InputError, match=f"{argument} = 'centroids': must be one of {known}"):
        fuse(layer(), threshold=0.5, **{argument: "centroids"})  # type: ignore[arg-type]


def test_something_else_than_a_layer() -> None:
    with pytest.raises(InputError, match="layer = 'Tensor': must be a PagedLayer or a FusedLayer"):
        fuse(torch.zeros(3), threshold=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", ["k", "v"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("request_", "block", "token"), [(0, 1, 3), (0, 2, 0), (2, 0, 0)])
def test_non_finite_values_are_located(
    backend: str, pool: str, bad: float, request_: int, block: int, token: int
) -> None:
    broken = layer()
    getattr(broken, pool)[broken.table.entries[request_, block].long(), token, 1, 2] = bad
    with pytest.raises(
        InputError,
        match=rf"^{pool} = {bad}: layer 17, request \d, block \d holds NaN or infinity; every value must be",
    ) as caught:
        fuse(broken, threshold=0.5, backend=backend, layer_name=17)
    place = re.search(r"request (\d), block (\d)", str(caught.value))
    assert place is not None
    # The block that is named reads the broken one (it may be aliased).
    assert broken.table.entries[int(place[1]), int(place[2])] == broken.table.entries[request_, block]


def test_the_layer_is_named_only_where_it_is_known(backend: str) -> None:
    broken = layer()
    broken.k[broken.table.entries[0, 0].long()] = float("nan")
    with pytest.raises(InputError, match=r"^k = nan: request 0, block 0 holds"):
        fuse(broken, threshold=0.5, backend=backend)


def test_what_no_request_holds_may_be_anything(backend: str) -> None:
    # make_layer poisons unused blocks, tokens beyond the length and scales beyond the end with NaN.
    for fused in (False, True):
        poisoned = make_layer([9, 0, 4], fused=fused)
        assert bool(torch.isnan(poisoned.k).any())
        assert fuse(poisoned, threshold=0.5, backend=backend).candidates == 3


@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter's numpy
def test_norm_beyond_float32(backend: str) -> None:
    large = layer()
    large.v[large.table.entries[2, 0].long()] = 1e19
    with pytest.raises(
        InputError, match=r"^v = .*: layer last, request \d, block \d has a norm whose square"
    ):
        fuse(large, threshold=0.5, backend=backend, layer_name="last")


@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
def test_scale_that_is_not_finite(backend: str, name: str) -> None:
    fused = make_layer([9, 0, 4])
    assert isinstance(fused, FusedLayer)
    getattr(fused, name)[0, 1] = float("inf")
    with pytest.raises(
        InputError, match=rf"^{name} = inf: layer 3, request 0, block 1 must have a finite scale"
    ):
        fuse(fused, threshold=0.5, backend=backend, layer_name=3)
