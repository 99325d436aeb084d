"""When a hosted sandbox is given up: its caller was never heard of again.

One that is created has a bounded time to be started. One that is a containerd's pod and was started has the same time
to be asked about, for its caller asks at once unless the answer to its start was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from atoll import errors
from atoll.engine.hosted import Hosted, HostedRecord, Phase
from atoll.engine.parts import Parts

log = logging.getLogger(__name__)


class Expiry:
    """The timers of one daemon's hosted sandboxes; `free` frees one, and tells what is left of it in words."""

    def __init__(self, parts: Parts, free: Callable[[Hosted], Awaitable[list[str]]]) -> None:
        self._parts = parts
        self._free = free

    @staticmethod
    def may_come(hosted: Hosted) -> bool:
        """Whether the sandbox's caller may never have got to it."""
        return hosted.state.phase is Phase.CREATED or not hosted.state.is_heard_of

    def begin(self, hosted: Hosted) -> None:
        """Free the sandbox when its time to be started, and heard of, is over, unless it is."""
        limit = self._parts.config.sandboxes.unstarted_timeout_s
        # From now on for one that is started: after a restart its caller has to connect first.
        made_at = hosted.state.made_at if hosted.state.phase is Phase.CREATED else datetime.now(UTC)
        age = (datetime.now(UTC) - made_at).total_seconds()
        hosted.expiry = asyncio.get_running_loop().call_later(max(limit - age, 0.0), self._come, hosted)

    @staticmethod
    def end(hosted: Hosted) -> None:
        """Keep the sandbox. Idempotent."""
        if hosted.expiry is not None:
            hosted.expiry.cancel()
            hosted.expiry = None

    def hear_of(self, hosted: Hosted) -> None:
        """Somebody asks about the sandbox, so its caller got the answer to its start: it is kept."""
        if hosted.state.is_heard_of or hosted.is_gone:
            return
        self.end(hosted)
        hosted.record = hosted.changed(is_heard_of=True)
        with contextlib.suppress(errors.Unavailable):  # the daemon is closing: the next one is asked again
            self._parts.owner.spawn(self._note(hosted.record), name=f"sandbox/{hosted.key}/heard of")

    async def _note(self, record: HostedRecord) -> None:
        try:
            await self._parts.db.commit(self._parts.hosted.plan_heard_of(record))
        except errors.AtollError as error:
            log.warning("sandbox %s: that it was asked about is not on disk: %s", record.id[:13], error)

    def _come(self, hosted: Hosted) -> None:
        with contextlib.suppress(errors.Unavailable):  # the daemon is closing: the next one counts on
            self._parts.owner.spawn(self._expire(hosted), name=f"sandbox/{hosted.key}/expire")

    async def _expire(self, hosted: Hosted) -> None:
        async with hosted.lock:
            if hosted.is_gone or not self.may_come(hosted):
                return
            log.warning("%s: was not started, or asked about, within its time; it is freed", hosted)
            for left in await self._free(hosted):
                log.error("%s: not freed yet, will be retried: %s", hosted, left)
