"""What exceedances of a threshold say about being a Poisson process, one statistic per file."""

from ratedist.exceedances.chen_stein import ChenStein, chen_stein
from ratedist.exceedances.clusters import Clusters, clusters
from ratedist.exceedances.counts import CountFit, fit_counts
from ratedist.exceedances.dispersion import Dispersion, dispersion
from ratedist.exceedances.laws import CountLaw, CountsByLaw, counts_by_law
from ratedist.exceedances.pairs import Exceedances

__all__ = [
    "ChenStein",
    "Clusters",
    "CountFit",
    "CountLaw",
    "CountsByLaw",
    "Dispersion",
    "Exceedances",
    "chen_stein",
    "clusters",
    "counts_by_law",
    "dispersion",
    "fit_counts",
]
