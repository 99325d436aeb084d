"""The read buffer of a connection."""

from __future__ import annotations

from atoll.ttrpc import transport
from atoll.ttrpc.transport import FramedProtocol


class Collector(FramedProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def received(self, data: memoryview) -> None:
        self.data += data

    def lost(self) -> None:
        pass


def give(protocol: Collector, content: bytes) -> int:
    """Let it read as much of `content` as it takes at once; how much that was."""
    buffer = protocol.get_buffer(-1)
    taken = min(len(buffer), len(content))
    buffer[:taken] = content[:taken]
    protocol.buffer_updated(taken)
    return taken


async def test_the_buffer_is_small_until_much_comes_and_again_after_a_while() -> None:
    protocol = Collector()
    assert give(protocol, b"x" * 100_000) == transport.IDLE_BUFFER_BYTES
    assert give(protocol, b"y" * 100_000) == transport.READ_BUFFER_BYTES
    for _ in range(transport.SMALL_READS_BEFORE_SHRINKING - 1):
        give(protocol, b"z")
    assert len(protocol.get_buffer(-1)) == transport.READ_BUFFER_BYTES
    give(protocol, b"y" * transport.READ_BUFFER_BYTES)
    for _ in range(transport.SMALL_READS_BEFORE_SHRINKING):
        give(protocol, b"z")
    assert len(protocol.get_buffer(-1)) == transport.IDLE_BUFFER_BYTES
    assert protocol.data == (
        b"x" * transport.IDLE_BUFFER_BYTES
        + b"y" * transport.READ_BUFFER_BYTES
        + b"z" * (transport.SMALL_READS_BEFORE_SHRINKING - 1)
        + b"y" * transport.READ_BUFFER_BYTES
        + b"z" * transport.SMALL_READS_BEFORE_SHRINKING
    )
