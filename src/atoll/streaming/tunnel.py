"""SPDY inside a WebSocket: its bytes in binary messages, cut wherever."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.streaming.flow import Chunk, Gone
from atoll.streaming.spdy import Opened, Session
from atoll.streaming.websocket import Socket


class Tunnel:
    """A `Carrier` whose frames are messages of a WebSocket."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._wire = socket.wire

    def send(self, *parts: Chunk) -> None:
        self._socket.send(b"".join(parts))

    def answer(self, data: bytes) -> None:
        self._socket.answer(data)

    async def room(self) -> None:
        await self._wire.room()
        if self._socket.peer_closed:
            raise Gone

    def hold(self, reason: str) -> None:
        self._wire.hold(reason)

    def resume(self, reason: str) -> None:
        self._wire.resume(reason)

    def close(self) -> None:
        self._socket.say_close()
        self._wire.close()


def tunnelled(socket: Socket, opened: Opened, rest: Chunk = b"") -> Session:
    """A session in a WebSocket, which takes `rest` and what comes from now on."""
    session = Session(Tunnel(socket), opened)

    def receive(data: Chunk) -> Iterator[None]:
        for piece in socket.pieces(data):
            if piece is None:
                yield
            else:
                yield from session.receive(piece.data)
        if socket.peer_closed:
            session.lost()

    socket.wire.on_lost(session.lost)
    socket.wire.start(receive, rest)
    return session
