"""How far the number of exceeding pairs can be from Poisson: the Chen-Stein bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ratedist.errors import InputError
from ratedist.exceedances.pairs import Exceedances

__all__ = ["ChenStein", "chen_stein"]


@dataclass(frozen=True)
class ChenStein:
    """b₁ and b₂ of Arratia, Goldstein and Gordon (Annals of Probability 17, 1989), and what they bound.

    ``neighbourhood`` says which pairs count as dependent: those that share a "block" (right where the blocks
    of a request are independent of one another) or a "request" (right whatever happens within a request).
    ``bound`` is on the total variation distance of W from Poisson(λ); at 1 it says nothing.
    """

    neighbourhood: str
    mean: float
    b1: float
    b2: float
    bound: float

    @property
    def ratio(self) -> float:
        """b₂/b₁: near 1 for independent directions, large where exceedances clump; NaN without any."""
        return self.b2 / self.b1 if self.b1 > 0 else math.nan


def chen_stein(
    exceedances: Exceedances, neighbourhood: str = "request", null: str = "homogeneous"
) -> ChenStein:
    """Estimate the Chen-Stein terms from one set of exceedances.

    b₁ = Σ_α Σ_{β∈B_α} p_α p_β with α itself in B_α, and b₂ = Σ_α Σ_{β∈B_α, β≠α} E[I_α I_β]. With D_x the
    exceedances of block x, R_a those of request a and W_ab those between two requests,

    - block: b₁ = Σ_x E[D_x]² − Σ_α p_α², b₂ = Σ_x D_x(D_x − 1);
    - request: b₁ = Σ_a E[R_a]² − Σ_{a<b} E[W_ab]², b₂ = Σ_a R_a² − Σ_{a<b} W_ab² − W,

    where p_α is the rate of all candidate pairs, or of α's pair of positions (``null``). b₂ takes the
    observed products for their expectations (one capture holds many pairs of pairs but one W), and
    b₁ the observed rates, which overstates it by about 1 + 1/λ. The bound is min(1, (1 − e^{−λ})/λ·(b₁ +
    b₂)). On independent uniform directions it is about 4Λ with blocks as neighbourhoods and 4Λ·blocks per
    request with requests, Λ the intensity per block.
    Tests: tests/ratedist/exceedances/test_chen_stein.py::test_terms_against_enumeration,
    ::test_size_on_independent_pairs.

    Raises InputError where ``neighbourhood`` or ``null`` is unknown.
    """
    own = exceedances.sum_of_squared_rates(null)
    if neighbourhood == "block":
        counts = exceedances.per_block
        b1 = float(np.sum(exceedances.expected_per_block(null) ** 2)) - own
        b2 = float(np.sum(counts * (counts - 1)))
    elif neighbourhood == "request":
        expected = exceedances.expected_between_requests(null)
        seen = exceedances.between_requests
        b1 = float(np.sum(expected.sum(axis=1) ** 2) - 0.5 * np.sum(expected**2))
        # Both sums count α itself and pairs between the same two requests twice, so that one is left of each.
        b2 = float(np.sum(seen.sum(axis=1) ** 2) - 0.5 * np.sum(seen**2)) - exceedances.count
    else:
        raise InputError("neighbourhood", neighbourhood, "must be 'block' or 'request'")
    mean = float(exceedances.count)
    factor = -math.expm1(-mean) / mean if mean > 0 else 1.0
    return ChenStein(neighbourhood, mean, b1, b2, min(1.0, factor * (b1 + b2)))
