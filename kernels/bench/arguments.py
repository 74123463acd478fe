"""Checks of what a benchmark is asked for, made at once; it measures only as its rows are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ratedist.errors import InputError

__all__ = ["check_at_least", "check_dtypes", "check_known", "usable_device"]


def check_at_least(least: float, **given: float) -> None:
    """Raise InputError for an argument below ``least``, or NaN."""
    for argument, value in given.items():
        if not value >= least:
            raise InputError(argument, value, f"must be at least {least}")


def check_known(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raise InputError for a name that is not among the known ones."""
    for name in names:
        if name not in known:
            raise InputError(argument, name, f"must be one of {', '.join(known)}")


def check_dtypes(names: Sequence[str]) -> None:
    """Raise InputError for a dtype that no kernel reads."""
    for name in names:
        if name not in ("float32", "float16", "bfloat16"):
            raise InputError("dtype", name, "must be float32, float16 or bfloat16")


def usable_device(
    device: str, remedy: str = "must be a device that torch can use here, such as cpu"
) -> torch.device:
    """The device of this name, with its number; raises InputError where torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError("device", device, remedy) from error
