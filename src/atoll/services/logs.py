"""Reading a container's CRI log: from its end or its beginning, and on as it grows.

A rotated file (renamed, a new one at the path) is read to its end before the new one. Following wakes up
by inotify(7), never by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from atoll import errors
from atoll.concurrency import Latch
from atoll.container.status import Status
from atoll.linux.watch import Watch

READ_BYTES = 256 << 10
MAX_TAIL_LINES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry of a CRI log; `partial` where the line goes on in the next entry of its stream."""

    time_ns: int
    stream: str
    partial: bool
    content: bytes


def parse(raw: bytes) -> Line | None:
    """One line of the file without its line break; None for what is no CRI log line."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr"):
        return None
    try:
        return Line(
            time_ns=parse_time(parts[0].decode("ascii")),
            stream=parts[1].decode("ascii"),
            partial=parts[2] == b"P",
            content=parts[3],
        )
    except (UnicodeDecodeError, ValueError):
        return None


def parse_time(text: str) -> int:
    """RFC 3339 with up to nine digits of a second, in ns since the epoch; raises `ValueError`."""
    head, dot, rest = text.partition(".")
    if not dot:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    digits = len(rest) - len(rest.lstrip("0123456789"))
    fraction, zone = rest[:digits], rest[digits:]
    seconds = int(datetime.fromisoformat(head + zone).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])


async def read(path: Path, *, follow: bool, tail: int, since_ns: int, ended: Latch[Status]) -> AsyncIterator[Line]:
    """The lines of a log; with `follow` until the container has ended and its log was read to the end.

    `tail` counts entries from the end, negative or zero for all of them.
    """
    if tail > MAX_TAIL_LINES:
        raise errors.InvalidArgument(f"tail {tail}: at most {MAX_TAIL_LINES} lines")
    with Reader(path) as reader:
        first: Iterator[Line] = reader.lines()
        if tail > 0:
            first = iter(deque(first, maxlen=tail))
        for line in first:
            if line.time_ns >= since_ns:
                yield line
        if not follow:
            return
        with Watch(path.parent) as watch:
            while True:
                over = ended.is_set
                for line in reader.lines():
                    if line.time_ns >= since_ns:
                        yield line
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
    """Whole lines of a growing file; follows it over a rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def lines(self) -> Iterator[Line]:
        """What came since the last call, the rest of a rotated file first."""
        if self._fd < 0:
            self._open()
        while self._fd >= 0:
            yield from self._read_on()
            if not self._rotated():
                return
            yield from self._read_on()
            os.close(self._fd)
            self._fd, self._rest = -1, b""
            self._open()

    def _read_on(self) -> Iterator[Line]:
        while chunk := os.read(self._fd, READ_BYTES):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            for raw in whole:
                line = parse(raw)
                if line is not None:
                    yield line

    def _rotated(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
