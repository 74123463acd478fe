"""Errors that a user can act on."""

from __future__ import annotations

__all__ = ["CaptureError", "InputError", "RatedistError"]


class RatedistError(Exception):
    """Base of every error that ratedist raises on purpose; the command line exits with code 2 on it."""


class InputError(RatedistError, ValueError):
    """An argument is outside what a function accepts.

    The message names the argument, the value that was given and what would be accepted.
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        self.argument = argument
        self.value = value
        self.remedy = remedy
        super().__init__(f"{argument} = {value!r}: {remedy}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        # Exceptions are rebuilt from their message otherwise, when a worker process sends one back.
        return type(self), (self.argument, self.value, self.remedy)


class CaptureError(RatedistError):
    """A capture on disk is incomplete, corrupted, or of a schema version that this version cannot read."""
