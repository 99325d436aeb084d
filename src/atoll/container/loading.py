"""`load_store`: every container back, from the records, the checkpoints and what a runtime says of each.

For programs that drive shims by themselves. The daemon serves before it asks and asks pod by pod
(`atoll.engine.recovery`), by the same table (`settling`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.concurrency import Blocking, wait_all
from atoll.container.settling import Settled, Task, TaskPhase, settle
from atoll.container.status import encode_status
from atoll.container.store import Container, ContainerStore
from atoll.database import Database

ASK_LIMIT_S = 10.0
"""How long one container's runtime may take to answer, and to delete its task."""
AT_A_TIME = 32

Ask = Callable[[Container], Awaitable[Task]]
DeleteTask = Callable[[Container], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A settled store, the containers whose exits are to be waited for, those that need IO before a start."""

    store: ContainerStore
    watch: tuple[Container, ...]
    needs_io: tuple[Container, ...]


async def load_store(db: Database, root: Path, blocking: Blocking, ask: Ask, delete_task: DeleteTask) -> Loaded:
    """Open the store and settle every container; never fails for one of them.

    `ask` tells of a container's task, or raises: `NotFound` is no task, any other error UNKNOWN with its text, and so
    is no answer within `ASK_LIMIT_S`. What changed is on the disk when it returns; a disk that refuses is UNKNOWN too.
    """
    store = await ContainerStore.open(db, root, blocking)
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(container: Container) -> Settled:
        async with gate:
            return await _settle(container, await _told(container, ask), delete_task)

    containers = store.list()
    settled = list(zip(containers, await wait_all([one(container) for container in containers]), strict=True))
    return Loaded(
        store=store,
        watch=tuple(container for container, found in settled if found.watch),
        needs_io=tuple(container for container, found in settled if found.needs_io),
    )


async def _told(container: Container, ask: Ask) -> Task:
    try:
        async with asyncio.timeout(ASK_LIMIT_S):
            return await ask(container)
    except errors.NotFound:
        return Task(phase=TaskPhase.ABSENT)
    except errors.AtollError as error:
        return Task(phase=TaskPhase.OTHER, why=str(error))
    except TimeoutError:
        return Task(phase=TaskPhase.OTHER, why=f"its runtime did not answer within {ASK_LIMIT_S:g} s")


async def _settle(container: Container, task: Task, delete_task: DeleteTask) -> Settled:
    before = container.status.get()
    found = settle(before, task, time.time_ns())
    try:
        if encode_status(found.status) != encode_status(before):
            await container.status.update_sync(lambda _: found.status)
        else:
            await container.status.update(lambda _: found.status)
        if found.delete_task:
            async with asyncio.timeout(ASK_LIMIT_S):
                await delete_task(container)
    except (errors.AtollError, TimeoutError) as error:
        why = str(error) or f"its task was not deleted within {ASK_LIMIT_S:g} s"
        lost = settle(container.status.get(), Task(phase=TaskPhase.OTHER, why=why), time.time_ns())
        await container.status.update(lambda _: lost.status)
        return lost
    return found
