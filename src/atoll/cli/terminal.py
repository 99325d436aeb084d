"""The user's side of a stream: standard input, a raw terminal, its size, signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

from atoll import errors
from atoll.cli import outcome
from atoll.concurrency import TaskOwner

READ_BYTES = 32 << 10


def write(fd: int, data: bytes) -> None:
    """Write all of it; raises `ReaderGone` where the reader is, `Unwritable` where it cannot be."""
    view = memoryview(data)
    while view:
        view = view[outcome.write(fd, view) :]


@contextlib.asynccontextmanager
async def while_read() -> AsyncGenerator[None]:
    """Within, a pipe as standard output whose reader goes ends the task with `ReaderGone`, also where nothing is told.

    A pipe's end for writing is told as an error once nobody has the other (poll(2), POLLERR).
    """
    fd, loop, task = sys.stdout.fileno(), asyncio.get_running_loop(), asyncio.current_task()
    if task is None or not stat.S_ISFIFO(os.fstat(fd).st_mode):
        yield
        return
    is_gone = False

    def gone() -> None:
        nonlocal is_gone
        is_gone = True
        loop.remove_reader(fd)
        task.cancel()

    loop.add_reader(fd, gone)
    try:
        yield
    except asyncio.CancelledError:
        if not is_gone:
            raise
        task.uncancel()
        raise outcome.ReaderGone from None
    finally:
        loop.remove_reader(fd)


def size() -> tuple[int, int]:
    """Width and height of the terminal in characters."""
    found = shutil.get_terminal_size()
    return found.columns, found.lines


def detach_sequence(text: str) -> bytes:
    """The bytes of keys like `ctrl-p,ctrl-q` or `q`; none for an empty text. Raises `InvalidArgument`."""
    found = bytearray()
    for key in filter(None, text.split(",")):
        letter = key.removeprefix("ctrl-")
        code = (
            ord(letter.upper()) ^ 0x40
            if letter != key and len(letter) == 1
            else ord(letter)
            if len(letter) == 1
            else -1
        )
        if not 0 <= code < (0x20 if letter != key else 0x7F):
            raise errors.InvalidArgument(f"detach keys {text!r}: {key!r} must be one letter, or ctrl- and one")
        found.append(code)
    return bytes(found)


class DetachKeys:
    """Finds the keys that detach in what is typed; what may yet become them is held back until the next key."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._held = b""

    def pass_on(self, data: bytes) -> tuple[bytes, bool]:
        """What of it is for the process, and whether the keys were typed."""
        if not self._sequence:
            return data, False
        data = self._held + data
        before, found, _ = data.partition(self._sequence)
        if found:
            return before, True
        keep = next(
            length
            for length in range(min(len(self._sequence) - 1, len(data)), -1, -1)
            if data.endswith(self._sequence[:length])
        )
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep], False


@contextlib.contextmanager
def raw(fd: int) -> Generator[None]:
    """The terminal hands on every key as it is; restored at the end, whatever happens."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def on_signals(numbers: tuple[int, ...], handle: Callable[[int], None]) -> Generator[None]:
    """Call `handle` on the loop for each of these signals instead of what they do."""
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def typed(fd: int) -> AsyncGenerator[bytes]:
    """What can be read from `fd` until its end, at the pace at which it is taken."""
    loop = asyncio.get_running_loop()
    while True:
        readable = asyncio.Event()
        try:
            loop.add_reader(fd, readable.set)
        except PermissionError:  # a regular file or /dev/null: epoll knows none, and reading never waits
            data = os.read(fd, READ_BYTES)
        else:
            try:
                await readable.wait()
            finally:
                loop.remove_reader(fd)
            data = _read(fd)
        if not data:
            return
        yield data


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, READ_BYTES)
    except OSError:  # a terminal that hung up
        return b""


@contextlib.contextmanager
def resizing(owner: TaskOwner, resize: Callable[[int, int], Awaitable[None]]) -> Generator[None]:
    """Tell the size at once and whenever the window changes."""

    async def tell() -> None:
        await resize(*size())

    def changed(_: int) -> None:
        owner.spawn(tell(), name="cli/resize")

    changed(signal.SIGWINCH)
    with on_signals((signal.SIGWINCH,), changed):
        yield


def stdin_fd() -> int | None:
    """Standard input, where there is one."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        return None
