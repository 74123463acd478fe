"""What a quality record says: fusion against its rivals, in numbers and in words.

A scheme's curve is the share of the original bytes against mean KL over its measured settings, with what
lies between them reached by time sharing (the lower convex hull). Fusion's curve contains exact sharing,
which is fusion at threshold 1, and every curve contains the original cache. A scheme that pools variants and
criteria is chosen on the requests that it is measured on; the schemes of a single variant and criterion
stand beside it.

Intervals are 90 % percentile bootstrap over requests: a resampled request brings its own divergence and the
bytes it is charged for. Blocks are not fused anew, so an interval speaks of the measured fusion, not of
another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratedist.bjontegaard import bd_rate
from ratedist.curve import RateDistortionCurve
from ratedist.errors import InputError

__all__ = ["FOUR_BITS", "KL_LIMIT", "SCHEMES", "scheme_rows", "summarise_quality"]

FloatArray = NDArray[np.float64]
Row = Mapping[str, Any]

KL_LIMIT = 0.02
"""Mean next-token KL in nats up to which schemes are compared by their compression."""

FOUR_BITS = "kivi4"
"""The quantised cache that fusion is compared with at equal bytes."""

RESAMPLES = 200
_QUANTILES = (0.05, 0.95)

_PAIRS = (
    ("fusion", "bits"),
    ("fusion", "exact"),
    ("exact+bits", "bits"),
    ("fusion+bits", "bits"),
    ("fusion+bits", "exact+bits"),
)
"""(test, anchor) of the BD-rates."""


def _is_bits(name: str) -> bool:
    return name == "int8" or name.startswith("kivi")


SCHEMES: dict[str, Callable[[str], bool]] = {
    "exact": lambda name: name == "exact",
    "fusion": lambda name: name in ("exact", "fusion"),
    "bits": _is_bits,
    "exact+bits": lambda name: name == "exact" or name.startswith("exact+"),
    "fusion+bits": lambda name: name.partition("+")[0] in ("exact", "fusion"),
    "eviction": lambda name: name.startswith("evict"),
}
"""Which methods belong to a scheme; ``"nothing"`` belongs to all."""

_NEEDS: dict[str, Callable[[str], bool]] = SCHEMES | {
    "fusion": lambda name: name == "fusion",
    "exact+bits": lambda name: name.startswith("exact+"),
    "fusion+bits": lambda name: name.startswith("fusion+"),
}
"""A scheme stands in the summary where at least one such method was measured."""


def scheme_rows(
    rows: Sequence[Row], scheme: str, variant: str | None = None, criterion: str | None = None
) -> list[Row]:
    """Rows of one workload that belong to a scheme, of one variant and criterion where they are named."""
    belongs = SCHEMES[scheme]
    return [
        row
        for row in rows
        if (row["method"] == "nothing" or belongs(row["method"]))
        and (row["variant"] in (None, variant) or variant is None)
        and (row["criterion"] in (None, criterion) or criterion is None)
    ]


def summarise_quality(
    rows: Sequence[Row], *, seed: int = 0, limit: float = KL_LIMIT, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Entries of several kinds, for every workload in order of first appearance.

    - ``verdict``: the workload's answer in words, what fusion loses first; and what fusion with 4 bits adds
      to exact sharing with 4 bits at the limit (``over_exact_with_four_bits`` with its interval).
    - ``scheme``: compression of the whole cache at mean KL ``limit`` with its interval, the best measured
      setting within the limit, what that is over exact sharing, and KL at the bytes of 4 bits beside that of
      4 bits (None where a scheme does not get so small).
    - ``bd-rate``: mean change of bytes at equal KL in percent with its interval, of a scheme against another;
      None with a reason where the two share no range of KL.

    Args:
        rows: from ``quality_row``.
        seed: of the bootstrap.
        limit: KL in nats.
        resamples: of the bootstrap.
    """
    entries: list[dict[str, Any]] = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        here = [row for row in rows if row["workload"] == workload]
        draws = _draws(here, seed, resamples)
        settings: list[tuple[str, str | None, str | None]] = [(scheme, None, None) for scheme in SCHEMES]
        kinds = dict.fromkeys((r["variant"], r["criterion"]) for r in here if r["variant"] is not None)
        if len(kinds) > 1:
            settings += [("fusion", variant, criterion) for variant, criterion in kinds]
        schemes = []
        for scheme, variant, criterion in settings:
            chosen = scheme_rows(here, scheme, variant, criterion)
            if any(_NEEDS[scheme](row["method"]) for row in chosen):
                entry = {"kind": "scheme", "workload": workload, "scheme": scheme}
                entry |= {"variant": variant, "criterion": criterion}
                schemes.append(entry | _scheme(here, chosen, draws, limit))
        pairs = [
            {"kind": "bd-rate", "workload": workload, "test": test, "anchor": anchor}
            | _bd_rate(here, anchor, test, draws)
            for test, anchor in _PAIRS
            if {test, anchor} <= {entry["scheme"] for entry in schemes}
        ]
        with_bits = _over_exact_with_four_bits(here, draws, limit)
        entries += [*_verdict(workload, schemes, pairs, with_bits, here, limit), *schemes, *pairs]
    return entries


def _curve(rows: Sequence[Row], weights: FloatArray | None = None, name: str = "") -> RateDistortionCurve:
    """(share of the original bytes, mean KL) of rows, requests counted ``weights`` times each."""
    points = []
    for row in rows:
        held = row["by_request"]
        w = np.ones(row["requests"]) if weights is None else weights
        points.append(
            (
                w @ np.array(held["bytes"]) / (w @ np.array(held["unfused_bytes"])),
                w @ np.array(held["kl"]) / w.sum(),
            )
        )
    rate, kl = np.array(points).T
    return RateDistortionCurve(name, rate, kl)


def _draws(rows: Sequence[Row], seed: int, resamples: int) -> list[FloatArray]:
    """How often each request is drawn, once for every resample."""
    requests = rows[0]["requests"]
    rng = np.random.default_rng(seed)
    return [
        np.bincount(rng.integers(0, requests, requests), minlength=requests).astype(np.float64)
        for _ in range(resamples)
    ]


@dataclass(frozen=True)
class _Interval:
    low: float | None
    high: float | None


def _interval(values: Sequence[float | None]) -> _Interval:
    """The interval, None where a tenth of the resamples or more have no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) <= 0.9 * len(values):
        return _Interval(None, None)
    low, high = np.quantile(known, _QUANTILES)
    return _Interval(float(low), float(high))


def _compression_at(curve: RateDistortionCurve, limit: float) -> float | None:
    return 1 / float(curve.rate_at(limit)) if curve.distortion.min() <= limit else None


def _kl_at(curve: RateDistortionCurve, rate: float) -> float | None:
    return float(curve.distortion_at(rate)) if curve.rate.min() <= rate else None


def _scheme(
    all_rows: Sequence[Row], rows: Sequence[Row], draws: Sequence[FloatArray], limit: float
) -> dict[str, Any]:
    exact = [row for row in all_rows if row["method"] in ("nothing", "exact")]
    has_exact = any(row["method"] == "exact" for row in exact)
    four = [row for row in all_rows if row["method"] == FOUR_BITS]
    found: list[tuple[float | None, float | None, float | None, float | None]] = []
    for weights in [None, *draws]:
        curve = _curve(rows, weights)
        compression = _compression_at(curve, limit)
        floor = _compression_at(_curve(exact, weights), limit) if has_exact else None
        over = compression / floor if compression is not None and floor is not None else None
        at_four = gap = None
        if four:
            point = _curve(four, weights)
            at_four = _kl_at(curve, float(point.rate[0]))
            gap = None if at_four is None else at_four - float(point.distortion[0])
        found.append((compression, over, at_four, gap))
    measured = [row for row in rows if row["kl_mean"] <= limit]
    best = max(measured, key=lambda row: row["compression"], default=None)
    compressions, overs, _, gaps = (_interval(column) for column in zip(*found[1:], strict=True))
    compression, over, at_four, gap = found[0]
    return {
        "kl_limit": limit,
        "settings": sum(row["method"] != "nothing" for row in rows),
        "compression": compression,
        "compression_low": compressions.low,
        "compression_high": compressions.high,
        "over_exact": over,
        "over_exact_low": overs.low,
        "over_exact_high": overs.high,
        "best": None
        if best is None
        else {
            key: best[key]
            for key in ("method", "variant", "criterion", "threshold", "compression", "kl_mean")
        },
        "kl_at_four_bits": at_four,
        "kl_of_four_bits": four[0]["kl_mean"] if four else None,
        "kl_over_four_bits": gap,
        "kl_over_four_bits_low": gaps.low,
        "kl_over_four_bits_high": gaps.high,
    }


def _over_exact_with_four_bits(
    rows: Sequence[Row], draws: Sequence[FloatArray], limit: float
) -> tuple[float | None, _Interval]:
    """Compression of fusion with 4 bits at the limit over that of exact sharing with 4 bits."""
    exact = [row for row in rows if row["method"] == f"exact+{FOUR_BITS}"]
    fusion = [row for row in rows if row["method"] == f"fusion+{FOUR_BITS}"]
    if not exact or not fusion:
        return None, _Interval(None, None)
    found = []
    for weights in [None, *draws]:
        reached, floor = (
            _compression_at(_curve(chosen, weights), limit) for chosen in ([*exact, *fusion], exact)
        )
        found.append(reached / floor if reached is not None and floor is not None else None)
    return found[0], _interval(found[1:])


def _bd_rate(rows: Sequence[Row], anchor: str, test: str, draws: Sequence[FloatArray]) -> dict[str, Any]:
    sides = [(scheme, scheme_rows(rows, scheme)) for scheme in (anchor, test)]

    def value(weights: FloatArray | None) -> tuple[float, float, float, float]:
        delta = bd_rate(*(_curve(chosen, weights, scheme) for scheme, chosen in sides))
        return delta.value, delta.low, delta.high, delta.overlap

    try:
        percent, low, high, overlap = value(None)
    except InputError as error:
        empty = dict.fromkeys(("percent", "percent_low", "percent_high", "kl_low", "kl_high", "overlap"))
        return {**empty, "reason": str(error)}
    values: list[float | None] = []
    for weights in draws:
        try:
            values.append(value(weights)[0])
        except InputError:
            values.append(None)
    interval = _interval(values)
    return {
        "percent": percent,
        "percent_low": interval.low,
        "percent_high": interval.high,
        "kl_low": low,
        "kl_high": high,
        "overlap": overlap,
        "reason": None,
    }


def _verdict(
    workload: str,
    schemes: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    with_bits: tuple[float | None, _Interval],
    rows: Sequence[Row],
    limit: float,
) -> list[dict[str, Any]]:
    pooled = {entry["scheme"]: entry for entry in schemes if entry["variant"] is None}
    fusion, exact = pooled.get("fusion"), pooled.get("exact")
    four = next((row for row in rows if row["method"] == FOUR_BITS), None)
    if fusion is None or exact is None or four is None:
        return []
    at_four = fusion["kl_at_four_bits"]
    beats_bits = at_four is not None and at_four < four["kl_mean"]
    adds = fusion["over_exact"] is not None and fusion["over_exact"] > 1.01
    gain = f"{_times(fusion['compression'])} of the whole cache ({_range(fusion, 'compression')})"
    floor = f"{_times(exact['compression'])} by exact sharing alone, which costs nothing"
    bits = f"4 bits take it to {_times(four['compression'])} at KL {four['kl_mean']:.4f}"
    reached = (
        f"fusion has KL {at_four:.4f} at these bytes"
        if at_four is not None
        else "fusion does not get so small"
    )
    what = f"at mean KL {limit:g} fusion reaches {gain}, against {floor}; {bits}, and {reached}"
    if not adds:
        lead = "fusion loses: it adds nothing to exact sharing, and 4 bits are better"
        if beats_bits:
            lead = "fusion adds nothing to exact sharing, which beats 4 bits"
    elif beats_bits:
        lead = f"fusion wins: {_times(fusion['over_exact'])} beyond exact sharing, and better than 4 bits"
    else:
        lead = (
            f"fusion loses to 4 bits at equal bytes; it adds {_times(fusion['over_exact'])} to exact sharing"
        )
    both = next((p for p in pairs if (p["test"], p["anchor"]) == ("fusion+bits", "exact+bits")), None)
    on_top = ""
    added, interval_with_bits = with_bits
    if added is not None:
        on_top = f". With 4 bits on both it is {_times(added)} of exact sharing"
        if interval_with_bits.low is not None:
            on_top += f" ({interval_with_bits.low:.2f} to {interval_with_bits.high:.2f})"
    if both is not None and both["percent"] is not None:
        low, high = both["percent_low"], both["percent_high"]
        interval = "" if low is None else f" ({low:+.1f} to {high:+.1f})"
        on_top += (
            f". With bits, fusion changes the bytes of exact sharing with bits by {both['percent']:+.1f} %"
        )
        on_top += f"{interval} at equal KL"
    return [
        {
            "kind": "verdict",
            "workload": workload,
            "beats_four_bits": beats_bits,
            "adds_to_exact": adds,
            "over_exact_with_four_bits": added,
            "over_exact_with_four_bits_low": interval_with_bits.low,
            "over_exact_with_four_bits_high": interval_with_bits.high,
            "text": f"{workload}: {lead}. In numbers: {what}{on_top}.",
        }
    ]


def _times(factor: float | None) -> str:
    return "no compression" if factor is None else f"{factor:.2f}×"


def _range(entry: Mapping[str, Any], field: str) -> str:
    low, high = entry[f"{field}_low"], entry[f"{field}_high"]
    return "no interval" if low is None else f"{low:.2f} to {high:.2f}"
