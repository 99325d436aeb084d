"""A process's stdio as the daemon sees it, whichever shim serves it.

    ProcessIO       stdout and stderr as async iterators of bytes, stdin as a writer
    open_process    from streams of a shim that serves containerd's Streaming service (ours does)
    FifoSet         from named pipes, for shims that know nothing else

Every wait ends when the shim goes: a broken connection ends streams with `Unavailable`; for fifos the
kernel ends them, or `FifoSet.shim_gone` where the shim never opened them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from google.protobuf import any_pb2

from atoll import errors
from atoll.runtime.task import StdioPaths
from atoll.shim.stdio import flow
from atoll.shim.stdio.pump import enlarge_pipe
from atoll.ttrpc.client import Client, ClientStream

READ_BYTES = 64 << 10
BULK_READ_BYTES = 256 << 10
"""From a fifo that was found full."""
OPEN_TIMEOUT_S = 10.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,180}")

CloseIo = Callable[[], Awaitable[None]]


class ByteReader(Protocol):
    """An async iterator of non-empty chunks; it ends with the stream."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    def close(self) -> None:
        """Stop reading; idempotent."""
        ...


class ByteWriter(Protocol):
    """Input of a process."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Return once the shim has room for it; `FailedPrecondition` where the process takes no more input."""
        ...

    async def close(self) -> None:
        """End the input after what was written; idempotent."""
        ...

    def abort(self) -> None:
        """Leave without ending the input; idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIO:
    """The streams of one process; those that were not asked for are None. It is closed by `close`."""

    stdin: ByteWriter | None = None
    stdout: ByteReader | None = None
    stderr: ByteReader | None = None

    def close(self) -> None:
        """Let go of every stream; the process goes on. Idempotent."""
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        if self.stdin is not None:
            self.stdin.abort()


# Streams of a shim


class OutputStream:
    """An output of a process, read from its shim; at most two windows are under way."""

    def __init__(self, stream: ClientStream[any_pb2.Any]) -> None:
        """Not for callers: use `open_output`."""
        self._stream = stream
        self._granted = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            if self._granted < flow.WINDOW_BYTES:
                self._granted += flow.WINDOW_BYTES
                with contextlib.suppress(errors.FailedPrecondition):  # the stream has ended: what came before is read
                    await self._stream.send(flow.window_message(flow.WINDOW_BYTES))
            message = await self._stream.receive()
            if message is None:
                raise StopAsyncIteration
            data = flow.data_of(message)
            self._granted -= len(data)
            if data:
                return data

    def close(self) -> None:
        self._stream.close()


class InputStream:
    """The input of a process, written through its shim."""

    def __init__(self, stream: ClientStream[any_pb2.Any], close_io: CloseIo | None) -> None:
        """Not for callers: use `open_input`."""
        self._stream = stream
        self._close_io = close_io
        self._window = 0
        self._closed = False
        self._writing = asyncio.Lock()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        async with self._writing:
            while view:
                while self._window <= 0:
                    message = await self._stream.receive()
                    if message is None:
                        raise errors.FailedPrecondition("stdin is closed")
                    self._window += flow.window_of(message)
                piece = bytes(view[: min(self._window, flow.MAX_DATA_BYTES)])
                await self._stream.send(flow.data_message(piece))
                self._window -= len(piece)
                view = view[len(piece) :]

    async def close(self) -> None:
        """End the input; returns once the shim has taken everything, so a CloseIO cannot overtake it."""
        async with self._writing:
            if self._closed:
                return
            self._closed = True
            await self._stream.close_send()
            with contextlib.suppress(errors.FailedPrecondition):  # the process closed its stdin first
                while await self._stream.receive() is not None:
                    pass
        self._stream.close()
        if self._close_io is not None:
            await self._close_io()

    def abort(self) -> None:
        self._closed = True
        self._stream.close()


async def open_output(connection: Client, streaming_id: str) -> OutputStream:
    """The output `streaming_id` of the shim at the other end of `connection`; `NotFound` where it has none.

    Iterating raises `Unavailable` when the shim goes, `ResourceExhausted` when we read too slowly for a container.
    """
    return OutputStream(await _open(connection, streaming_id))


async def open_input(connection: Client, streaming_id: str, close_io: CloseIo | None = None) -> InputStream:
    """The input `streaming_id`; `close_io` is called at the end of `close`, where stdin outlives its clients."""
    return InputStream(await _open(connection, streaming_id), close_io)


async def _open(connection: Client, streaming_id: str) -> ClientStream[any_pb2.Any]:
    stream = await connection.stream(
        flow.SERVICE, flow.METHOD, any_pb2.Any, client_streaming=True, server_streaming=True
    )
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await stream.send(flow.init_message(streaming_id))
            if await stream.receive() is None:
                raise errors.Unavailable(f"stream {streaming_id}: ended before it was acknowledged")
    except TimeoutError:
        stream.close()
        raise errors.DeadlineExceeded(f"stream {streaming_id}: not acknowledged in {OPEN_TIMEOUT_S:g} s") from None
    except BaseException:
        stream.close()
        raise
    return stream


async def open_process(
    connection: Client,
    *,
    stdin: str = "",
    stdout: str = "",
    stderr: str = "",
    close_io: CloseIo | None = None,
) -> ProcessIO:
    """The streams of the given ids, those that are not empty; where one cannot be opened none stays open."""
    opened: list[OutputStream | InputStream] = []
    try:
        outputs: list[OutputStream | None] = []
        for streaming_id in (stdout, stderr):
            outputs.append(await open_output(connection, streaming_id) if streaming_id else None)
            opened += [output for output in outputs[-1:] if output is not None]
        writer = await open_input(connection, stdin, close_io) if stdin else None
    except BaseException:
        for stream in opened:
            if isinstance(stream, OutputStream):
                stream.close()
        raise
    return ProcessIO(stdin=writer, stdout=outputs[0], stderr=outputs[1])


# Named pipes


class _Waiting:
    """Waits for one descriptor, until it is ready or the shim has gone."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self.is_gone = False

    async def ready(self, watch: Callable[..., None], unwatch: Callable[[int], bool], fd: int) -> None:
        waiter = self._waiter = self._loop.create_future()
        watch(fd, self.wake)
        try:
            await waiter
        finally:
            self._waiter = None
            unwatch(fd)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def gone(self) -> None:
        self.is_gone = True
        self.wake()


class FifoReader:
    """An output of a process, read from a fifo; one reader at a time."""

    def __init__(self, path: Path) -> None:
        self._fd: int | None = _open_fifo(path, os.O_RDONLY)
        self._waiting = _Waiting()
        self._size = READ_BYTES
        self._has_begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._fd is not None:
            # A fifo that nobody has opened yet reads as ended, but is not readable (fifo(7), poll(2)).
            if not self._has_begun and not self._waiting.is_gone:
                await self._ready(self._fd)
            try:
                chunk = self._read()
            except BlockingIOError:
                chunk = b""
                if not self._waiting.is_gone:
                    self._has_begun = False
                    continue
            if chunk:
                self._has_begun = True
                return chunk
            self.close()
        raise StopAsyncIteration

    async def _ready(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        await self._waiting.ready(loop.add_reader, loop.remove_reader, fd)

    def _read(self) -> bytes:
        if self._fd is None:
            return b""
        chunk = os.read(self._fd, self._size)
        if len(chunk) == READ_BYTES == self._size:
            enlarge_pipe(self._fd)
            self._size = BULK_READ_BYTES
        return chunk

    def shim_gone(self) -> None:
        """Nobody writes any more: read what is there, then end."""
        self._waiting.gone()

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            asyncio.get_running_loop().remove_reader(fd)
            self._waiting.gone()
            os.close(fd)


class FifoWriter:
    """The input of a process, written to a fifo.

    It holds a read end too until `connected`, so that the fifo can be opened before the shim opens it.
    """

    def __init__(self, path: Path, close_io: CloseIo | None) -> None:
        self._reader: int | None = _open_fifo(path, os.O_RDONLY)
        try:
            self._fd: int | None = _open_fifo(path, os.O_WRONLY)
        except BaseException:
            os.close(self._reader)
            raise
        self._close_io = close_io
        self._is_big = False
        self._waiting = _Waiting()
        self._writing = asyncio.Lock()

    def connected(self) -> None:
        """The shim has opened its end: from now on its end is ours. Idempotent."""
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        async with self._writing:
            while view:
                if self._fd is None or self._waiting.is_gone:
                    raise errors.FailedPrecondition("stdin is closed")
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    if not self._is_big:
                        self._is_big = True
                        enlarge_pipe(self._fd)
                    await self._waiting.ready(loop.add_writer, loop.remove_writer, self._fd)
                except BrokenPipeError:
                    raise errors.FailedPrecondition("stdin is closed: the shim reads no more") from None

    async def close(self) -> None:
        async with self._writing:
            if self._fd is None:
                return
            self.abort()
        if self._close_io is not None:
            await self._close_io()

    def shim_gone(self) -> None:
        """Nobody reads any more: a write that waits fails."""
        self._waiting.gone()

    def abort(self) -> None:
        self.connected()
        if self._fd is not None:
            fd, self._fd = self._fd, None
            asyncio.get_running_loop().remove_writer(fd)
            self._waiting.gone()
            os.close(fd)


class FifoSet:
    """The named pipes of one process of a foreign shim.

    `create` makes them; `open` opens our ends, before the shim's Create or Exec and again after a restart of the
    daemon; `connected` when the shim has answered; `shim_gone` when it died; `remove` at the end.
    """

    def __init__(self, folder: Path, process: str, *, stdin: bool, terminal: bool) -> None:
        """The set as it is named in `folder`, without touching the disk; `InvalidArgument` for a bad id."""
        if not _ID.fullmatch(process):
            raise errors.InvalidArgument(f"process id {process!r}: cannot name a fifo")
        self._folder = folder
        self.terminal = terminal
        self._stdin = folder / f"{process}-stdin" if stdin else None
        self._stdout = folder / f"{process}-stdout"
        self._stderr = None if terminal else folder / f"{process}-stderr"
        self._readers: list[FifoReader] = []
        self._writer: FifoWriter | None = None

    @classmethod
    def create(cls, folder: Path, process: str, *, stdin: bool, terminal: bool) -> FifoSet:
        """Make the fifos (0600) in `folder` (0700, made if missing); those that are there from before are used."""
        fifos = cls(folder, process, stdin=stdin, terminal=terminal)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in fifos._all():
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
        return fifos

    @property
    def paths(self) -> StdioPaths:
        """What the shim is told."""
        return StdioPaths(
            stdin=str(self._stdin or ""),
            stdout=str(self._stdout),
            stderr=str(self._stderr or ""),
            terminal=self.terminal,
        )

    def open(self, close_io: CloseIo | None = None) -> ProcessIO:
        """Our ends; `close_io` is called when stdin is closed. `FailedPrecondition` names a fifo that is missing."""
        try:
            stdout = self._reader(self._stdout)
            stderr = self._reader(self._stderr) if self._stderr is not None else None
            self._writer = FifoWriter(self._stdin, close_io) if self._stdin is not None else None
        except BaseException:
            for reader in self._readers:
                reader.close()
            raise
        return ProcessIO(stdin=self._writer, stdout=stdout, stderr=stderr)

    def _reader(self, path: Path) -> FifoReader:
        reader = FifoReader(path)
        self._readers.append(reader)
        return reader

    def connected(self) -> None:
        """The shim has opened the fifos (it answered Create, or Start of an exec)."""
        if self._writer is not None:
            self._writer.connected()

    def shim_gone(self) -> None:
        """The shim has died: every stream ends after what is in its fifo."""
        for reader in self._readers:
            reader.shim_gone()
        if self._writer is not None:
            self._writer.shim_gone()

    def remove(self) -> None:
        """Close our ends and remove the fifos, and the folder when it is empty; idempotent."""
        for reader in self._readers:
            reader.close()
        if self._writer is not None:
            self._writer.abort()
        for path in self._all():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other sets live there
            self._folder.rmdir()

    def _all(self) -> list[Path]:
        return [path for path in (self._stdin, self._stdout, self._stderr) if path is not None]


def _open_fifo(path: Path, mode: int) -> int:
    try:
        return os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        reason = "nobody reads it" if error.errno == errno.ENXIO else error.strerror
        raise errors.FailedPrecondition(f"fifo {path}: {reason}") from error
