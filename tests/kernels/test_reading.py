"""Reading blocks back with rotary shifts and means, and writing them out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from caches import make_layer, with_reading

from ratedist.errors import InputError
from ratedist.kernels.adapters.materialise import materialise
from ratedist.kernels.adapters.vllm import VLLM_LAYOUTS, to_vllm
from ratedist.kernels.compact import compact, pool_bytes
from ratedist.kernels.fusion.fuse import fuse
from ratedist.kernels.layout import FusedLayer
from ratedist.kernels.reading import Reading
from ratedist.kernels.restore import block_errors, read_blocks
from ratedist.kernels.rotary import Rotary, rotate


def transformed_layer(dtype: torch.dtype = torch.float32, seed: int = 0) -> FusedLayer:
    """A fused layer some of whose blocks are read with a shift, with means, with both or with neither."""
    layer = make_layer((9, 0, 17, 6), head_dim=10, dtype=dtype, seed=seed)
    assert isinstance(layer, FusedLayer)
    return with_reading(layer, "half", 8, seed)


def used_logical(layer: FusedLayer) -> torch.Tensor:
    used = torch.arange(layer.table.entries.shape[1]) < layer.table.used_blocks[:, None]
    return torch.nonzero(used.flatten()).flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_block_is_read_as_the_formula_says(dtype: torch.dtype) -> None:
    """key = M[add] + k_scale (R(shift) x - M[subtract]), block by block."""
    layer = transformed_layer(dtype)
    reading = layer.reading
    assert reading is not None
    assert reading.means is not None
    assert reading.shift is not None
    assert reading.rotary is not None
    logical = used_logical(layer)
    read = {part: read_blocks(layer, part, logical) for part in ("k", "v")}
    plain = 0
    for n, (i, b) in enumerate((int(a) // 7, int(a) % 7) for a in logical):
        assert layer.table.entries.shape[1] == 7
        add, subtract = int(reading.means.add[i, b]), int(reading.means.subtract[i, b])
        for part, pool, scale, mean in (
            ("k", layer.k, layer.k_scale, reading.means.k),
            ("v", layer.v, layer.v_scale, reading.means.v),
        ):
            x = pool[layer.table.entries[i, b]].float()
            if part == "k":
                x = rotate(x[None], reading.shift[i, b : b + 1], reading.rotary)[0]
            if add >= 0:
                expected = mean[add].float() + scale[i, b] * (x - mean[subtract].float())
            else:
                expected = scale[i, b] * x
                plain += 1
            torch.testing.assert_close(read[part][n], expected, equal_nan=True)
    assert 0 < plain < 2 * len(logical)


def test_scale_one_without_shift_or_mean_keeps_every_bit() -> None:
    layer = transformed_layer()
    reading = layer.reading
    assert reading is not None
    assert reading.means is not None
    assert reading.shift is not None
    alone = (reading.shift == 0) & (reading.means.add < 0)
    layer = dataclasses.replace(layer, k_scale=torch.where(alone, 1.0, layer.k_scale))
    logical = used_logical(layer)[alone.flatten()[used_logical(layer)]]
    assert len(logical) > 1
    stored = layer.k[layer.table.entries.flatten()[logical].long()]
    torch.testing.assert_close(read_blocks(layer, "k", logical), stored, rtol=0, atol=0, equal_nan=True)


def test_writing_out_and_compacting_read_the_same() -> None:
    layer = transformed_layer()
    logical = used_logical(layer)
    written, dense = materialise(layer), compact(layer)
    assert written.reading is None
    assert len(dense.k) < len(layer.k)
    for part in ("k", "v"):
        expected = read_blocks(layer, part, logical)
        for other in (written, dense):
            torch.testing.assert_close(
                read_blocks(other, part, logical), expected, rtol=0, atol=0, equal_nan=True
            )
    finite = make_layer((9, 0, 17, 6), head_dim=10, fused=False)
    errors = block_errors(finite, layer)  # type: ignore[arg-type]
    assert float(errors[0].nan_to_num().max()) > 0


def test_bytes_count_what_reading_takes() -> None:
    layer = transformed_layer()
    entries = layer.table.entries.numel()
    extra = pool_bytes(layer) - pool_bytes(dataclasses.replace(layer, reading=None))
    assert extra == 4 * 3 * entries + 2 * 4 * 3 * layer.k[0].numel()


def test_fusing_again_and_exporting_are_refused() -> None:
    layer = transformed_layer()
    with pytest.raises(InputError, match="materialise"):
        fuse(layer, threshold=0.9)
    for scales in ("refuse", "separate"):
        with pytest.raises(InputError, match="scales='materialise'"):
            to_vllm(layer, layout=next(iter(VLLM_LAYOUTS)), scales=scales)


def test_refuses_what_does_not_fit() -> None:
    layer = transformed_layer()
    reading = layer.reading
    assert reading is not None
    means, shift = reading.means, reading.shift
    assert means is not None
    assert shift is not None
    with pytest.raises(InputError, match="give both or neither"):
        Reading(shift=shift)
    with pytest.raises(InputError, match="must be int32 of shape"):
        Reading(shift.long(), reading.rotary)
    with pytest.raises(InputError, match="both of its means or neither"):
        dataclasses.replace(means, subtract=torch.full_like(means.add, -1))
    with pytest.raises(InputError, match="must name one of 3 means"):
        dataclasses.replace(means, add=means.add + 3)
    with pytest.raises(InputError, match="must be int32"):
        dataclasses.replace(means, add=means.add.long())
    with pytest.raises(InputError, match="of one shape"):
        dataclasses.replace(means, k=means.k[..., 1:])
    with pytest.raises(InputError, match="shape of the block table"):
        dataclasses.replace(layer, reading=dataclasses.replace(reading, shift=shift[1:]))
    with pytest.raises(InputError, match="like the pool"):
        dataclasses.replace(
            layer,
            reading=dataclasses.replace(
                reading, means=dataclasses.replace(means, k=means.k.half(), v=means.v.half())
            ),
        )
    with pytest.raises(InputError, match="more channels than a head has"):
        dataclasses.replace(layer, reading=dataclasses.replace(reading, rotary=Rotary.from_base(9.0, 12)))
