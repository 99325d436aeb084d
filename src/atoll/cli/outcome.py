"""How a command ends: exit codes, and errors as one line."""

from __future__ import annotations

import sys

from atoll import errors

FAILED = 125
USAGE = 2
FOUND = 1
INTERRUPTED = 130
BROKEN_PIPE = 141


class Ended(Exception):
    """Ends the command with an exit code, everything having been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ReaderGone(Exception):
    """Nobody reads our output any more. (No `BrokenPipeError`: the command line's parser would end with 1.)"""


def say(message: str) -> None:
    """One line on standard error, as every error is told."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"atoll: {line}", file=sys.stderr)


def code_of(error: errors.AtollError) -> int:
    """126 and 127 where the error says so itself, as `CommandFailed` does; else 125."""
    told = getattr(error, "exit_code", FAILED)
    return told if isinstance(told, int) else FAILED
