"""How a command ends: exit codes, and errors as one line."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from atoll import errors

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

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


class Unwritable(Exception):
    """The output cannot be written, as on a full disk. (No `OSError`: such have other causes too.)"""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output cannot be written: {error.strerror or error}")


def write(fd: int, data: ReadableBuffer) -> int:
    """Write some of it; how many bytes. Raises `ReaderGone` and `Unwritable`."""
    try:
        return os.write(fd, data)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise ReaderGone from None
        raise Unwritable(error) from None


class Output(io.RawIOBase):
    """Standard output whose failures are `ReaderGone` and `Unwritable`, wherever they arise."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        return write(self._fd, data)


def guard_stdout() -> None:
    """Put an `Output` below standard output; what is written goes nowhere where it was closed."""
    old = sys.stdout
    if old is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    if isinstance(old, io.TextIOWrapper):
        raw = Output(old.fileno())
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=old.encoding, errors=old.errors, line_buffering=old.line_buffering
        )


def drop_stdout() -> None:
    """What is still buffered goes nowhere: it must not be tried again at exit (Python docs, note on SIGPIPE)."""
    _to_nowhere(sys.stdout.fileno())


def _to_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)


def say(message: str) -> None:
    """One line on standard error, as every error is told; lost where that cannot be written."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    try:
        print(f"atoll: {line}", file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere(sys.stderr.fileno())


def code_of(error: errors.AtollError) -> int:
    """126 and 127 where the error says so itself, as `CommandFailed` does; else 125."""
    told = getattr(error, "exit_code", FAILED)
    return told if isinstance(told, int) else FAILED
