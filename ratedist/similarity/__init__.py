"""Laws of the similarity of two blocks, one per file."""

from ratedist.similarity.base import Fit, SimilarityLaw
from ratedist.similarity.gaussian import Gaussian
from ratedist.similarity.spherical import Spherical

__all__ = ["Fit", "Gaussian", "SimilarityLaw", "Spherical"]
