"""A connection's machine on an asyncio transport, with back-pressure in both directions.

Outwards: `drained` waits while the transport's buffer is above its high-water mark.
Inwards: messages that no reader has taken are counted over the whole connection; above
`UNREAD_HIGH_BYTES` reading from the peer stops, below `UNREAD_LOW_BYTES` it goes on. ttrpc has no window
for a single stream, so **a stream whose reader is late holds up every other call of its connection**; give such a
stream a connection of its own, or forget it.

A transport that does not read does not see its peer go either. So while reading is stopped a separate
epoll waits for the hang-up alone; then reading goes on without the bound, since what is left is no more
than the kernel's socket buffer.
"""

from __future__ import annotations

import asyncio
import select
import socket
from abc import abstractmethod
from collections.abc import Callable
from typing import cast

from atoll import errors

# A connection reads into a small buffer until it is full at once, and again after so many small reads.
IDLE_BUFFER_BYTES = 4 << 10
READ_BUFFER_BYTES = 64 << 10
SMALL_READS_BEFORE_SHRINKING = 16
UNREAD_HIGH_BYTES = 4 << 20
UNREAD_LOW_BYTES = 2 << 20
# Callers compare the end of an error's text with this, as the reference client's callers do.
CLOSED = "ttrpc: closed"


class HangupWatch:
    """Calls `on_hangup` once, when the peer of the socket `fd` has gone, although nobody reads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, on_hangup: Callable[[], None]) -> None:
        self._loop = loop
        self._on_hangup = on_hangup
        self._epoll = select.epoll()
        self._epoll.register(fd, select.EPOLLRDHUP)
        loop.add_reader(self._epoll.fileno(), self._hung_up)

    def _hung_up(self) -> None:
        self.close()
        self._on_hangup()

    def close(self) -> None:
        """Stop watching; idempotent."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class FramedProtocol(asyncio.BufferedProtocol):
    """What both ends share: a read buffer, small while idle, both kinds of back-pressure, the end of the connection.

    A subclass gives `received` and `lost`. It is the `Budget` of its streams' inboxes.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(IDLE_BUFFER_BYTES))
        self._small_reads = 0
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._unread_bytes = 0
        self._blocks = 0  # reasons not to read
        self._unread_blocks = False
        self._hung_up = False
        self._watch: HangupWatch | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()

    @abstractmethod
    def received(self, data: memoryview) -> None:
        """Handle bytes from the peer; `data` is valid until the return only."""

    @abstractmethod
    def lost(self) -> None:
        """The connection is over; called once."""

    @property
    def is_connected(self) -> bool:
        """Whether frames can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    def socket(self) -> socket.socket:
        """The connected socket, for its options; raises `Unavailable` when the connection is over."""
        if self._transport is None:
            raise errors.Unavailable(CLOSED)
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    @property
    def must_wait(self) -> bool:
        """Whether a writer should await `drained` first."""
        return not self._writable.is_set()

    def write(self, frame: bytes) -> None:
        """Send a frame after all earlier ones; dropped when the connection is over."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    async def drained(self) -> None:
        """Return once the transport takes more, or once the connection is over."""
        while not self._writable.is_set():
            await self._writable.wait()

    def close(self) -> None:
        """Close after what is buffered was sent; idempotent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now; idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def block_reading(self) -> None:
        """Add a reason not to read from the peer."""
        self._blocks += 1
        if self._blocks > 1 or self._hung_up or self._transport is None:
            return
        self._transport.pause_reading()
        if self._watch is None and not self._transport.is_closing():
            self._watch = HangupWatch(self._loop, self.socket().fileno(), self._peer_hung_up)

    def unblock_reading(self) -> None:
        """Take one reason back."""
        self._blocks -= 1
        if self._blocks == 0 and self._transport is not None:
            self._transport.resume_reading()

    def _peer_hung_up(self) -> None:
        self._hung_up = True
        if self._transport is not None:
            self._transport.resume_reading()

    # Budget of the inboxes

    def hold(self, size: int) -> None:
        """Count bytes that wait for a reader."""
        self._unread_bytes += size
        if self._unread_bytes > UNREAD_HIGH_BYTES and not self._unread_blocks:
            self._unread_blocks = True
            self.block_reading()

    def release(self, size: int) -> None:
        """Count bytes that a reader took."""
        self._unread_bytes -= size
        if self._unread_bytes <= UNREAD_LOW_BYTES and self._unread_blocks:
            self._unread_blocks = False
            self.unblock_reading()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received(self._buffer[:nbytes])
        self._resize(nbytes)

    def _resize(self, nbytes: int) -> None:
        size = len(self._buffer)
        if size == IDLE_BUFFER_BYTES:
            if nbytes == size:
                self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        elif nbytes > IDLE_BUFFER_BYTES:
            self._small_reads = 0
        elif (small := self._small_reads + 1) < SMALL_READS_BEFORE_SHRINKING:
            self._small_reads = small
        else:
            self._small_reads = 0
            self._buffer = memoryview(bytearray(IDLE_BUFFER_BYTES))

    def eof_received(self) -> None:
        # A ttrpc peer that closes its side has gone; what is still buffered for it must not keep the connection.
        self.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.close()
        self._transport = None
        self._writable.set()
        if not self.gone.done():
            self.gone.set_result(None)
        self.lost()


def closed_error(peer: str) -> errors.Unavailable:
    """The error of every call that waits when its connection ends."""
    return errors.Unavailable(f"{peer}: {CLOSED}")
