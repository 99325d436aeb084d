"""Reading a container's CRI log: from its end or its beginning, and on as it grows.

A rotated file (renamed, a new one at the path) is read to its end before the new one. Following wakes up
by inotify(7), never by polling. The file may be as long as its disk and the disk slow: a tail is found from the end,
and every read is a thread's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Self

from atoll import crilog, errors
from atoll.concurrency import Blocking, Latch
from atoll.container.status import Status
from atoll.linux.plain import open_below
from atoll.linux.watch import Watch

READ_BYTES = 256 << 10
MAX_TAIL_LINES = 100_000


async def read(
    path: Path,
    *,
    below: int = 1,
    follow: bool,
    tail: int,
    since_ns: int,
    ended: Latch[Status],
    blocking: Blocking,
) -> AsyncGenerator[bytes]:
    """The log by blocks of whole lines, as much at once as one read gives; with `follow` until it has ended.

    It has ended once the container has and its log was read to the end.

    `tail` counts entries from the end, negative or zero for all of them. Without `follow` it ends where the file
    ended at the call. `FailedPrecondition` where one of the last `below` names of the path is a link.
    The disk is waited for in `blocking`, a chunk at a time.
    """
    if tail > MAX_TAIL_LINES:
        raise errors.InvalidArgument(f"tail {tail}: at most {MAX_TAIL_LINES} lines")
    with Reader(path, below=below, since_ns=since_ns) as reader:
        await blocking.run(reader.start, max(tail, 0))
        while (block := await blocking.run(reader.block)) is not None:
            if block:
                yield block
        if not follow:
            return
        reader.go_on()
        with Watch(path.parent) as watch:
            while True:
                over = ended.is_set
                while (block := await blocking.run(reader.block)) is not None:
                    if block:
                        yield block
                if over:
                    return
                await _change(watch, ended)


async def _change(watch: Watch, ended: Latch[Status]) -> None:
    """Until the folder changes or the container ends."""
    async with asyncio.TaskGroup() as group:
        waits = {group.create_task(watch.changed()), group.create_task(ended.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


class Reader:
    """Whole lines of a growing file; follows it over a rotation. The last `below` names of its path are no links.

    Leaving it while a thread reads is fine: the thread then closes the file.
    """

    def __init__(self, path: Path, *, below: int = 1, since_ns: int = 0) -> None:
        self._path = path
        self._below = below
        self._since_ns = since_ns
        self._fd = -1
        self._rest = b""
        self._left: int | None = None
        self._busy = threading.Lock()
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._close_unless_busy()

    def _close_unless_busy(self) -> None:
        if self._busy.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._busy.release()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._rest = -1, b""

    def _open(self) -> None:
        try:
            self._fd = open_below(self._path, self._below)
        except FileNotFoundError:
            return
        except OSError as error:
            why = "is a symbolic link, or below one" if error.errno == errno.ELOOP else error.strerror
            raise errors.FailedPrecondition(f"log file {self._path}: {why}") from error

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        with self._busy:
            yield
        if self._is_over:
            self._close_unless_busy()

    def start(self, tail: int) -> None:
        """Begin at the last `tail` entries, 0 for all, and end where the file ends now, until `go_on`."""
        with self._reading():
            self._left = 0
            if not self._is_over:
                self._open()
            if self._fd >= 0:
                size = os.fstat(self._fd).st_size
                offset = self._tail_offset(size, tail) if tail else 0
                os.lseek(self._fd, offset, os.SEEK_SET)
                self._left = size - offset

    def go_on(self) -> None:
        """Read what came after `start`, too."""
        self._left = None

    def block(self) -> bytes | None:
        """The whole lines of one chunk, empty where none of them is wanted, or None where there is no chunk now.

        The rest of a rotated file comes first.
        """
        with self._reading():
            return None if self._is_over else self._block()

    def _block(self) -> bytes | None:
        while True:
            if self._fd < 0:
                self._open()
            if self._fd < 0:
                return None
            if chunk := self._read():
                return self._wanted(chunk)
            if self._left is not None or not self._rotated():
                return None
            if chunk := self._read():
                return self._wanted(chunk)
            self._close()

    def _read(self) -> bytes:
        if self._left is None:
            return os.read(self._fd, READ_BYTES)
        chunk = os.read(self._fd, min(self._left, READ_BYTES))
        self._left -= len(chunk)
        return chunk

    def _wanted(self, chunk: bytes) -> bytes:
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        block, self._rest = data[:end], data[end:]
        return self._since(block) if self._since_ns and block else block

    def _since(self, block: bytes) -> bytes:
        """Without what is before the time that is asked for; times rise, so from a block behind it on all is wanted."""
        first, last = block.partition(b"\n")[0], block[:-1].rpartition(b"\n")[2]
        if self._is_before(first) and self._is_before(last):
            return b""
        if crilog.line(first) is not None and not self._is_before(first):
            self._since_ns = 0
            return block
        return b"".join(raw for raw in block.splitlines(keepends=True) if not self._is_before(raw.rstrip(b"\n")))

    def _is_before(self, raw: bytes) -> bool:
        line = crilog.line(raw)
        return line is not None and line.time_ns < self._since_ns

    def _tail_offset(self, size: int, count: int) -> int:
        """Where the last `count` entries of the first `size` bytes begin, found from their end."""
        position, rest, is_torn = size, b"", True
        while position > 0 and not self._is_over:
            length = min(READ_BYTES, position)
            position -= length
            block = os.pread(self._fd, length, position) + rest
            rest, *whole = block.split(b"\n")
            at = position + len(block)
            if is_torn:  # what follows the last line break is no entry yet
                if not whole:
                    rest = b""
                    continue
                is_torn = False
                at -= len(whole.pop()) + 1
            for raw in reversed(whole):
                at -= len(raw)
                count -= crilog.line(raw) is not None
                if not count:
                    return at
                at -= 1
        return 0

    def _rotated(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
