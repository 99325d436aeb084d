"""One connection: bytes in slices of work, bytes out under back-pressure, an end that everybody hears of.

What waits for a peer that does not read is at most `HIGH_WATER_BYTES` and one more chunk; what waits for a reader here
is bounded by whoever holds the reading back. Neither stops the other connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from atoll.streaming.flow import Chunk, Gone

HIGH_WATER_BYTES = 256 << 10
LOW_WATER_BYTES = 64 << 10
MAX_UNREAD_ANSWERS = 64 << 10
"""Bytes of answers (pings, resets) that a peer may cause without reading any."""

WATCH_S = 10.0
KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""A peer whose machine has gone is noticed after two minutes; tcp(7)."""

Receiver = Callable[[Chunk], Iterator[None]]
"""Takes what came; a generator that gives the loop back now and then, where there is much to do."""


class Carrier(Protocol):
    """What carries frames: a connection, or a WebSocket inside one."""

    def send(self, *parts: Chunk) -> None:
        """Send, or keep to be sent; nothing where the peer has gone."""
        ...

    def answer(self, data: bytes) -> None:
        """Send what the peer made us say; a peer that makes us say much and reads nothing is cut off."""
        ...

    async def room(self) -> None:
        """Return once more may be sent. Raises `Gone`."""
        ...

    def hold(self, reason: str) -> None:
        """Read no more until `resume` for the same reason; idempotent."""
        ...

    def resume(self, reason: str) -> None: ...

    def close(self) -> None:
        """End the connection after what was sent; idempotent."""
        ...


class Wire(asyncio.Protocol):
    """A connection of the server; implements `Carrier`. `accepted` is called once it stands."""

    def __init__(self, accepted: Callable[[Wire], None], idle_timeout_s: float) -> None:
        self._accepted = accepted
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._work: Iterator[None] | None = None
        self._waiting: deque[Chunk] = deque()
        self._holds: set[str] = set()
        self._is_full = False
        self._room: list[asyncio.Future[None]] = []
        self._answers = 0
        self._active = self._loop.time()
        self._watching: asyncio.TimerHandle | None = None
        self._lost_callbacks: list[Callable[[], None]] = []
        self.lost = asyncio.Event()
        """Set when the connection has ended, from either side."""

    # of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=LOW_WATER_BYTES)
        if (connection := transport.get_extra_info("socket")) is not None:
            for level, option, value in KEEP_ALIVE:
                connection.setsockopt(level, option, value)
        self._watch()
        self._accepted(self)

    def data_received(self, data: bytes) -> None:
        self._active = self._loop.time()
        if self._receiver is None or self._work is not None:
            self._waiting.append(data)
            self.hold("work")
        else:
            self._begin(data)

    def eof_received(self) -> bool:
        return False  # a client of an upgraded connection that ends its half has left

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._answers = 0
        self._active = self._loop.time()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._watching is not None:
            self._watching.cancel()
        self.lost.set()
        self._wake()
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback()

    # what comes in

    def start(self, receiver: Receiver, first: Chunk = b"") -> None:
        """Give `receiver` what comes from now on, `first` before it."""
        self._receiver = receiver
        if first:
            self._waiting.appendleft(first)
        if self._work is None:
            self._next()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call at the end of the connection; at once where it has ended."""
        if self.lost.is_set():
            callback()
        else:
            self._lost_callbacks.append(callback)

    def _begin(self, data: Chunk) -> None:
        assert self._receiver is not None
        self._work = self._receiver(data)
        self._drive()

    def _drive(self) -> None:
        """One slice of work; the rest after whatever else the loop has to do."""
        assert self._work is not None
        for _ in self._work:
            if self._transport is None:
                break
            self.hold("work")
            self._loop.call_soon(self._drive)
            return
        self._work = None
        self._next()

    def _next(self) -> None:
        if self._waiting and self._transport is not None:
            self._begin(self._waiting.popleft())
        else:
            self.resume("work")

    def hold(self, reason: str) -> None:
        if not self._holds and self._transport is not None:
            self._transport.pause_reading()
        self._holds.add(reason)

    def resume(self, reason: str) -> None:
        if reason in self._holds:
            self._holds.discard(reason)
            if not self._holds and self._transport is not None:
                self._transport.resume_reading()

    # what goes out

    def send(self, *parts: Chunk) -> None:
        if self._transport is not None:
            self._active = self._loop.time()
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def answer(self, data: bytes) -> None:
        if self._is_full:
            self._answers += len(data)
            if self._answers > MAX_UNREAD_ANSWERS:
                self.abort()
                return
        self.send(data)

    async def room(self) -> None:
        while self._is_full and self._transport is not None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            await waiter
        if self._transport is None or self._transport.is_closing():
            raise Gone

    def _wake(self) -> None:
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # the end

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now; what was not sent is lost. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    async def closed(self, within: float) -> None:
        """Wait for the end, for `within` seconds at most, then bring it about."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.lost.wait()
        self.abort()

    def _watch(self) -> None:
        """End a connection that is idle, and one whose peer has left while nobody may read and so hear of it."""
        left = self._active + self._idle_timeout_s - self._loop.time()
        if left <= 0 or (self._holds and self._has_hung_up()):
            self.abort()
        else:
            self._watching = self._loop.call_later(min(left, WATCH_S), self._watch)

    def _has_hung_up(self) -> bool:
        connection = self._transport.get_extra_info("socket") if self._transport is not None else None
        if connection is None:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))
