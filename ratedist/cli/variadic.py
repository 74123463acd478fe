"""Options that take several values after one flag: ``--thresholds 0.4 0.5 0.6``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["ManyValuesCommand", "split_numbers"]


class ManyValuesCommand(TyperCommand):
    """A command whose repeatable options may be given once with several values.

    Typer repeats the flag instead (``--thresholds 0.4 --thresholds 0.5``), which still works. The values end
    at the next option; a negative number is a value. For commands without positional arguments only, which
    would be taken for values.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._repeat_flags(list(args)))

    def _repeat_flags(self, args: list[str]) -> list[str]:
        many = {
            flag
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for flag in parameter.opts
            if flag.startswith("--")
        }
        result: list[str] = []
        flag: str | None = None
        held = 0
        for position, arg in enumerate(args):
            if arg == "--":
                return result + args[position:]
            name, separator, _ = arg.partition("=")
            if arg.startswith("-") and not _is_number(arg):
                flag = name if name in many else None
                held = 1 if separator else 0
            elif flag is not None:
                if held:
                    result.append(flag)
                held += 1
            result.append(arg)
        return result


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def split_numbers(argument: str, values: list[str]) -> list[float]:
    """Numbers from option values, each of which may hold several separated by commas or spaces.

    Raises InputError naming ``argument`` and the part that is no number.
    """
    from ratedist.errors import InputError

    numbers = []
    for part in " ".join(values).replace(",", " ").split():
        try:
            numbers.append(float(part))
        except ValueError:
            raise InputError(argument, part, "must be a number, or several: 0.4 0.5 0.6") from None
    return numbers
