"""A process's streams between a client's messages and the process: output as it comes, input as far as it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from atoll import errors
from atoll.api import atoll_v1_pb2 as pb
from atoll.concurrency import TaskOwner
from atoll.runtime.streams import ByteReader, ByteWriter, ProcessIO

EXIT_DRAIN_S = 10.0
"""How long output may be held open by what a process left behind, after its own end."""

MAX_QUEUE = 64
"""Chunks of output on their way to a client; then the process waits."""

LONGEST_S = 1e9
"""The longest time limit of a process: some thirty years."""

Fault = errors.AtollError | None


def time_limit(seconds: float) -> float:
    """A time limit that was asked for, 0 for none; raises `InvalidArgument` for what is no length of time."""
    if not 0 <= seconds <= LONGEST_S:
        raise errors.InvalidArgument(f"timeout {seconds:g}: must be 0 for none, or up to {LONGEST_S:g} s")
    return seconds


async def output(
    io: ProcessIO, ending: asyncio.Task[pb.Exit], feeding: asyncio.Task[Fault], tasks: TaskOwner
) -> AsyncGenerator[pb.ExecResponse]:
    """Both streams as they come, until both have ended, or the process has and its streams do not follow in time.

    Raises what `ending` does, and the error that `feeding` found in a client's input while the process runs. Close it
    where it is left early; its readers end with `tasks`, full queue or not.
    """
    queue: asyncio.Queue[pb.ExecResponse] = asyncio.Queue(MAX_QUEUE)
    streams = ((io.stdout, _stdout), (io.stderr, _stderr))
    readers = [tasks.spawn(_read(stream, wrap, queue), name="output") for stream, wrap in streams if stream is not None]
    getting = tasks.spawn(queue.get(), name="output/next")
    while getting.done() or not queue.empty() or not all(reader.done() for reader in readers):
        waits = {getting, *(task for task in (*readers, ending, feeding) if not task.done())}
        limit_s = EXIT_DRAIN_S if ending.done() else None
        news, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=limit_s)
        if not ending.done() and feeding.done() and (fault := feeding.result()) is not None:
            raise fault
        if getting.done():
            message = getting.result()
            getting = tasks.spawn(queue.get(), name="output/next")
            yield message
        elif not news:
            break
    if not ending.done() and not feeding.done():
        await asyncio.wait({ending, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done() and (fault := feeding.result()) is not None:
            raise fault
    getting.cancel()
    await asyncio.wait({ending})


async def _read(
    stream: ByteReader, wrap: Callable[[bytes], pb.ExecResponse], queue: asyncio.Queue[pb.ExecResponse]
) -> None:
    async for chunk in stream:
        await queue.put(wrap(chunk))


def _stdout(chunk: bytes) -> pb.ExecResponse:
    return pb.ExecResponse(stdout=chunk)


def _stderr(chunk: bytes) -> pb.ExecResponse:
    return pb.ExecResponse(stderr=chunk)


async def fed(work: Awaitable[None]) -> Fault:
    """Feed a client's input to its end; what was wrong with it is the result, for the client and not for the log."""
    try:
        await work
    except errors.AtollError as error:
        return error
    return None


class Stdin:
    """The input of a process; one that takes no more of it is a sink, as a shell's pipe without SIGPIPE."""

    def __init__(self, writer: ByteWriter) -> None:
        self._writer = writer
        self._is_sink = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_sink:
            await self._unless_closed(self._writer.write(data))

    async def close(self) -> None:
        if not self._is_sink:
            await self._unless_closed(self._writer.close())

    async def _unless_closed(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (errors.FailedPrecondition, errors.NotFound):
            self._is_sink = True
