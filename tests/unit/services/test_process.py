"""A process's output towards a client that is slow, gone or wrong, and its input."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from atoll import errors
from atoll.api import atoll_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.runtime.streams import ProcessIO
from atoll.services import process


@pytest.mark.parametrize("asked", [float("inf"), float("nan"), float("-inf"), -1.0, 1e300])
def test_what_is_no_length_of_time_is_no_time_limit(asked: float) -> None:
    with pytest.raises(errors.InvalidArgument, match="must be 0 for none"):
        process.time_limit(asked)
    assert [process.time_limit(one) for one in (0.0, 0.5, 1e9)] == [0.0, 0.5, 1e9]


class Chunks:
    """An output of so many chunks, without end where there is no number."""

    def __init__(self, count: int | None, chunk: bytes = b"y\n") -> None:
        self._left = count
        self._chunk = chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        if self._left == 0:
            raise StopAsyncIteration
        if self._left is not None:
            self._left -= 1
        return self._chunk

    def close(self) -> None: ...


class Closed:
    """An input that the process has closed."""

    def __init__(self) -> None:
        self.writes = 0

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        raise errors.FailedPrecondition("stdin is closed")

    async def close(self) -> None:
        raise errors.FailedPrecondition("stdin is closed")

    def abort(self) -> None: ...


async def never() -> pb.Exit:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def at_once() -> pb.Exit:
    return pb.Exit(code=3)


async def nothing() -> None:
    return


async def wrong() -> None:
    raise errors.InvalidArgument("exec: input for a process that was started without stdin")


async def test_both_streams_come_whole_and_then_the_end() -> None:
    async with asyncio.timeout(5), TaskOwner("test") as tasks:
        io = ProcessIO(stdout=Chunks(1000), stderr=Chunks(500, b"e"))
        ending = tasks.spawn(at_once(), name="end")
        feeding = tasks.spawn(process.fed(nothing()), name="feed")
        found = [message async for message in process.output(io, ending, feeding, tasks)]
    assert sum(bool(message.stdout) for message in found) == 1000
    assert sum(bool(message.stderr) for message in found) == 500
    assert ending.result().code == 3


async def test_a_client_that_leaves_with_a_full_queue_holds_nobody_up() -> None:
    async with asyncio.timeout(5):
        async with TaskOwner("test") as tasks:
            ending = tasks.spawn(never(), name="end")
            feeding = tasks.spawn(process.fed(nothing()), name="feed")
            io = ProcessIO(stdout=Chunks(None), stderr=Chunks(None))
            async with contextlib.aclosing(process.output(io, ending, feeding, tasks)) as messages:
                await anext(messages)
                for _ in range(process.MAX_QUEUE * 4):
                    await asyncio.sleep(0)
        assert len(tasks) == 0


@pytest.mark.parametrize("chunks", [0, None])
async def test_a_wrong_input_ends_the_answer_with_its_error(chunks: int | None) -> None:
    async with asyncio.timeout(5), TaskOwner("test") as tasks:
        ending = tasks.spawn(never(), name="end")
        feeding = tasks.spawn(process.fed(wrong()), name="feed")
        with pytest.raises(errors.InvalidArgument, match="without stdin"):
            async for _ in process.output(ProcessIO(stdout=Chunks(chunks)), ending, feeding, tasks):
                pass


async def test_an_input_that_the_process_closed_is_a_sink() -> None:
    closed = Closed()
    stdin = process.Stdin(closed)
    for _ in range(3):
        await stdin.write(b"x")
    await stdin.close()
    assert closed.writes == 1
