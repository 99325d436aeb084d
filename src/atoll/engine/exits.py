"""Statuses that are known and not on disk yet: written again and again, for a full disk may be freed at any time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.container.status import State, Status
from atoll.container.store import Container

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0


class Exits:
    """Writes the exit of a container to its checkpoint, and what else is owed to it, as soon as the disk takes it."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._unwritten: dict[str, asyncio.Task[None]] = {}
        self._after: dict[str, Callable[[], Awaitable[None]]] = {}
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
            self._after[container.id] = written
            self._write_later(container, FIRST_PAUSE_S)
            return False
        return True

    def owe(self, container: Container) -> None:
        """Write the status that memory holds, behind the caller; what is settled before that is written with it."""
        self._write_later(container, 0.0)

    async def give_up(self, container_id: str) -> None:
        """Write it no more, for the container is being removed; what follows a write is waited for."""
        task = self._unwritten.get(container_id)
        if task is not None:
            if container_id not in self._written:
                task.cancel()
            await asyncio.wait({task})

    def _write_later(self, container: Container, pause: float) -> None:
        if container.id not in self._unwritten:
            self._unwritten[container.id] = self._owner.spawn(
                self._write(container, pause), name=f"container/{container.id}/write status"
            )

    async def _write(self, container: Container, pause: float) -> None:
        try:
            if await self._is_written(container, pause):
                self._written.add(container.id)
                if (after := self._after.pop(container.id, None)) is not None:
                    log.info("container %s: its exit is on disk now", container.id[:13])
                    await after()
        finally:
            self._after.pop(container.id, None)
            self._written.discard(container.id)
            del self._unwritten[container.id]

    async def _is_written(self, container: Container, pause: float) -> bool:
        while True:
            await asyncio.sleep(pause)
            pause = min(max(2 * pause, FIRST_PAUSE_S), LAST_PAUSE_S)
            try:
                status = await container.status.update_sync(lambda status: status)
            except errors.NotFound:
                return False
            except (errors.ResourceExhausted, errors.Unavailable) as error:
                log.debug("container %s: its status is not on disk yet: %s", container.id[:13], error)
                continue
            # An exit that was refused while an earlier status was being written is still owed.
            if container.id not in self._after or status.state is State.EXITED:
                return True
