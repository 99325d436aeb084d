"""What waits for its reader: in order, counted, and never holding more than it counts."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.streaming import flow
from atoll.streaming.flow import Gone, Inflow


class Count:
    """The owner of an inflow."""

    def __init__(self) -> None:
        self.held = 0
        self.inflow = Inflow(self.changed)

    def changed(self, delta: int) -> None:
        self.held += delta
        assert self.held >= 0


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_bytes_come_out_as_they_came_in(chunks: list[bytes]) -> None:
    async def scenario() -> bytes:
        count = Count()
        for chunk in chunks:
            count.inflow.feed(memoryview(chunk))
        count.inflow.end()
        assert count.held == count.inflow.size == sum(map(len, chunks))
        found = b""
        while chunk := await count.inflow.read():
            found += chunk
        assert count.held == 0
        return found

    assert asyncio.run(scenario()) == b"".join(chunks)


async def test_large_chunks_are_not_copied_and_many_are_read_together() -> None:
    count = Count()
    large = memoryview(bytes(flow.SMALL_BYTES))
    count.inflow.feed(large)
    assert await count.inflow.read() is large
    for _ in range(20):
        count.inflow.feed(large)
    assert len(await count.inflow.read()) == flow.JOIN_BYTES


async def test_a_small_chunk_does_not_hold_what_it_came_with() -> None:
    count = Count()
    count.inflow.feed(memoryview(bytes(1 << 20))[:3])
    chunk = await count.inflow.read()
    assert isinstance(chunk, bytearray)
    assert len(chunk) == 3


async def test_what_nobody_reads_is_dropped_and_not_counted() -> None:
    count = Count()
    count.inflow.feed(b"abc")
    count.inflow.discard()
    count.inflow.feed(b"def")
    assert count.held == count.inflow.size == 0


async def test_a_sender_that_has_gone_is_told_after_its_last_byte() -> None:
    count = Count()
    count.inflow.feed(b"abc")
    count.inflow.fail()
    count.inflow.feed(b"late")
    assert bytes(await count.inflow.read()) == b"abc"
    with pytest.raises(Gone):
        await count.inflow.read()
