"""A WebSocket on a wire: messages in pieces as they come, messages out whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from wsproto import events
from wsproto.connection import Connection, ConnectionState
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from atoll.streaming.flow import Chunk
from atoll.streaming.wire import Wire

log = logging.getLogger(__name__)

EVENTS_A_SLICE = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a message."""

    data: bytes
    is_last: bool


class Socket:
    """The server's end of a WebSocket. `peer_closed` is set when the client has said or shown that it is done."""

    def __init__(self, wire: Wire, connection: Connection) -> None:
        self.wire = wire
        self._connection = connection
        self.peer_closed = False

    def pieces(self, data: Chunk) -> Iterator[Piece | None]:
        """What came of messages; None now and then, to give the loop back. Pings and closes are answered."""
        if self.peer_closed:
            return
        try:
            self._connection.receive_data(bytes(data))
            for count, event in enumerate(self._connection.events(), 1):
                if isinstance(event, events.BytesMessage):
                    yield Piece(bytes(event.data), event.message_finished)
                elif isinstance(event, events.TextMessage):
                    yield Piece(event.data.encode(), event.message_finished)
                elif isinstance(event, events.Ping):
                    self._answer(event.response())
                elif isinstance(event, events.CloseConnection):
                    self._closed_by_peer(event)
                    return
                if not count % EVENTS_A_SLICE:
                    yield None
        except RemoteProtocolError as error:
            self.fail(CloseReason.PROTOCOL_ERROR, str(error))

    def send(self, payload: bytes | str) -> None:
        """One message, binary or text; nothing once a close was sent or the client has closed."""
        if self._connection.state is ConnectionState.OPEN:
            message = events.TextMessage(payload) if isinstance(payload, str) else events.BytesMessage(payload)
            self.wire.send(self._connection.send(message))

    def answer(self, payload: bytes) -> None:
        """As `send`, for what the client made us say: see `Carrier.answer`."""
        if self._connection.state is ConnectionState.OPEN:
            self.wire.answer(self._connection.send(events.BytesMessage(payload)))

    def say_close(self, code: CloseReason = CloseReason.NORMAL_CLOSURE, reason: str = "") -> None:
        """Send a close, after which nothing is sent; the client answers with one. Idempotent."""
        self._answer(events.CloseConnection(code=code, reason=reason[:100]))

    def fail(self, code: CloseReason, reason: str) -> None:
        """End a connection whose client breaks the rules."""
        log.info("streaming: a client's WebSocket is ended: %s", reason)
        self.say_close(code, reason)
        self.peer_closed = True
        self.wire.close()

    def _closed_by_peer(self, event: events.CloseConnection) -> None:
        self.peer_closed = True
        if self._connection.state is ConnectionState.REMOTE_CLOSING:
            self._answer(event.response())
        self.wire.close()

    def _answer(self, event: events.Event) -> None:
        try:
            self.wire.answer(self._connection.send(event))
        except LocalProtocolError:  # the close was said already, from either side
            return
