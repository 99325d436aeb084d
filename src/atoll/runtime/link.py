"""One shim through every connection to it.

connected ──connection lost──> lost ──the shim answers──> connected
                                 └──nobody listens──> gone, for good

A shim that hangs up more than `RECONNECTS_LIMIT` times in `RECONNECTS_WINDOW_S` is an error, not a loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from atoll import errors
from atoll.runtime import hung
from atoll.runtime.shim import Launcher, LaunchRequest, Shim

T = TypeVar("T")

RECONNECTS_LIMIT = 5
RECONNECTS_WINDOW_S = 10.0
ATTEMPTS = 3
"""How often a repeatable question is asked where the connection breaks under it."""

log = logging.getLogger(__name__)


class Link:
    """The connection to one shim, made again where it broke and the shim lives.

    `is_gone` once it is known that nobody serves any more; a shim that does not answer, or that cannot be asked for
    a lack of ours, is not gone.
    """

    def __init__(self, launcher: Launcher, request: LaunchRequest, shim: Shim | None = None) -> None:
        self._launcher = launcher
        self._request = request
        self._shim = shim
        self._lock = asyncio.Lock()
        self._reconnects: deque[float] = deque()
        self._released = False
        self.is_gone = False

    @property
    def is_connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._shim is not None and not self._shim.client.is_closed

    async def shim(self) -> Shim:
        """The connected shim; raises `Unavailable` where it is gone or this link was let go."""
        if self._shim is not None and not self._shim.client.is_closed:
            return self._shim
        async with self._lock:
            if self._released or self.is_gone:
                why = "its shim is gone" if self.is_gone else "the connection to its shim was let go"
                raise errors.Unavailable(f"sandbox {self._request.id}: {why}")
            if self._shim is None or self._shim.client.is_closed:
                self._shim = await self._reconnect()
            return self._shim

    async def _reconnect(self) -> Shim:
        now = asyncio.get_running_loop().time()
        while self._reconnects and self._reconnects[0] < now - RECONNECTS_WINDOW_S:
            self._reconnects.popleft()
        if len(self._reconnects) >= RECONNECTS_LIMIT:
            raise errors.ResourceExhausted(
                f"sandbox {self._request.id}: its shim hung up {RECONNECTS_LIMIT} times in {RECONNECTS_WINDOW_S:g} s"
            )
        self._reconnects.append(now)
        try:
            return await self._launcher.reconnect(self._request)
        except errors.DataLoss as error:
            if not hung.is_dead(self._request.bundle.path):
                raise  # where it answers cannot be read: it may well live
            raise self._gone(error) from error
        except (errors.NotFound, errors.Unavailable) as error:
            raise self._gone(error) from error

    def _gone(self, error: errors.AtollError) -> errors.Unavailable:
        self.is_gone = True
        return errors.Unavailable(f"sandbox {self._request.id}: its shim is gone: {error}")

    async def ask(self, question: Callable[[Shim], Awaitable[T]]) -> T:
        """Ask what may be asked twice: again on a new connection where the first one broke under it."""
        for attempt in range(1, ATTEMPTS + 1):
            shim = await self.shim()
            try:
                return await question(shim)
            except errors.Unavailable:
                if not shim.client.is_closed or attempt == ATTEMPTS:
                    raise
                log.info("sandbox %s: lost the connection to its shim", self._request.id)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def hang_up(self) -> None:
        """Break the connection under whoever waits for an answer; the next question connects again."""
        if self._shim is not None:
            self._shim.client.close()

    async def aclose(self) -> None:
        """Let go of the connection; the shim lives on. Idempotent."""
        self._released = True
        if self._shim is not None:
            await self._shim.aclose()
