"""The output of a background process on disk: as many bytes as are kept, at the places where they were written.

The shim appends to a file for each stream. Of what is older than the last `KEEP_BYTES` the disk space is given back by
a hole in the file (fallocate(2)), so that offsets stay what they were. Nothing is trimmed while no daemon runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from atoll.concurrency import Blocking, Latch, TaskOwner
from atoll.container.status import Status
from atoll.linux import syscalls
from atoll.linux.watch import Watch

log = logging.getLogger(__name__)

KEEP_BYTES = 64 << 20
"""Of each stream; a little more where a process writes fast."""
SLACK_BYTES = 8 << 20
TRIM_INTERVAL_S = 1.0
"""Between two looks at the size of what is being written; nothing wakes up for a process that writes nothing."""
READ_BYTES = 256 << 10
STREAMS = ("stdout", "stderr")
Over = Latch[Status]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of `stream` that begin at `offset` of all that was written to it."""

    stream: str
    offset: int
    data: bytes


class Spool:
    """The files of one process, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stream: str) -> Path:
        return self.folder / stream

    def kept(self, stream: str) -> tuple[int, int]:
        """The first byte that is kept, and how many were written; blocks for a moment."""
        try:
            fd = os.open(self.path(stream), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0, 0
        try:
            size = os.fstat(fd).st_size
            return _begin(fd, size), size
        finally:
            os.close(fd)

    def trim(self) -> None:
        """Give back the space of what is too old; blocks."""
        for stream in STREAMS:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self.path(stream), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    _trim(fd)
                finally:
                    os.close(fd)

    async def keep_short(self, blocking: Blocking) -> None:
        """Trim while the process writes; until cancelled."""
        try:
            with Watch(self.folder) as watch:
                while True:
                    await watch.changed()
                    await blocking.run(self.trim)
                    await asyncio.sleep(TRIM_INTERVAL_S)
        except OSError as error:
            log.warning("%s: its size is not limited: %s", self.folder, error)

    async def follow(
        self, starts: tuple[int, int], over: asyncio.Event, blocking: Blocking, *, wait: bool
    ) -> AsyncGenerator[Part]:
        """Both streams from their starts on, until the process is `over`, or without `wait` till now."""
        offsets = dict(zip(STREAMS, starts, strict=True))
        with Watch(self.folder) as watch:
            while True:
                was_over = over.is_set() or not wait
                news = False
                for stream in STREAMS:
                    while (part := await blocking.run(self._read, stream, offsets[stream])) is not None:
                        news = True
                        offsets[stream] = part.offset + len(part.data)
                        yield part
                if was_over:
                    return
                if not news:
                    async with TaskOwner("spool") as tasks:
                        waits = {
                            tasks.spawn(watch.changed(), name="spool/changed"),
                            tasks.spawn(over.wait(), name="spool/over"),
                        }
                        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

    def _read(self, stream: str, offset: int) -> Part | None:
        try:
            fd = os.open(self.path(stream), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(fd).st_size
            if offset >= size:
                return None
            offset = max(offset, _begin(fd, size))
            data = os.pread(fd, READ_BYTES, offset)
            # A hole that was made meanwhile reads as zeros: then the beginning has moved.
            begin = _begin(fd, size)
            if begin > offset:
                data, offset = data[begin - offset :], begin
            return Part(stream=stream, offset=offset, data=data) if data else None
        finally:
            os.close(fd)


def _begin(fd: int, size: int) -> int:
    """Where the data behind the hole begins; only whole blocks of the disk are holes, and the first byte is told."""
    if size <= KEEP_BYTES:
        return 0
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def _trim(fd: int) -> None:
    size = os.fstat(fd).st_size
    if size - _begin(fd, size) <= KEEP_BYTES + SLACK_BYTES:
        return
    block = os.fstat(fd).st_blksize
    syscalls.punch_hole(fd, 0, (size - KEEP_BYTES) // block * block)
