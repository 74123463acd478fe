"""Laws of the similarity of two blocks, one per file."""

from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.empirical import Empirical
from ratedist.similarity.gaussian import Gaussian
from ratedist.similarity.joint import Joint, Minimum
from ratedist.similarity.mixture import Mixture
from ratedist.similarity.pareto_tail import ParetoTail
from ratedist.similarity.position import PositionMarked
from ratedist.similarity.registry import known_laws, law_from_dict, load_law, save_law
from ratedist.similarity.spherical import Spherical
from ratedist.similarity.truncated_gaussian import TruncatedGaussian

__all__ = [
    "Empirical",
    "Fit",
    "Gaussian",
    "Joint",
    "Minimum",
    "Mixture",
    "ParetoTail",
    "PositionMarked",
    "SimilarityLaw",
    "Spherical",
    "TruncatedGaussian",
    "known_laws",
    "law_from_dict",
    "load_law",
    "save_law",
]
