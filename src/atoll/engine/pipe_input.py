"""Input for a process that outlives whoever writes it: a named pipe that its shim reads and keeps open (fifo(7))."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path

from atoll import errors
from atoll.concurrency import TaskOwner

STDIN = "stdin"
_NO_MORE = "takes no more input: its stdin is closed, or it has ended"


def make(folder: Path) -> None:
    """The pipe, in the folder of a process. Blocks; raises `OSError`."""
    os.mkfifo(folder / STDIN, 0o600)


async def write(folder: Path, data: bytes, over: asyncio.Event) -> None:
    """Return once the pipe has taken all of it; raises `FailedPrecondition` where nobody reads it any more.

    What a caller that is cancelled has given stays given.
    """
    try:
        fd = os.open(folder / STDIN, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            raise errors.FailedPrecondition(f"process {folder.name}: {_NO_MORE}") from error
        raise errors.Unavailable(f"process {folder.name}: its stdin cannot be opened: {error.strerror}") from error
    try:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(fd, left) :]
            except BlockingIOError:
                await _writable(fd, over)
            except BrokenPipeError as error:
                raise errors.FailedPrecondition(f"process {folder.name}: {_NO_MORE}") from error
            if left and over.is_set():
                raise errors.FailedPrecondition(f"process {folder.name}: {_NO_MORE}")
    finally:
        os.close(fd)


async def _writable(fd: int, over: asyncio.Event) -> None:
    """Until the pipe has room or no reader, or the process has ended."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        async with TaskOwner("stdin") as tasks:
            waits = {tasks.spawn(one.wait(), name="stdin/wait") for one in (ready, over)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        with contextlib.suppress(OSError):
            loop.remove_writer(fd)
