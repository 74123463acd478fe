"""What ``ratedist plan`` prints: the setting of every layer, and what to expect of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratedist.validate.planning.plan_file import CachePlan
    from ratedist.validate.quality.methods import Method

__all__ = ["print_plan"]


def print_plan(plan: CachePlan, checked: Mapping[str, Any] | None, *, title: str) -> None:
    """Print a plan on standard output.

    Args:
        plan: what was planned.
        checked: of ``ratedist.validate.planning.check.check_plan``, where the plan was checked.
        title: of the table.
    """
    from rich.console import Console

    output = Console(width=110, highlight=False)
    output.print(_table(plan, title))
    for line in [*_predicted(plan), *_sensitivity(plan.predicted["sensitivity"]), *_checked(checked)]:
        output.print(line)
    drift = plan.predicted["sensitivity"].get("drift")
    if drift is not None:
        output.print(_drift_table(drift))
        output.print(drift["words"])


def _drift_table(drift: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"other requests, part of them {drift['to']}")
    for heading in ("part", "compression", "saved", "divergence", "relative error"):
        table.add_column(heading, justify="right")
    for point in drift["points"]:
        table.add_row(
            f"{point['share']:.0%}",
            f"{point['compression']:.2f}x",
            f"{point['saving']:.1%}",
            f"{point['kl']:.4f}",
            f"{point['error']:.4f}",
        )
    return table


def _table(plan: CachePlan, title: str) -> Any:
    """Layers and settings; what is the same default in all of them has no column."""
    from rich.table import Table

    columns: dict[str, Any] = {
        "setting": lambda method: method.name,
        "criterion": lambda method: method.criterion,
        "threshold": lambda method: f"{method.threshold:g}",
        "variant": lambda method: method.variant,
        "scale": lambda method: method.scale,
        "mode": lambda method: method.mode,
    }
    methods = list(plan.settings.values())
    for name, default in (("variant", "leader"), ("scale", "own-norm"), ("mode", "bff")):
        if all(getattr(method, name) == default for method in methods):
            del columns[name]
    table = Table(title=title)
    table.add_column("layer", justify="right")
    for name in columns:
        table.add_column(name, justify="right" if name == "threshold" else "left")
    for layer, method in sorted(plan.settings.items()):
        shown = [
            text(method) if name == "setting" or method.sharing == "fusion" or name == "mode" else ""
            for name, text in columns.items()
        ]
        table.add_row(str(layer), *shown)
    return table


def _predicted(plan: CachePlan) -> list[str]:
    predicted = plan.predicted
    if predicted["kl"] is None:
        return _from_laws(predicted)
    lines = [
        f"predicted: {predicted['compression']:.2f}x of the whole cache at a divergence of "
        f"{predicted['kl']:.4f} nats, for other requests {predicted['kl_low']:.4f} to "
        f"{predicted['kl_high']:.4f}",
        f"relative error of attention outputs: {predicted['error']:.4f}, for other requests "
        f"{predicted['error_low']:.4f} to {predicted['error_high']:.4f}",
    ]
    service = predicted.get("service")
    if service is not None:
        lines.append(_in_service(service))
    uniform = predicted["uniform"]
    return [*lines, _single(uniform, None if uniform is None else f"{uniform['kl']:.4f}")]


def _from_laws(predicted: Mapping[str, Any]) -> list[str]:
    uniform = predicted["uniform"]
    return [
        f"foretold for {predicted['requests']} requests by {predicted['predictor']}, fitted to "
        f"{predicted['calibration_requests']}: {predicted['compression']:.2f}x of the whole cache"
        + _band(predicted),
        f"relative error of keys {predicted['k_error']:.3f}, of values {predicted['v_error']:.3f}, of both "
        f"{predicted['kv_error']:.3f}; what the model makes of it is not known",
        _single(uniform, None if uniform is None else f"an error of {uniform['kv_error']:.3f}"),
    ]


def _band(predicted: Mapping[str, Any]) -> str:
    low, high = predicted["compression_low"], predicted["compression_high"]
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f} in 90 % of cases)"


def _single(uniform: Mapping[str, Any] | None, at: str | None) -> str:
    """The best single setting for all layers, in words."""
    if uniform is None:
        return "no single setting for all layers keeps the goal"
    from ratedist.validate.quality.methods import Method

    method = Method(**uniform["setting"])
    return f"best single setting: {uniform['compression']:.2f}x at {at} ({_named(method)})"


def _in_service(service: Mapping[str, Any]) -> str:
    return (
        f"with {service['requests']} requests in service: {service['compression']:.2f}x{_band(service)} by "
        f"{service['predictor']}; the relative error of keys and values is then {service['kv_error']:.3f}, "
        f"{service['kv_error_calibration']:.3f} with the {service['calibration_requests']} measured"
    )


def _named(method: Method) -> str:
    """A setting in words, defaults of fusion left out."""
    if method.sharing != "fusion":
        return method.name
    words = [f"{method.criterion} {method.threshold:g}"]
    words += [
        value
        for value, default in ((method.variant, "leader"), (method.scale, "own-norm"), (method.mode, "bff"))
        if value != default
    ]
    return f"{method.name}, {', '.join(words)}"


def _sensitivity(sensitivity: Mapping[str, Any]) -> list[str]:
    """What drift of the traffic would do, in words; nothing is known without a model."""
    if not sensitivity:
        return []
    lines = [
        f"traffic more alike (thresholds {sensitivity['shift']:g} looser): saves "
        f"{sensitivity['saving_looser']:.1%} at up to {sensitivity['kl_looser']:.4f}; less alike: "
        f"{sensitivity['saving_stricter']:.1%} at {sensitivity['kl_stricter']:.4f}"
    ]
    if sensitivity["exact_share"] is not None:
        lines.append(f"of what it saves, exact duplicates alone give {sensitivity['exact_share']:.0%}")
    if sensitivity["heaviest_share"] is not None:
        low, high = sensitivity["kl_without_one"]
        lines.append(
            f"one request carries {sensitivity['heaviest_share']:.0%} of the divergence; without any one of "
            f"them it is {low:.4f} to {high:.4f}"
        )
    return lines


def _checked(checked: Mapping[str, Any] | None) -> list[str]:
    if checked is None:
        return []
    lines = [
        f"measured on other requests: {checked['compression_measured']:.2f}x at a divergence of "
        f"{checked['kl_measured']:.4f}, relative error {checked['error_measured']:.4f}"
    ]
    if checked["uniform_kl_measured"] is not None:
        lines.append(
            f"and the single setting there: {checked['uniform_compression_measured']:.2f}x at "
            f"{checked['uniform_kl_measured']:.4f}"
        )
    return lines
