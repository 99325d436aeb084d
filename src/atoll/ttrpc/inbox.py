"""Messages of one stream that arrived and wait for their reader."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from atoll import errors

# What a waiting message is charged beyond its bytes, so that empty ones are bounded too.
MESSAGE_OVERHEAD_BYTES = 128


class Budget(Protocol):
    """Who is told how much waits unread; it stops reading from the peer when that is too much."""

    def hold(self, size: int) -> None:
        """`size` more bytes wait."""
        ...

    def release(self, size: int) -> None:
        """`size` bytes no longer wait."""
        ...


class Inbox:
    """A queue with one reader that ends well or with an error.

    `put`, `end` and `fail` never block; the bound is the `Budget`'s, which stops the peer. Messages put
    before the end are read before it is told, unless it came `at_once`. After the end nothing is taken.
    """

    __slots__ = ("_budget", "_ended", "_error", "_messages", "_waiter")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._messages: deque[bytes] = deque()
        self._ended = False
        self._error: errors.AtollError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the end was told; messages may still wait."""
        return self._ended

    @property
    def error(self) -> errors.AtollError | None:
        """The error it ended with."""
        return self._error

    def put(self, payload: bytes) -> None:
        """Add a message; dropped after the end."""
        if self._ended:
            return
        self._messages.append(payload)
        self._budget.hold(len(payload) + MESSAGE_OVERHEAD_BYTES)
        self._wake()

    def end(self, error: errors.AtollError | None = None, *, at_once: bool = False) -> None:
        """No message follows; the first end stays. `at_once` drops what waits."""
        if not self._ended:
            self._ended = True
            self._error = error
        if at_once:
            self.discard()
        self._wake()

    def discard(self) -> None:
        """Drop what waits, giving its bytes back."""
        while self._messages:
            self._take()

    async def get(self) -> bytes | None:
        """The next message; None after the good end, the error after the bad one, again and again."""
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    # A fresh one, so that two readers in turn do not share a traceback.
                    raise type(self._error)(self._error.message)
                return None
            if self._waiter is not None:
                raise errors.FailedPrecondition("another reader waits on this stream")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._take()

    def _take(self) -> bytes:
        payload = self._messages.popleft()
        self._budget.release(len(payload) + MESSAGE_OVERHEAD_BYTES)
        return payload

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
