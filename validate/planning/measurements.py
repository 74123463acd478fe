"""What plans do to a session's requests, each plan measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ratedist.validate.quality.continuation import QualitySession
from ratedist.validate.quality.methods import Method

__all__ = ["Measured", "Measurements"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What one plan did to R requests.

    Attributes:
        kl: (R,) mean over a request's continuation of the next-token divergence, in nats.
        compression: bytes of the whole original cache over those of the compressed one.
        error2: (R,) mean over the session's layers of the squared relative error of the attention output,
            as ``ratedist.validate.quality.continuation.Quality`` defines it.
    """

    kl: FloatArray
    compression: float
    error2: FloatArray

    @property
    def mean_kl(self) -> float:
        """Mean over requests, in nats."""
        return float(self.kl.mean())

    @property
    def error(self) -> float:
        """Root mean square over requests and layers of the attention output's relative error."""
        return float(np.sqrt(self.error2.mean()))

    @property
    def saving(self) -> float:
        """Share of the original cache's bytes that is saved; below 0 where tables cost more."""
        return 1 - 1 / self.compression


class Measurements:
    """Measured plans of one session; measuring the same plan again costs nothing.

    Attributes:
        session: the requests.
    """

    def __init__(self, session: QualitySession) -> None:
        self.session = session
        self._known: dict[tuple[tuple[int, Method], ...], Measured] = {}

    def __call__(self, methods: Mapping[int, Method]) -> Measured:
        """Compress by one method per layer, the others left as they are, and run the continuations.

        Raises InputError as ``QualitySession.measure``.
        """
        key = tuple(sorted(methods.items(), key=lambda item: item[0]))
        if key not in self._known:
            quality = self.session.measure(methods)
            self._known[key] = Measured(
                quality.kl.mean(axis=1), quality.compression, quality.attention_error2.mean(axis=0)
            )
        return self._known[key]

    def uniform(self, method: Method) -> Measured:
        """The same method in all layers of the session."""
        return self(dict.fromkeys(self.session.layers, method))
