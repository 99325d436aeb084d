"""One connection: slices of work, back-pressure, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from atoll.streaming import wire as wires
from atoll.streaming.flow import Chunk, Gone
from tests.unit.streaming.wires import wired


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_before_its_receiver_waits_for_it() -> None:
    wire, transport = wired()
    wire.data_received(b"b")
    assert not transport.reads
    found: list[bytes] = []

    def receive(data: Chunk) -> Iterator[None]:
        found.append(bytes(data))
        yield from ()

    wire.start(receive, b"a")
    assert found == [b"a", b"b"]
    assert transport.reads
    wire.connection_lost(None)


async def test_long_work_is_done_in_slices_and_nothing_is_read_meanwhile() -> None:
    wire, transport = wired()
    done: list[str] = []

    def receive(data: Chunk) -> Iterator[None]:
        for number in range(3):
            done.append(f"{bytes(data).decode()}{number}")
            yield

    wire.start(receive)
    wire.data_received(b"x")
    wire.data_received(b"y")
    assert done == ["x0"]
    assert not transport.reads
    await turns(10)
    assert done == ["x0", "x1", "x2", "y0", "y1", "y2"]
    assert transport.reads
    wire.connection_lost(None)


async def test_reading_goes_on_once_nobody_holds_it() -> None:
    wire, transport = wired()
    wire.hold("a")
    wire.hold("b")
    wire.hold("a")
    wire.resume("a")
    assert not transport.reads
    wire.resume("b")
    assert transport.reads
    wire.connection_lost(None)


async def test_writers_wait_for_room_and_hear_of_the_end() -> None:
    wire, _ = wired()
    await wire.room()
    wire.pause_writing()
    first, second = (asyncio.ensure_future(wire.room()) for _ in range(2))  # noqa: TID251 # writers beside the test
    await turns(2)
    assert not first.done()
    wire.resume_writing()
    await first
    await second
    wire.pause_writing()
    third = asyncio.ensure_future(wire.room())  # noqa: TID251 # a writer beside the test
    await turns(1)
    wire.connection_lost(None)
    with pytest.raises(Gone):
        await third
    wire.send(b"nobody")


async def test_a_peer_that_causes_answers_and_reads_none_is_cut_off() -> None:
    wire, transport = wired()
    for _ in range(100):
        wire.answer(bytes(4096))  # it reads them
    wire.pause_writing()
    for _ in range(wires.MAX_UNREAD_ANSWERS // 4096):
        wire.answer(bytes(4096))
    assert transport.state == "open"
    wire.answer(b"x")
    assert transport.state == "aborted"
    wire.connection_lost(None)


async def test_a_silent_connection_is_ended() -> None:
    _, transport = wired(idle_timeout_s=0.01)
    await asyncio.sleep(0.03)
    assert transport.state == "aborted"


async def test_callbacks_of_the_end_are_called_once_also_late() -> None:
    wire, _ = wired()
    called: list[int] = []
    wire.on_lost(lambda: called.append(1))
    wire.connection_lost(None)
    wire.on_lost(lambda: called.append(2))
    assert called == [1, 2]
