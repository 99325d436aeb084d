"""Folders watched by inotify(7), as something to await."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Self

from atoll.linux import syscalls

# The bits of inotify(7).
_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_READ_BYTES = 64 << 10


class Watch:
    """One folder; `changed` returns when something in it was written, made, renamed or removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1

    def __enter__(self) -> Self:
        """Begin to watch; raises `OSError` where the folder is missing or the limit of watches is reached."""
        fd = syscalls.inotify_init()
        try:
            mask = _IN_MODIFY | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
            syscalls.inotify_add_watch(fd, self._folder, mask)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._fd = -1

    async def changed(self) -> None:
        """Return at the first change since the watch began or since the last return; many at once count as one."""
        loop = asyncio.get_running_loop()
        while not self._drain():
            ready = loop.create_future()
            loop.add_reader(self._fd, lambda ready=ready: ready.done() or ready.set_result(None))
            try:
                await ready
            finally:
                loop.remove_reader(self._fd)

    def _drain(self) -> bool:
        seen = False
        while True:
            try:
                os.read(self._fd, _READ_BYTES)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return seen
                raise
            seen = True
