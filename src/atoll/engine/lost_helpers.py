"""OCI runtimes and programs for registries that hang, and whose shim or daemon is gone: ended at a start, with the pods
of a shim that is gone, and by `fsck`.
"""

from __future__ import annotations

import logging
import os

from atoll.concurrency import Blocking
from atoll.engine.paths import Paths
from atoll.ledger.kind import Entry, Found, Kind
from atoll.linux import leftover, process
from atoll.linux.process import ProcessId
from atoll.runtime import ending

log = logging.getLogger(__name__)


class Helpers(Kind):
    """Programs of ours that nobody waits for any more."""

    name = "helper"
    volatile = True
    limit_s: float = 15.0

    def __init__(self, paths: Paths, blocking: Blocking) -> None:
        self._places = (paths.state, paths.root)
        self._blocking = blocking

    async def end_all(self) -> None:
        """End those there are."""
        for who in await self._blocking.run(leftover.lost, self._places):
            log.warning("process %d of a shim or daemon that is gone: it still ran and is killed", who.pid)
            await self._end(who, "its owner")

    async def scan(self) -> list[Found]:
        found = await self._blocking.run(leftover.lost, self._places)
        return [
            Found(kind=self.name, key=str(who.pid), data={"start": str(who.start_ticks), "boot": who.boot_id})
            for who in found
        ]

    async def release(self, entry: Entry) -> None:
        await self._end(_identity(entry), entry.key)

    async def exists(self, entry: Entry) -> bool:
        return await self._blocking.run(leftover.is_lost, _identity(entry), self._places)

    async def _end(self, who: ProcessId, of: str) -> None:
        pidfd = process.open_pidfd(who)
        if pidfd is None:
            return
        try:
            if await self._blocking.run(leftover.is_lost, who, self._places):
                await ending.kill(pidfd, of)
        finally:
            os.close(pidfd)


def _identity(entry: Entry) -> ProcessId:
    return ProcessId(pid=int(entry.key), start_ticks=int(entry.data["start"]), boot_id=entry.data["boot"])
