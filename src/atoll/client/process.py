"""A process in a container with live stdio: what `exec_stream` and `attach` give.

    caller ──write, resize, signal──> outbox ──> gRPC ──> the process
    caller <──stdout, stderr, wait── buffers <── pump task

The pump is the only reader of the call, because gRPC cancels a call whose read is cancelled. It stops
reading while more than `READ_AHEAD_BYTES` wait here and nobody waits for more, so that a process that
writes too fast is held back by its pipe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from google.protobuf.message import Message

from atoll import errors
from atoll.api import atoll_v1_pb2 as own
from atoll.client.model import ExecResult, Exit
from atoll.client.wire import Duplex
from atoll.concurrency import TaskOwner

Q = TypeVar("Q", own.ExecRequest, own.AttachRequest)
M = TypeVar("M", bound=Message)

READ_AHEAD_BYTES = 1 << 20
STREAM_LIMIT_BYTES = 64 << 20
"""Most that is kept of a stream that nobody reads while the other one is read."""
STDIN_CHUNK_BYTES = 64 << 10
OUTBOX_MESSAGES = 16


class Outbox(Generic[M]):
    """Messages on their way out, bounded; `messages` is what gRPC reads."""

    def __init__(self) -> None:
        self._waiting: deque[M] = deque()
        self._changed = asyncio.Condition()
        self._ended = False

    async def put(self, message: M) -> None:
        """Wait for room; a message after the end goes nowhere."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._waiting) < OUTBOX_MESSAGES or self._ended)
            if not self._ended:
                self._waiting.append(message)
                self._changed.notify_all()

    async def end(self) -> None:
        """Nothing follows; what waits still goes out. Idempotent."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def messages(self) -> AsyncGenerator[M]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._waiting) or self._ended)
                if not self._waiting:
                    return
                message = self._waiting.popleft()
                self._changed.notify_all()
            yield message


class Output:
    """One stream of a process: an async iterator of non-empty chunks, in order, that ends with the stream."""

    def __init__(self, name: str, process: _Pump) -> None:
        self.name = name
        self._process = process
        self._chunks: deque[bytes] = deque()
        self.size = 0

    def put(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.size += len(chunk)

    def take(self) -> bytes:
        """All that is here, and room for more."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self.size = 0
        return data

    async def read(self) -> bytes:
        """What has come since the last read, waiting for some; empty at the end of the stream."""
        await self._process.until(lambda: bool(self._chunks))
        data = self.take()
        await self._process.wake()
        return data

    async def read_all(self) -> bytes:
        """Everything from here to the end of the stream."""
        parts = [part async for part in self]
        return b"".join(parts)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if not data:
            raise StopAsyncIteration
        return data


class _Pump:
    """Reads the answers of one call into the buffers, holding back while nobody wants more."""

    def __init__(self) -> None:
        self.stdout = Output("stdout", self)
        self.stderr = Output("stderr", self)
        self.pid = 0
        self.exit: Exit | None = None
        self.error: errors.AtollError | None = None
        self._changed = asyncio.Condition()
        self._wanted = 0
        self._over = False

    @property
    def over(self) -> bool:
        return self._over

    async def wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Let answers in until `reached` or the end; raises the error that the call ended with."""
        async with self._changed:
            self._wanted += 1
            self._changed.notify_all()
            try:
                await self._changed.wait_for(lambda: reached() or self._over)
            finally:
                self._wanted -= 1
        if self.error is not None and not reached():
            raise type(self.error)(self.error.message)

    async def run(self, call: Duplex[Q, own.ExecResponse]) -> None:
        try:
            while (answer := await call.receive()) is not None:
                async with self._changed:
                    self._enter(answer)
                    self._changed.notify_all()
                    await self._changed.wait_for(self._may_read)
            if self.exit is None:
                self.error = errors.Unavailable("the stream ended before the process did; attach or look at it again")
        except errors.AtollError as error:
            self.error = error
        finally:
            call.cancel()
            self._over = True
            await self.wake()

    def _may_read(self) -> bool:
        return self._wanted > 0 or self.stdout.size + self.stderr.size < READ_AHEAD_BYTES

    def _enter(self, answer: own.ExecResponse) -> None:
        match answer.WhichOneof("message"):
            case "stdout":
                self._store(self.stdout, answer.stdout)
            case "stderr":
                self._store(self.stderr, answer.stderr)
            case "started":
                self.pid = answer.started.pid
            case "exit":
                self.exit = Exit.read(answer.exit)
            case _:
                pass  # a message of a later version

    def _store(self, stream: Output, chunk: bytes) -> None:
        if stream.size + len(chunk) > STREAM_LIMIT_BYTES:
            raise errors.ResourceExhausted(
                f"{stream.name}: {STREAM_LIMIT_BYTES >> 20} MiB wait to be read; read both streams as they come"
            )
        if chunk:
            stream.put(chunk)


class Process(Generic[Q]):
    """A running process; an async context manager. Leaving it lets go of the stream: an exec ends, an attach does not.

    Every method raises `Unavailable` where the daemon goes away; none hangs then.
    """

    def __init__(self, outbox: Outbox[Q], call: Duplex[Q, own.ExecResponse], make: type[Q]) -> None:
        self._outbox = outbox
        self._call = call
        self._make: type[Q] = make
        self._pump = _Pump()
        self._owner = TaskOwner("process")
        self._running = self._owner.spawn(self._run(), name="process/pump")

    async def _run(self) -> None:
        try:
            await self._pump.run(self._call)
        finally:
            await self._outbox.end()

    @property
    def stdout(self) -> Output:
        return self._pump.stdout

    @property
    def stderr(self) -> Output:
        """Empty for a terminal, which has one stream."""
        return self._pump.stderr

    @property
    def pid(self) -> int:
        """On the host; 0 until `started`, and for an attach."""
        return self._pump.pid

    async def started(self) -> int:
        """Wait until the process runs; its pid. Raises what the daemon says where it cannot be run."""
        await self._pump.until(lambda: self._pump.pid > 0 or self._pump.exit is not None)
        return self._pump.pid

    async def write(self, data: bytes) -> None:
        """Send input; returns when it is on its way. After the process's end it goes nowhere."""
        for at in range(0, len(data), STDIN_CHUNK_BYTES):
            await self._outbox.put(self._make(stdin=data[at : at + STDIN_CHUNK_BYTES]))

    async def close_stdin(self) -> None:
        """End the input; idempotent."""
        await self._outbox.put(self._make(close_stdin=True))

    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal its size in characters."""
        await self._outbox.put(self._make(resize=own.TerminalSize(width=width, height=height)))

    async def wait(self) -> Exit:
        """Wait for the end and let output come in meanwhile; the same answer each time."""
        await self._pump.until(lambda: self._pump.exit is not None)
        if self._pump.exit is None:
            raise errors.Unavailable("the process was left, or its client closed, before it ended")
        return self._pump.exit

    async def read_some(self) -> tuple[bytes, bytes]:
        """What both streams have, waiting for some; two empty values at the end."""
        pump = self._pump
        await pump.until(lambda: pump.stdout.size + pump.stderr.size > 0)
        found = (pump.stdout.take(), pump.stderr.take())
        await pump.wake()
        return found

    async def aclose(self) -> None:
        """Let go of the stream. Idempotent."""
        self._call.cancel()
        await self._outbox.end()
        await self._owner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class ExecProcess(Process[own.ExecRequest]):
    """An exec; it ends when this lets go of it."""

    async def signal(self, number: int) -> None:
        """Send the process a signal."""
        await self._outbox.put(own.ExecRequest(signal=number))

    async def collect(self, limit_bytes: int = STREAM_LIMIT_BYTES) -> ExecResult:
        """All output and the end; `ResourceExhausted`, and the exec is ended, for more than `limit_bytes` a stream."""
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        sizes = [0, 0]
        while any(found := await self.read_some()):
            for at, data in enumerate(found):
                parts[at].append(data)
                sizes[at] += len(data)
                if sizes[at] > limit_bytes:
                    raise errors.ResourceExhausted(
                        f"exec: wrote more than {limit_bytes} bytes to {('stdout', 'stderr')[at]}; "
                        "use exec_stream and read as it comes"
                    )
        end = await self.wait()
        return ExecResult(exit_code=end.code, cause=end.cause, stdout=b"".join(parts[0]), stderr=b"".join(parts[1]))


class AttachedProcess(Process[own.AttachRequest]):
    """The live stdio of a container's main process; letting go changes nothing for it."""
