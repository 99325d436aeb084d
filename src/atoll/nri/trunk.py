"""One socket that carries several ttrpc connections, each of them a transport to its machine.

Back-pressure is the socket's: where it is full every connection waits, and where one of them does not want to read
nothing is read. The end of the socket, or of any connection, is the end of all.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

from atoll import errors
from atoll.nri import mux
from atoll.ttrpc.transport import FramedProtocol

log = logging.getLogger(__name__)

BUFFER_BYTES = 16 << 10


class Trunk(asyncio.BufferedProtocol):
    """The socket; made by `carry`."""

    def __init__(self, protocols: Mapping[int, FramedProtocol]) -> None:
        """Not for callers: use `carry`."""
        self._protocols = protocols
        self._demultiplexer = mux.Demultiplexer()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._transport: asyncio.Transport | None = None
        self._paused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for number, protocol in self._protocols.items():
            protocol.connection_made(Channel(self, number))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            pieces = self._demultiplexer.receive_data(self._buffer[:nbytes])
        except errors.InvalidArgument as error:
            log.warning("nri: a plugin's connection is closed: %s", error)
            self.abort()
            return
        for piece in pieces:
            protocol = self._protocols.get(piece.connection)
            if protocol is not None:  # what nobody has opened is for nobody
                protocol.received(piece.data)

    def eof_received(self) -> None:
        self.abort()

    def pause_writing(self) -> None:
        for protocol in self._protocols.values():
            protocol.pause_writing()

    def resume_writing(self) -> None:
        for protocol in self._protocols.values():
            protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for protocol in self._protocols.values():
            protocol.connection_lost(exc)

    # What its channels need

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, number: int, message: bytes) -> None:
        """Write one ttrpc frame of the connection `number`; dropped when the socket is closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(mux.frames(number, message))

    def pause(self) -> None:
        """Add a reason not to read."""
        self._paused += 1
        if self._paused == 1 and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take a reason back."""
        self._paused -= 1
        if self._paused == 0 and self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close after what is buffered was sent; idempotent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now; idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def info(self, name: str) -> object:
        """What the socket's transport says about itself."""
        return None if self._transport is None else self._transport.get_extra_info(name)


class Channel(asyncio.Transport):
    """One connection of a trunk; each `write` is one whole ttrpc frame."""

    def __init__(self, trunk: Trunk, number: int) -> None:
        super().__init__()
        self._trunk = trunk
        self._number = number
        self._reading = True

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._trunk.send(self._number, bytes(data))

    def is_closing(self) -> bool:
        return self._trunk.is_closing

    def close(self) -> None:
        self._trunk.close()

    def abort(self) -> None:
        self._trunk.abort()

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._trunk.pause()

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._trunk.resume()

    def is_reading(self) -> bool:
        return self._reading

    def get_extra_info(self, name: str, default: object = None) -> object:
        found = self._trunk.info(name)
        return default if found is None else found


async def carry(connection: socket.socket, protocols: Callable[[], Mapping[int, FramedProtocol]]) -> Trunk:
    """Have a connected stream socket, which the trunk owns from now on, carry connections by their numbers."""
    connection.setblocking(False)
    try:
        loop = asyncio.get_running_loop()
        _, trunk = await loop.create_connection(lambda: Trunk(protocols()), sock=connection)
    except BaseException:
        connection.close()
        raise
    return trunk
