"""A carrier that keeps what it is given, and SPDY's other end to read it."""

from __future__ import annotations

from atoll.streaming import spdy_codec as codec
from atoll.streaming.flow import Chunk, Gone


class Kept:
    """A `Carrier` in memory."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.holds: set[str] = set()
        self.is_closed = False
        self._decoder = codec.Decoder()

    def send(self, *parts: Chunk) -> None:
        for part in parts:
            self.sent += part

    def answer(self, data: bytes) -> None:
        self.send(data)

    async def room(self) -> None:
        if self.is_closed:
            raise Gone

    def hold(self, reason: str) -> None:
        self.holds.add(reason)

    def resume(self, reason: str) -> None:
        self.holds.discard(reason)

    def close(self) -> None:
        self.is_closed = True

    def events(self) -> list[codec.Event]:
        """What was sent since the last time."""
        data, self.sent = bytes(self.sent), bytearray()
        return list(self._decoder.feed(data))
