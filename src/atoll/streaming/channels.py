"""The numbered channels of a WebSocket: channel.k8s.io and its variants.

A binary message is the number of its channel and bytes; one of a base64 protocol is its digit and the bytes in base64.
From version 5 on, channel 255 with the number of another ends that one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence

from wsproto.frame_protocol import CloseReason

from atoll.streaming.flow import Chunk, Gone, Inflow
from atoll.streaming.websocket import Socket

BUFFER_BYTES = 1 << 20
"""Of all channels together; then the connection is not read."""
MAX_TEXT_MESSAGE = 1 << 20
MAX_MESSAGE_BYTES = 256 << 10
CLOSE_CHANNEL = 255
FULL = "channels"


class Channel:
    """One channel that we write to; an `Outlet`."""

    def __init__(self, channels: Channels, number: int) -> None:
        self._channels = channels
        self._number = number
        self.is_ended = False

    async def write(self, data: Chunk) -> None:
        """Send all of `data`, or one empty message. Raises `Gone`."""
        view = memoryview(data)
        while True:
            await self._channels.room()
            if self.is_ended:
                raise Gone
            self._channels.send(self._number, view[:MAX_MESSAGE_BYTES])
            view = view[MAX_MESSAGE_BYTES:]
            if not view:
                return

    async def end(self) -> None:
        """Nothing follows, which the protocol has no word for."""
        self.is_ended = True


class Channels:
    """The channels of one connection: those of `readable` come in, the others are written."""

    def __init__(self, socket: Socket, *, readable: Sequence[int], is_base64: bool, has_close: bool = False) -> None:
        self._socket = socket
        self._is_base64 = is_base64
        self._has_close = has_close
        self._held = 0
        self._inflows = {number: Inflow(self._changed) for number in readable}
        self._channel: int | None = None
        self._text = bytearray()
        socket.wire.on_lost(self.lost)

    def inflow(self, number: int) -> Inflow:
        """What comes in on a readable channel."""
        return self._inflows[number]

    def outlet(self, number: int) -> Channel:
        """A channel to write to."""
        return Channel(self, number)

    async def room(self) -> None:
        """Wait until something may be sent. Raises `Gone`."""
        await self._socket.wire.room()
        if self._socket.peer_closed:
            raise Gone

    def send(self, number: int, data: Chunk) -> None:
        """One message."""
        if self._is_base64:
            self._socket.send(str(number) + base64.b64encode(data).decode())
        else:
            self._socket.send(b"".join((bytes((number,)), data)))

    def lost(self) -> None:
        """The client has gone; idempotent."""
        for inflow in self._inflows.values():
            inflow.fail()

    def receive(self, data: Chunk) -> Iterator[None]:
        """Take what came; a `Receiver`."""
        for piece in self._socket.pieces(data):
            if piece is None:
                yield
            elif self._is_base64:
                self._take_text(piece.data, is_last=piece.is_last)
            else:
                self._take(piece.data, is_last=piece.is_last)
        if self._socket.peer_closed:
            self.lost()

    def _take(self, data: bytes, *, is_last: bool) -> None:
        """A piece of a binary message: passed on as it comes. What no channel takes is dropped."""
        view = memoryview(data)
        if self._channel is None and view:
            self._channel, view = view[0], view[1:]
        if self._channel == CLOSE_CHANNEL and self._has_close and view:
            if (inflow := self._inflows.get(view[0])) is not None:
                inflow.end()
        elif self._channel is not None and (inflow := self._inflows.get(self._channel)) is not None:
            inflow.feed(view)
        if is_last:
            self._channel = None

    def _take_text(self, data: bytes, *, is_last: bool) -> None:
        self._text += data
        if len(self._text) > MAX_TEXT_MESSAGE:
            self._text.clear()
            self._socket.fail(CloseReason.MESSAGE_TOO_BIG, f"a message of more than {MAX_TEXT_MESSAGE} bytes")
        elif is_last:
            text, self._text = bytes(self._text), bytearray()
            try:
                decoded = base64.b64decode(text[1:])
            except binascii.Error:
                self._socket.fail(CloseReason.INVALID_FRAME_PAYLOAD_DATA, "a message that is not base64")
                return
            if text[:1].isdigit() and (inflow := self._inflows.get(int(text[:1]))) is not None:
                inflow.feed(decoded)

    def _changed(self, delta: int) -> None:
        self._held += delta
        if self._held >= BUFFER_BYTES:
            self._socket.wire.hold(FULL)
        elif self._held < BUFFER_BYTES // 2:
            self._socket.wire.resume(FULL)
