"""Fusing other requests by a plan, for real, beside what was predicted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ratedist.validate.planning.plan_file import CachePlan
from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method

__all__ = ["check_plan"]


def check_plan(plan: CachePlan, session: QualitySession) -> dict[str, Any]:
    """Measure a plan on requests that it was not made on.

    Args:
        plan: made for the session's model.
        session: held-out requests.

    Returns:
        ``compression_measured, kl_measured, kl_within_band`` (None where the plan foretells no divergence)
        and ``error_measured`` of the plan, the root mean square over requests and the session's layers of
        the attention output's relative error; and ``uniform_compression_measured, uniform_kl_measured`` of
        the best single setting that the plan names (None where it names none).

    Raises:
        InputError: the plan is for another model.
    """
    plan.check(session.loaded)
    quality = session.measure(plan.settings)
    kl = float(quality.kl.mean())
    low, uniform = plan.predicted["kl_low"], plan.predicted["uniform"]
    single = None
    if uniform is not None:
        single = session.measure(dict.fromkeys(plan.settings, Method(**uniform["setting"])))
    return {
        "compression_measured": quality.compression,
        "kl_measured": kl,
        "error_measured": float(np.sqrt(quality.attention_error2.mean())),
        "kl_within_band": None if low is None else low <= kl <= plan.predicted["kl_high"],
        "uniform_compression_measured": None if single is None else single.compression,
        "uniform_kl_measured": None if single is None else float(single.kl.mean()),
    }
