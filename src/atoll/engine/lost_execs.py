"""What callers of an earlier daemon had run in containers: nobody can reach it any more, so it is ended.

An exec lives as long as its caller, and the caller of a daemon that was killed has gone with its connection.
"""

from __future__ import annotations

import asyncio
import logging

from atoll import errors
from atoll.concurrency import wait_all
from atoll.container.status import State
from atoll.container.store import Container
from atoll.engine.containers import Containers
from atoll.engine.execs import Execs
from atoll.engine.pods import Pods

log = logging.getLogger(__name__)

CONCURRENCY = 8
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 60.0
"""Between two questions about a container whose shim does not answer, or whose state is not known yet."""


async def end(pods: Pods, containers: Containers, execs: Execs) -> None:
    """Ask about every container that an earlier daemon left, until it has answered or ended."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(container: Container) -> None:
        pause_s = FIRST_PAUSE_S
        while container in containers.list() and container.status.get().state is not State.EXITED:
            async with gate:
                if await _is_asked(pods, execs, container):
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    await wait_all([one(container) for container in containers.list()])


async def _is_asked(pods: Pods, execs: Execs, container: Container) -> bool:
    pod = pods.find(container.sandbox_id)
    if pod is None or container.status.get().state is State.CREATED:
        return True  # nothing runs in it
    try:
        await execs.end_lost(pod, container)
    except errors.Unimplemented:
        return True  # a shim of an earlier version
    except errors.NotFound:
        return True  # it has ended
    except errors.AtollError as error:
        log.info("container %s: its execs are asked about later: %s", container.id[:13], error)
        return False
    return True
