"""When a new calibration is due: a test, at every request, of whether the traffic is still what it was."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ratedist._arguments import as_numbers, whole_number
from ratedist.errors import InputError

__all__ = ["ChangeDetector"]

FloatArray = NDArray[np.float64]

# Bets on the shift (first Legendre polynomial of the p-value) and on the spread (second).
_STAKES = np.array([-0.9, -0.45, 0.45, 0.9])


class ChangeDetector:
    """Shiryaev-Roberts sums of bets against the ranks of what is seen.

    Each statistic of a request is ranked among the n since the last calibration, itself one of them:
    p = (lower + U·equal)/n with U uniform. While requests are exchangeable the p are independent and uniform,
    exactly and for every law (Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005): no
    law need be fitted, and neither the noise of a calibration sample nor an atom of duplicates matters.
    A bet pays e = 1 + b·P_k(2p − 1), of mean 1, and its sum R ← (R + 1)·e has the mean t after t requests.
    R − t is a martingale, so by Doob's inequality

        P(alarm within T requests) <= T·rate

    where the alarm is raised as the mean of all sums reaches 1/rate, and the mean time to a false alarm is at
    least 1/rate (Shin, Ramdas, Rinaldo, *E-detectors*, arXiv 2203.03532). After ``capacity`` requests the
    older half is dropped and the sums start anew, which leaves the rate as it is.

    Tests: tests/ratedist/adaptive/test_detector.py::test_false_alarms_stay_within_the_rate, ::test_delay.
    """

    def __init__(self, rate: float, *, statistics: int = 1, capacity: int = 2000, seed: int = 0) -> None:
        """Start without a calibration: the first requests are it.

        Args:
            rate: false alarms per request that are allowed, within (0, 1).
            statistics: numbers that are watched of every request.
            capacity: requests that are ranked at most, at least 4.
            seed: of the numbers that break ties.

        Raises:
            InputError: an argument outside what is listed.
        """
        self.rate = float(as_numbers("rate", rate, low=0.0, high=1.0, low_open=True))
        if self.rate == 1:
            raise InputError("rate", rate, "must be below 1: at 1 every request would raise an alarm")
        self.statistics = whole_number("statistics", statistics, low=1)
        self.capacity = whole_number("capacity", capacity, low=4)
        self._rng = np.random.default_rng(whole_number("seed", seed, low=0))
        self.restart()

    def restart(self) -> None:
        """Take what comes from now on as the calibration."""
        self._seen: list[list[float]] = [[] for _ in range(self.statistics)]
        self._sorted: list[list[float]] = [[] for _ in range(self.statistics)]
        self._sums = np.zeros((self.statistics, 2, len(_STAKES)))

    @property
    def evidence(self) -> float:
        """Mean of the sums, of mean t after t requests without a change; the alarm is at 1/rate."""
        return float(self._sums.mean())

    @property
    def calibration(self) -> int:
        """Requests that are ranked against."""
        return len(self._seen[0])

    def update(self, values: Sequence[float]) -> bool:
        """Take in one request; whether the alarm is raised. It stays so until ``restart``."""
        if len(values) != self.statistics:
            raise InputError("values", len(values), f"must be {self.statistics}, one per statistic")
        finite = as_numbers("values", values).tolist()
        if self.calibration >= self.capacity:
            self._renew()
        bets = np.empty((self.statistics, 2, 1))
        for index, value in enumerate(finite):
            ranked = self._sorted[index]
            lower = bisect.bisect_left(ranked, value)
            equal = bisect.bisect_right(ranked, value) - lower
            p = (lower + self._rng.random() * (equal + 1)) / (len(ranked) + 1)
            ranked.insert(lower, value)
            self._seen[index].append(value)
            x = 2 * p - 1
            bets[index, 0], bets[index, 1] = x, 1.5 * x * x - 0.5
        self._sums = (self._sums + 1) * (1 + _STAKES * bets)
        return self.evidence >= 1 / self.rate

    def _renew(self) -> None:
        kept = [values[self.capacity // 2 :] for values in self._seen]
        self.restart()
        self._seen = kept
        self._sorted = [sorted(values) for values in kept]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready state, read back by ``from_dict``."""
        return {
            "rate": self.rate,
            "statistics": self.statistics,
            "capacity": self.capacity,
            "generator": self._rng.bit_generator.state,
            "seen": self._seen,
            "sums": self._sums.tolist(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of ``to_dict``; raises InputError where it is not such a state."""
        detector = cls(data["rate"], statistics=data["statistics"], capacity=data["capacity"])
        try:
            detector._rng.bit_generator.state = data["generator"]
        except ValueError as error:
            raise InputError("generator", data["generator"], f"is no state of a generator: {error}") from None
        seen = [as_numbers("seen", values).tolist() for values in data["seen"]]
        sums = as_numbers("sums", data["sums"], low=0.0)
        if len(seen) != detector.statistics or len({len(values) for values in seen}) != 1:
            raise InputError("seen", [len(values) for values in seen], "must be as many values per statistic")
        if sums.shape != detector._sums.shape:
            raise InputError("sums", sums.shape, f"must have shape {detector._sums.shape}")
        detector._seen, detector._sorted, detector._sums = seen, [sorted(values) for values in seen], sums
        return detector
