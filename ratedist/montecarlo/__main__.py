"""``python -m ratedist.montecarlo``: the tables of agreement of docs/theory.md, as Markdown."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ratedist.errors import RatedistError
from ratedist.montecarlo.agreement import agreement_rows, summarise, vector_rows


def _progress(done: int, of: int) -> None:
    print(f"\r{done} of {of} settings", end="\n" if done == of else "", file=sys.stderr, flush=True)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _process_line(row: dict[str, Any]) -> str:
    band = f"{row['coverage_low']:.1%} to {row['coverage_high']:.1%}" if row["covered"] else ""
    cells = [
        row["recursion"],
        row["quantity"],
        str(row["settings"]),
        _number(row["worst_z"], ".2f"),
        _number(row["rms_z"], ".2f"),
        f"{row['worst_gap_percent']:.2f} %",
        band,
    ]
    return "| " + " | ".join(cells) + " |"


def _vector_line(row: dict[str, Any]) -> str:
    cells = [
        row["recursion"],
        row["quantity"],
        str(row["settings"]),
        f"{row['median_gap_percent']:.2f} %",
        f"{row['worst_gap_percent']:.2f} %",
    ]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Print both tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ratedist.montecarlo", description=__doc__)
    parser.add_argument("--settings", type=int, default=48, help="random settings of the process")
    parser.add_argument("--runs", type=int, default=2000, help="Monte Carlo runs of each")
    parser.add_argument("--vector-settings", type=int, default=20, help="random settings of real vectors")
    parser.add_argument("--vector-runs", type=int, default=200, help="runs of each")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        process = agreement_rows(
            settings=given.settings, runs=given.runs, seed=given.seed, progress=_progress
        )
        vectors = vector_rows(
            settings=given.vector_settings, runs=given.vector_runs, seed=given.seed, progress=_progress
        )
    except RatedistError as error:
        print(error, file=sys.stderr)
        return 2
    print("| recursion | quantity | settings | worst z | RMS z | worst gap | 90 % band covers |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(map(_process_line, summarise(process))))
    print("\n| recursion | quantity | settings | median gap | worst gap |")
    print("|---|---|---|---|---|")
    print("\n".join(map(_vector_line, summarise(vectors))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
