"""Options that take several values after one flag, as a user types them."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ratedist.cli.variadic import ManyValuesCommand, split_numbers
from ratedist.errors import InputError

app = typer.Typer()


@app.callback()
def _root() -> None:
    pass


@app.command("show", cls=ManyValuesCommand)
def show(
    thresholds: Annotated[list[str] | None, typer.Option("--thresholds")] = None,
    pair: Annotated[tuple[float, float] | None, typer.Option("--pair")] = None,
    name: Annotated[str, typer.Option("--name")] = "none",
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    typer.echo(f"{split_numbers('thresholds', thresholds or [])} {pair} {name} {json}")


def run(*args: str) -> str:
    result = CliRunner().invoke(app, ["show", *args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--thresholds", "0.4", "0.5", "0.6"), "[0.4, 0.5, 0.6] None none False"),
        (("--thresholds", "0.4", "--thresholds", "0.5"), "[0.4, 0.5] None none False"),
        (("--thresholds", "0.4", "0.5", "--json"), "[0.4, 0.5] None none True"),
        (("--json", "--thresholds", "-0.4", "-1e-3", "0"), "[-0.4, -0.001, 0.0] None none True"),
        (("--thresholds=0.4", "0.5", "--name", "x"), "[0.4, 0.5] None x False"),
        (("--thresholds", "0.4,0.5", "0.6"), "[0.4, 0.5, 0.6] None none False"),
        (("--thresholds", "0.4 0.5"), "[0.4, 0.5] None none False"),
        (
            ("--thresholds", "0.4", "--pair", "-1", "2", "--thresholds", "0.5"),
            "[0.4, 0.5] (-1.0, 2.0) none False",
        ),
        ((), "[] None none False"),
    ],
)
def test_forms(args: tuple[str, ...], expected: str) -> None:
    assert run(*args) == expected


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_values_arrive_in_order(values: list[float]) -> None:
    assert run("--thresholds", *map(repr, values)) == f"{values} None none False"


@pytest.mark.parametrize(
    "args", [("--thresholds",), ("--name", "x", "0.5"), ("--pair", "1"), ("--thresholds", "0.4", "--colour")]
)
def test_wrong_usage_is_refused(args: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["show", *args]).exit_code == 2


def test_split_numbers_names_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"thresholds = '0\.5x': must be a number, or several"):
        split_numbers("thresholds", ["0.4", "0.5x"])
