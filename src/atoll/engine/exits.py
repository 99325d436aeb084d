"""Exits that are known and not on disk yet: written again and again, for a full disk may be freed at any time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.container.status import Status
from atoll.container.store import Container

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0


class Exits:
    """Writes the exit of a container to its checkpoint, at once or as soon as the disk takes it."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._unwritten: dict[str, asyncio.Task[None]] = {}
        self._written: set[str] = set()

    async def tell(
        self, container: Container, exited: Callable[[Status], Status], written: Callable[[], Awaitable[None]]
    ) -> bool:
        """Make `exited` the container's status; whether it is on disk.

        Where the disk refuses it holds in memory from now on, and is written later, then `written` is awaited: what
        a later daemon could learn the exit from must stay until then.
        """
        try:
            await container.status.update_sync(exited)
        except (errors.ResourceExhausted, errors.Unavailable) as error:
            log.error("container %s: its exit is not on disk, will be retried: %s", container.id[:13], error)
            await container.status.update(exited)
            if container.id not in self._unwritten:
                self._unwritten[container.id] = self._owner.spawn(
                    self._write(container, written), name=f"container/{container.id}/write exit"
                )
            return False
        return True

    async def give_up(self, container_id: str) -> None:
        """Write it no more, for the container is being removed; what follows a write is waited for."""
        task = self._unwritten.get(container_id)
        if task is not None:
            if container_id not in self._written:
                task.cancel()
            await asyncio.wait({task})

    async def _write(self, container: Container, written: Callable[[], Awaitable[None]]) -> None:
        try:
            if await self._is_written(container):
                self._written.add(container.id)
                log.info("container %s: its exit is on disk now", container.id[:13])
                await written()
        finally:
            self._written.discard(container.id)
            del self._unwritten[container.id]

    async def _is_written(self, container: Container) -> bool:
        pause = FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause)
            try:
                await container.status.update_sync(lambda status: status)
            except errors.NotFound:
                return False
            except (errors.ResourceExhausted, errors.Unavailable) as error:
                log.debug("container %s: its exit is not on disk yet: %s", container.id[:13], error)
            else:
                return True
            pause = min(2 * pause, LAST_PAUSE_S)
