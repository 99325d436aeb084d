"""Start a created container without its runtime's program, which takes 4 to 8 ms for it.

The first process of a container that runc or crun created waits at a named pipe, `exec.fifo` in the container's state
folder; while it is there their `state` says `created`. All that `start` has left to do is to meet the process there and
to remove the pipe: runc's process writes a byte and waits for a reader, crun's reads one. Hooks for after the start are
the program's to run, and so is whatever is not as it should be: it knows the words for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Generator
from pathlib import Path

from atoll.concurrency import run_to_completion

ANSWER_WITHIN_S = 60.0
_OPEN_FLAGS = {"runc": os.O_RDONLY, "crun": os.O_WRONLY}


async def let_go(runtime: str, state: Path) -> bool:
    """Let the process that waits in the state folder `state` execute its command; False where none is met there.

    After False nothing was changed. `runtime` is the name of the program; of one that is not known nothing is met.
    Once the process knows of us it is waited for, although the caller is cancelled: who left then would break its
    pipe, and it would end. `DeadlineExceeded` where it does not answer, as one that is frozen.
    Source: runc's and crun's state folders, watched with strace.
    """
    flags = _OPEN_FLAGS.get(runtime)
    if flags is None:
        return False
    path = state / "exec.fifo"
    try:
        with _opened(path, flags) as fd:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                return False
            if flags == os.O_WRONLY:
                os.write(fd, b"\0")
            elif not await run_to_completion(_byte(fd), within=ANSWER_WITHIN_S):
                return False
            path.unlink(missing_ok=True)
            return True
    except OSError:  # ENXIO: nobody reads; EPIPE: no longer; ENOENT: no pipe
        return False


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Generator[int]:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def _byte(fd: int) -> bytes:
    """What the writer at the other end writes; empty where there is none, or it has gone."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError):
            return os.read(fd, 1)
        ready = loop.create_future()
        loop.add_reader(fd, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(fd)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
