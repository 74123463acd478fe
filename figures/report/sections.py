"""From a record of each kind to its section of the report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ratedist.errors import InputError, RatedistError
from ratedist.figures.report.content import Picture, Section, Table
from ratedist.records import read_record

__all__ = ["KINDS", "read_section"]

Rows = Sequence[dict[str, Any]]

_FAITHFUL = 0.1
"""Relative error of values, root mean square over layers, that the first sentences allow."""

_NOTHING = 1.005
"""Compression of the whole cache up to which fusion counts as saving nothing."""


def read_section(path: Path) -> Section:
    """The section of one record.

    Raises:
        InputError: no such file.
        RatedistError: it is no record, or of a kind that reports do not know (the message lists the others).
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("record", str(path), "no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RatedistError(f"{path} is not a result record: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in KINDS:
        raise RatedistError(f"{path} has schema {schema!r}; reports know {', '.join(KINDS)}")
    try:
        return KINDS[schema](path, data)
    except (KeyError, TypeError, IndexError) as error:
        raise RatedistError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _section(
    title: str,
    provenance: dict[str, Any],
    answer: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture] = (),
) -> Section:
    """A section with the source that the record names."""
    when, versions = provenance.get("created", "at an unknown time"), provenance.get("versions", {})
    return Section(
        title=title,
        answer=answer,
        command=" ".join(map(str, provenance.get("command", ()))),
        made=f"{when}, ratedist {versions.get('ratedist', '?')}",
        tables=tables,
        pictures=pictures,
    )


def _table(title: str, rows: Rows, columns: dict[str, str]) -> Table:
    """A table of the rows' fields, by heading."""
    return Table(
        title, tuple(columns), tuple(tuple(row.get(field) for field in columns.values()) for row in rows)
    )


def _pictures(
    draw: Callable[[Path], Path | Sequence[Path]], titles: dict[str, str], default: str
) -> list[Picture]:
    """Draw to a folder that is thrown away, and carry the files."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw(Path(folder))
        paths = [drawn] if isinstance(drawn, Path) else list(drawn)
        # Those that have a title of their own say most, and come first.
        paths.sort(key=lambda path: path.stem not in titles)
        return [Picture.read(path, titles.get(path.stem, f"{default}: {path.stem}")) for path in paths]


def _validation(path: Path, data: dict[str, Any]) -> Section:
    from ratedist.figures.validation import save_validation_figures

    record = read_record(path, data["schema"])
    overall = [row for row in record.summary if row["workload"] == "all" and row["rows"]]
    best = min(overall, key=lambda row: row["median_abs_log_ratio"], default=None)
    answer = ["No row compresses enough to judge a prediction by."]
    if best is not None:
        answer = [
            f"The best predictor, {best['predictor']}, is off by a factor of "
            f"{_factor(best['median_abs_log_ratio'])} in the median and of "
            f"{_factor(best['p90_abs_log_ratio'])} in one row of ten, on requests that it did not see."
        ]
    return _section(
        title="Predicted beside measured",
        answer=[*_savings(record.rows), *answer],
        tables=[
            _table(
                "Error of predicted compression, |ln(predicted / measured)|",
                record.summary,
                {
                    "workload": "workload",
                    "predictor": "predictor",
                    "median": "median_abs_log_ratio",
                    "90 % quantile": "p90_abs_log_ratio",
                    "rows": "rows",
                },
            )
        ],
        pictures=_pictures(
            lambda folder: save_validation_figures(record, folder),
            {"overview": "Predicted against measured compression"},
            "Compression and error",
        ),
        provenance=record.provenance,
    )


def _savings(rows: Rows) -> list[str]:
    """Per workload, least first: how much smaller the whole cache gets while values stay what they were."""
    cells: dict[str, dict[tuple[Any, ...], list[dict[str, Any]]]] = {}
    first = rows[0]["predictor"] if rows else None
    for row in rows:
        if row["predictor"] == first:
            setting = (row["variant"], row["criterion"], row["threshold"])
            cells.setdefault(row["workload"], {}).setdefault(setting, []).append(row)
    best: list[tuple[float, str]] = []
    for workload, settings in cells.items():
        kept = [
            (here[0]["cache_compression_measured"], setting)
            for setting, here in settings.items()
            if sum(row["v_error_measured"] ** 2 for row in here) <= len(here) * _FAITHFUL**2
        ]
        times, (variant, criterion, threshold) = max(kept, default=(1.0, ("", "", 1.0)))
        how = f" ({variant}, {criterion}, threshold {threshold:g})" if times > _NOTHING else ""
        much = f"makes the cache {times:.2f} times smaller" if times > _NOTHING else "saves nothing"
        best.append(
            (
                times,
                f"{workload}: fusion, exact sharing included, {much} with values within "
                f"{_FAITHFUL:.0%} of what they were{how}.",
            )
        )
    return [sentence for _, sentence in sorted(best)]


def _suite(path: Path, data: dict[str, Any]) -> Section:
    from ratedist.figures.suite import save_suite_figures
    from ratedist.suite_record import read_suite_record

    record = read_suite_record(path)
    return _section(
        title="Predictions over all workloads",
        answer=record.words,
        tables=[
            _any_table("Goals", record.goals),
            _any_table("Errors by workload, split and predictor", record.summary),
        ],
        pictures=_pictures(
            lambda folder: save_suite_figures(record, folder), {}, "Predictions over all workloads"
        ),
        provenance=record.provenance,
    )


def _quality(path: Path, data: dict[str, Any]) -> Section:
    from ratedist.figures.quality import save_quality_figure

    record = read_record(path, data["schema"])
    verdicts = [entry["text"] for entry in record.summary if entry.get("kind") == "verdict"]
    return _section(
        title="What it costs in quality, beside quantisation and eviction",
        answer=verdicts or ["Without exact sharing, fusion and 4 bits in one record there is no verdict."],
        tables=[
            _table(
                "Every method on every workload",
                record.rows,
                {
                    "workload": "workload",
                    "method": "method",
                    "variant": "variant",
                    "criterion": "criterion",
                    "threshold": "threshold",
                    "times smaller": "compression",
                    "KL (nats)": "kl_mean",
                    "KL, 99 %": "kl_p99",
                    "same top token": "same_top1",
                    "Δ ln perplexity": "delta_log_ppl",
                    "error of V": "v_error",
                },
            )
        ],
        pictures=_pictures(
            lambda folder: save_quality_figure(record, folder),
            {"quality": "Divergence against compression of the whole cache"},
            "Quality",
        ),
        provenance=record.provenance,
    )


def _serving(path: Path, data: dict[str, Any]) -> Section:
    from ratedist.figures.serving import save_serving_figure

    record = read_record(path, data["schema"])
    answer = []
    for entry in sorted(record.summary, key=lambda entry: entry["gain"]):
        verb = "loses" if entry["gain"] < 0.98 else "gains" if entry["gain"] > 1.02 else "changes nothing"
        answer.append(
            f"{entry['workload']}, pool at {entry['pool_share']:.0%} of what the trace takes unfused: "
            f"fusion {verb}, "
            f"{entry['gain']:.2f} times the tokens per second ({entry['gain_predicted']:.2f} predicted)."
        )
    return _section(
        title="What saved blocks buy in serving",
        answer=answer,
        tables=[
            _table(
                "Served from pools of several sizes, exact prefix sharing on in both modes",
                record.rows,
                {
                    "pool share": "pool_share",
                    "mode": "mode",
                    "tokens/s": "tokens_per_second",
                    "predicted": "tokens_per_second_predicted",
                    "requests at a time": "mean_running",
                    "first token (s)": "time_to_first_token_mean",
                    "between tokens (s)": "time_between_tokens_mean",
                    "preemptions": "preemptions",
                    "same tokens": "same_tokens",
                },
            )
        ],
        pictures=_pictures(
            lambda folder: save_serving_figure(record, folder),
            {"serving": "Tokens per second against the size of the pool"},
            "Serving",
        ),
        provenance=record.provenance,
    )


def _plan(path: Path, data: dict[str, Any]) -> Section:
    predicted, settings = data["predicted"], data["settings"]
    ((goal, value),) = data["goal"].items()
    uniform = predicted["uniform"]
    answer = [
        f"For {goal} {value:g}: {predicted['compression']:.2f} times smaller at a divergence of "
        f"{predicted['kl']:.4f} nats "
        f"(other requests: {predicted['kl_low']:.4f} to {predicted['kl_high']:.4f})."
    ]
    if uniform is not None:
        answer.append(f"The best single setting within it gives {uniform['compression']:.2f}.")
    return _section(
        title=f"A plan for {data['model']}",
        answer=answer,
        tables=[
            Table(
                "Setting of every layer; layers that are not named stay as they are",
                ("layer", "sharing", "criterion", "threshold", "bits"),
                tuple(
                    (int(layer), m["sharing"], m["criterion"], m["threshold"], m["bits"] or 16)
                    for layer, m in settings.items()
                ),
            )
        ],
        provenance=data["provenance"],
    )


def _generation(path: Path, data: dict[str, Any]) -> Section:
    record = read_record(path, data["schema"])
    fused = next(row for row in record.rows if row["name"] == "fused")
    plain = next(row for row in record.rows if row["name"] == "unmodified")
    return _section(
        title="A real model on the fused cache",
        answer=[
            f"{fused['same_tokens']} of {fused['tokens']} tokens are the unmodified model's; the cache takes "
            f"{fused['cache_bytes'] / 1e6:.1f} MB in the place of {plain['cache_bytes'] / 1e6:.1f} MB, at "
            f"{fused['tokens_per_second'] / plain['tokens_per_second']:.2f} times the tokens per second."
        ],
        tables=[
            _table(
                "Each way of generating",
                record.rows,
                {
                    "way": "name",
                    "tokens/s": "tokens_per_second",
                    "cache (bytes)": "cache_bytes",
                    "held (bytes)": "held_bytes",
                    "same tokens": "same_tokens",
                    "of": "tokens",
                },
            )
        ],
        provenance=record.provenance,
    )


def _benchmark(path: Path, data: dict[str, Any]) -> Section:
    record = read_record(path, data["schema"])
    timed = [row for row in record.rows if row.get("ratio") is not None]
    answer = ["No row of this benchmark has a floor."]
    if timed:
        worst = max(timed, key=lambda row: row["ratio"])
        answer = [
            f"At worst {worst['ratio']:.2f} times the floor that the work sets ({worst['name']}); "
            f"{len(timed)} cases."
        ]
    return _section(
        title="Speed beside its floor",
        answer=answer,
        tables=[
            _table(
                "Least time of several runs; the floor was measured in the same run",
                record.rows,
                {
                    "case": "name",
                    "seconds": "seconds",
                    "floor (s)": "floor_seconds",
                    "ratio": "ratio",
                    "times PyTorch's": "torch_ratio",
                },
            )
        ],
        provenance=record.provenance,
    )


def _adaptive(path: Path, data: dict[str, Any]) -> Section:
    import matplotlib.pyplot as plt

    from ratedist.figures.adaptive import plot_adaptive
    from ratedist.figures.style import style

    record = read_record(path, data["schema"])

    def draw(folder: Path) -> Path:
        target = folder / "adaptive.png"
        with style():
            figure = plot_adaptive(record)
            figure.savefig(target)
            plt.close(figure)
        return target

    return _section(
        title="A threshold that follows the workload",
        answer=["Each policy over the same stream of requests; the promise is on the error of a window."],
        tables=[_any_table("Policies", record.summary)],
        pictures=_pictures(draw, {"adaptive": "Threshold, error and evidence of change"}, "Adaptive"),
        provenance=record.provenance,
    )


def _any_table(title: str, rows: Rows) -> Table:
    """All plain fields of the rows, headed by their names."""
    fields = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if not any(isinstance(row.get(name), dict | list) for row in rows)
    ]
    return _table(title, rows, {name.replace("_", " "): name for name in fields})


def _factor(log_ratio: float) -> str:
    return f"{2.718281828459045**log_ratio:.2f}"


KINDS: dict[str, Callable[[Path, dict[str, Any]], Section]] = {
    "ratedist/suite/1": _suite,
    "ratedist-validation-1": _validation,
    "ratedist/quality/1": _quality,
    "ratedist/plan/1": _plan,
    "ratedist/serve/1": _serving,
    "ratedist/generate/1": _generation,
    "ratedist.adapt/1": _adaptive,
    "ratedist/bench/1": _benchmark,
}
"""By schema, in the order in which a report has them."""
