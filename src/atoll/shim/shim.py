"""What the services of one shim share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import TypeVar

from atoll import errors
from atoll.concurrency import TaskOwner
from atoll.shim.events import Forwarder
from atoll.shim.pod_holder import Holders
from atoll.shim.reaper import Reaper
from atoll.shim.request import ShimRequest
from atoll.shim.stdio.streaming import Streams

T = TypeVar("T")
log = logging.getLogger(__name__)
NOBODY = ShimRequest(id="nobody", namespace="nobody", bundle="/", socket="")


class Shim:
    """One shim: what it was asked to be, and what outlives a call.

    `reaper` and `holders` are the process's, which other shims may share; everything else is its own.
    """

    def __init__(self, request: ShimRequest, reaper: Reaper, holders: Holders) -> None:
        self.request = request
        self.reaper = reaper
        self.holders = holders
        self.tasks = TaskOwner(f"shim {request.id}")
        self.events = Forwarder(self.tasks)
        self.streams = Streams()
        self.ended = asyncio.Event()
        self.is_killed = False

    def end(self) -> None:
        """End the shim after the answers that are under way were sent; idempotent."""
        self.ended.set()

    def kill(self) -> None:
        """End the shim as if its process were killed: what it has is left to whoever reads its records."""
        self.is_killed = True
        self.ended.set()

    async def own(self, work: Coroutine[None, None, T], *, name: str) -> T:
        """Do `work` as a task of the shim: a caller that goes away does not stop it half-way. One line of the log."""
        outcome = await asyncio.shield(self.tasks.spawn(_settled(work, name), name=name))
        if isinstance(outcome, errors.AtollError):
            raise outcome
        return outcome


async def _settled(work: Coroutine[None, None, T], name: str) -> T | errors.AtollError:
    began = time.monotonic()
    try:
        result = await work
    except errors.AtollError as error:
        log.warning("%s failed after %.1f ms: %s", name, (time.monotonic() - began) * 1e3, error)
        return error
    except OSError as error:
        log.warning("%s failed after %.1f ms: %s", name, (time.monotonic() - began) * 1e3, error)
        return errors.Internal(f"{name}: {error.filename or ''}: {error.strerror}")
    log.info("%s done in %.1f ms", name, (time.monotonic() - began) * 1e3)
    return result
