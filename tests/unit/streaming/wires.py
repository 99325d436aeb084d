"""Wires on a transport in memory."""

from __future__ import annotations

import asyncio

from atoll.streaming.flow import Chunk
from atoll.streaming.wire import Wire


class Transport(asyncio.Transport):
    """Keeps what is written; its peer reads when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reads = True
        self.state = "open"

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Chunk) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.state != "open"

    def close(self) -> None:
        self.state = "closed"

    def abort(self) -> None:
        self.state = "aborted"


def wired(idle_timeout_s: float = 3600.0) -> tuple[Wire, Transport]:
    """A wire that stands."""
    transport = Transport()
    wire = Wire(lambda _: None, idle_timeout_s)
    wire.connection_made(transport)
    return wire, transport
