"""Every law under one fixture, so that one family of identities runs over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from ratedist.similarity import (
    Empirical,
    Gaussian,
    Joint,
    Mixture,
    ParetoTail,
    PositionMarked,
    SimilarityLaw,
    Spherical,
    TruncatedGaussian,
)


def _sample() -> np.ndarray:
    rng = np.random.default_rng(7)
    scores = np.concatenate([rng.normal(0.5, 0.08, 3000), rng.normal(0.75, 0.04, 1000)])
    return scores[np.abs(scores) < 0.999]


def laws() -> dict[str, SimilarityLaw]:
    empirical = Empirical.fit(_sample()).law
    pareto = ParetoTail.fit(_sample(), tail_share=0.05).law
    marked = PositionMarked.from_differences(
        [Mixture([0.7], [TruncatedGaussian(0.8, 0.05)], 0.3), TruncatedGaussian(0.6, 0.07), Spherical(64)]
    )
    return {
        "spherical-2": Spherical(2),
        "spherical-3": Spherical(3),
        "spherical-7.5": Spherical(7.5),
        "spherical-64": Spherical(64),
        "spherical-3072": Spherical(3072),
        "gaussian": Gaussian(0.55, 0.08),
        "gaussian-beyond-1": Gaussian(0.8, 0.2),
        "truncated": TruncatedGaussian(0.55, 0.08),
        "truncated-at-edge": TruncatedGaussian(0.97, 0.1),
        "truncated-layer": TruncatedGaussian(-1.6, 0.25),
        "truncated-flat": TruncatedGaussian(0.2, 4.0),
        "empirical": empirical,
        "empirical-few": Empirical.fit(_sample()[:10]).law,
        "pareto": pareto,
        "pareto-exponential": ParetoTail([-0.2, 0.3, 0.5], [0.0, 0.8, 1.0], 0.1, 0.0, 0.02),
        "pareto-heavy": ParetoTail([-0.2, 0.3, 0.5], [0.0, 0.8, 1.0], 0.1, 0.3, 0.1),
        "pareto-short": ParetoTail([-0.2, 0.3, 0.5], [0.0, 0.8, 1.0], 0.6, -0.4, 0.1),
        "mixture": Mixture([0.5, 0.3], [Spherical(64), TruncatedGaussian(0.8, 0.05)], 0.2),
        "mixture-of-tails": Mixture([0.6, 0.4], [empirical, Gaussian(0.7, 0.15)]),
        "mixture-below-1": Mixture(
            [0.8], [ParetoTail([-0.2, 0.3, 0.5], [0.0, 0.8, 1.0], 0.1, -0.4, 0.1)], 0.2
        ),
        "duplicates-only": Mixture([], [], 1.0),
        "position-cell": marked.cell(0, 0),
        "position-marginal": marked.marginal(),
        "minimum": Joint(TruncatedGaussian(0.6, 0.08), TruncatedGaussian(0.3, 0.12), 0.6, 0.13).minimum(),
        "minimum-opposed": Joint(Spherical(16), Spherical(9), -0.5).minimum(),
        "minimum-of-empiricals": Joint(empirical, pareto, 0.8).minimum(),
    }


LAWS = laws()


@pytest.fixture(params=list(LAWS), scope="session")
def law(request: pytest.FixtureRequest) -> SimilarityLaw:
    return LAWS[request.param]
