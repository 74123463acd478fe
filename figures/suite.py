"""The pictures of a suite's record."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ratedist.errors import RatedistError
from ratedist.figures.style import style
from ratedist.figures.suite_bands import plot_suite_bands
from ratedist.figures.suite_errors import plot_suite_errors
from ratedist.figures.suite_layers import plot_suite_layers
from ratedist.figures.suite_rows import has_rows
from ratedist.figures.suite_scatter import plot_suite_scatter
from ratedist.figures.suite_transfer import plot_suite_transfer
from ratedist.suite_digest import banded_predictors
from ratedist.suite_record import SuiteRecord

__all__ = ["figures_of", "save_suite_figures"]


def figures_of(record: SuiteRecord) -> dict[str, Callable[[SuiteRecord], Figure]]:
    """What can be drawn of a record, by name.

    Errors always; scatter, layers and bands where it holds rows or a digest of them; transfer where there was
    any.
    """
    draw: dict[str, Callable[[SuiteRecord], Figure]] = {}
    if has_rows(record):
        draw |= {"suite-scatter": plot_suite_scatter}
    draw |= {"suite-errors": plot_suite_errors}
    if has_rows(record):
        draw |= {"suite-layers": plot_suite_layers}
    if banded_predictors(record):
        draw |= {"suite-bands": plot_suite_bands}
    if record.transfer:
        draw |= {"suite-transfer": plot_suite_transfer}
    return draw


def save_suite_figures(record: SuiteRecord, folder: Path) -> list[Path]:
    """Write what ``figures_of`` lists, and return the files.

    Raises RatedistError where one cannot be written.
    """
    paths = []
    for name, plot in figures_of(record).items():
        path = folder / f"{name}.png"
        temporary = path.with_name(f".{path.name}.part")
        with style():
            figure = plot(record)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(temporary, format="png")
                os.replace(temporary, path)
            except OSError as error:
                with suppress(OSError):
                    temporary.unlink()
                raise RatedistError(
                    f"{path} cannot be written: {error}; free space or choose another --out"
                ) from error
            finally:
                plt.close(figure)
        paths.append(path)
    return paths
