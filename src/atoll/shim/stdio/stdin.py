"""Input of a process from any number of attached clients."""

from __future__ import annotations

import asyncio

from atoll import errors
from atoll.shim.stdio.pump import FdSink


class AttachedInput:
    """The stdin of one process for its attached clients; what they write is merged in the order of the calls."""

    def __init__(self, name: str, sink: FdSink, *, once: bool = False, follows_client: bool = False) -> None:
        """`once`: a client that ends, whichever way, ends the process's stdin; `follows_client`: where it said so."""
        self.name = name
        self._once = once
        self._follows_client = follows_client
        self._sink = sink
        self._waiters: list[asyncio.Future[None]] = []
        sink.connect(self._changed)

    @property
    def is_closed(self) -> bool:
        """Whether the process gets no more input."""
        return self._sink.is_closed

    async def write(self, data: bytes) -> None:
        """Return once the process's pipe took `data`; dropped where the process has closed its stdin.

        `FailedPrecondition` once stdin is closed.
        """
        if self._sink.is_closed:
            raise errors.FailedPrecondition(f"stream {self.name}: stdin is closed")
        self._sink.write(data)
        while self._sink.is_blocked:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def client_ended(self, *, orderly: bool) -> None:
        """A client has gone: `orderly` by closing its stream, else by a lost connection."""
        if self._once or (orderly and self._follows_client):
            self.close()

    def close(self) -> None:
        """End the process's stdin after what was written; idempotent."""
        if not self._sink.is_closed:
            self._sink.end()

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
