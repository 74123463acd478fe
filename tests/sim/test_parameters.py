"""Every field of the parameters is checked, and says what would do."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from ratedist.errors import InputError
from ratedist.sim.parameters import BlockParameters

SMALL: dict[str, Any] = {"block_size": 4, "kv_heads": 2, "head_dim": 16}

BAD = [
    ({"block_size": 0}, r"block_size = 0: must be a whole number of at least 1"),
    ({"kv_heads": 1.5}, r"kv_heads = 1.5: must be a whole number"),
    ({"head_dim": 0}, r"head_dim = 0"),
    ({"head_dim": 15}, r"head_dim = 15: must be even"),
    ({"common_k": 1.2}, r"common_k = 1.2: is a share and must lie in \[0, 1\]"),
    ({"common_k": 1.0}, r"position_k = 0.0: must leave a residual beside common_k = 1.0"),
    ({"common_v": 1.0}, r"common_v = 1.0: must be below 1"),
    ({"common_v": float("nan")}, r"common_v = nan: must be finite"),
    ({"position_k": 0.5}, r"position_k = 0.5: must leave a residual"),
    ({"rotary_base": 1.0}, r"rotary_base = 1.0: must be above 1, or None"),
    ({"spread_k": -0.1}, r"spread_k = -0.1: must not be negative"),
    ({"spread_k": 0.1}, r"spread_k = 0.1: must keep the alignment 0.866"),
    ({"common_v": 0.0, "spread_v": 0.1}, r"spread_v = 0.1: .*needs a common direction"),
    ({"dimension_k": 0}, r"dimension_k = 0: must be a whole number of at least 1"),
    ({"dimension_k": 200}, r"dimension_k = 200: must be at most 127"),
    ({"dimension_v": 129, "common_v": 0.0}, r"dimension_v = 129: must be at most 128"),
    ({"topics": 2, "topic_k": 0.1, "dimension_k": 1}, r"dimension_k = 1: must be a whole .* at least 2"),
    ({"coupling": 2.0}, r"coupling = 2.0: is a correlation"),
    ({"norm_coupling": -2.0}, r"norm_coupling = -2.0: is a correlation"),
    ({"topics": -1}, r"topics = -1"),
    ({"topics": 2, "topics_per_request": 3}, r"topics_per_request = 3: must be at most topics = 2"),
    ({"topic_k": 2.0}, r"topic_k = 2.0: is a share"),
    ({"topic_v": -1.0}, r"topic_v = -1.0: is a share"),
    ({"prefix_blocks": -1}, r"prefix_blocks = -1"),
    ({"prefix_groups": 0}, r"prefix_groups = 0"),
    ({"chunks": -1}, r"chunks = -1"),
    ({"chunk_share": 0.5}, r"chunks = 0: must be at least 1 where chunk_share is 0.5"),
    ({"chunk_blocks": 0}, r"chunk_blocks = 0"),
    ({"chunk_skew": -1.0}, r"chunk_skew = -1.0: must not be negative"),
    ({"chunk_reuse": "steal"}, r"chunk_reuse = 'steal': must be copy or recompute"),
    ({"edit_share": 0.5}, r"edit_sources = 0: must be at least 1 where edit_share is 0.5"),
    ({"edit_sources": 2, "edit_similarity": 0.5}, r"edit_similarity = 0.5: must lie in \[0.75, 1\]"),
    ({"norm_k": 0.0}, r"norm_k = 0.0: must be positive"),
    ({"norm_v": -1.0}, r"norm_v = -1.0: must be positive"),
    ({"norm_first": 0.0}, r"norm_first = 0.0: must be positive"),
    ({"norm_spread_k": -1.0}, r"norm_spread_k = -1.0"),
    ({"norm_spread_v": float("inf")}, r"norm_spread_v = inf: must be finite"),
    ({"norm_slope": float("nan")}, r"norm_slope = nan"),
    ({"domains": 0}, r"domains = 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[",".join(changes) for changes, _ in BAD])
def test_a_bad_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockParameters(**{**SMALL, **changes})


def test_every_field_has_a_bad_value_above() -> None:
    tested = {name for changes, _ in BAD for name in changes}
    assert {item.name for item in fields(BlockParameters)} == tested


def test_named_laws_refuse_what_they_cannot_be() -> None:
    with pytest.raises(InputError, match=r"dimension = 1: must be a whole number of at least 2"):
        BlockParameters.uniform(1)
    with pytest.raises(InputError, match=r"mean = -0.1: must lie in \[0, 1\)"):
        BlockParameters.gaussian(-0.1, 0.1)
    with pytest.raises(InputError, match=r"std = 0: must be positive"):
        BlockParameters.gaussian(0.5, 0)
    with pytest.raises(InputError, match=r"std = 0.9: must be at most 0.354"):
        BlockParameters.gaussian(0.5, 0.9)
