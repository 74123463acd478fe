"""The command line, one command per file; each imports what it needs when it runs."""

from __future__ import annotations

import sys

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors of ratedist end it with one line on standard error and exit code 2."""
    from ratedist.cli.app import app
    from ratedist.errors import RatedistError

    try:
        app()
    except RatedistError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        # typer turns Ctrl-C into this code without a word.
        if end.code == _INTERRUPTED:
            print(
                "interrupted; what was finished is kept, and the same command goes on from there",
                file=sys.stderr,
            )
        raise
