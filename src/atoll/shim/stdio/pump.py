"""From a pipe or a terminal to its sinks, without tasks, threads or idle buffers.

A `Pump` reads when the kernel says so, once a wake-up and at most `MAX_CHUNK_BYTES`, so that one chatty container
leaves the loop to the others. It stops reading while one of its sinks is blocked: back-pressure
reaches the process through the kernel's pipe, which is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import select
import struct
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

CHUNK_BYTES = 64 << 10
MAX_CHUNK_BYTES = 256 << 10
# A pipe that was found full is enlarged to this, the most an unprivileged process may ask for.
BIG_PIPE_BYTES = 1 << 20
SMALL_READS_BEFORE_SHRINKING = 64
# A terminal hands out at most one page a read (drivers/tty/n_tty.c).
TERMINAL_READS = 16

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where a pump's chunks go."""

    @property
    def is_blocked(self) -> bool:
        """Whether it can take no more now; it calls the pump's `changed` when it can again."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether all it took has gone on; it calls the pump's `changed` when it has."""
        ...

    def connect(self, changed: Callable[[], None]) -> None:
        """Remember whom to tell."""
        ...

    def write(self, chunk: bytes) -> None:
        """Take a chunk, also when blocked."""
        ...

    def end(self) -> None:
        """No chunk follows: pass on what is held, then close."""
        ...

    def close(self) -> None:
        """Close now; idempotent."""
        ...


class Pump:
    """Moves the bytes of `fd`, which it owns, to `sinks` until the end of file.

    `is_terminal`: `fd` is the master of a pty, whose end of file is EIO.
    """

    def __init__(self, fd: int, sinks: Sequence[Sink], *, is_terminal: bool = False) -> None:
        os.set_blocking(fd, False)
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._sinks = tuple(sinks)
        self._is_terminal = is_terminal
        self._chunk_bytes = CHUNK_BYTES
        self._small_reads = 0
        self._reading = False
        self._started = False
        self._ended = False
        self._waiters: list[asyncio.Future[None]] = []
        self._splices = len(self._sinks) == 1 and not is_terminal
        for sink in sinks:
            sink.connect(self._changed)

    @property
    def is_finished(self) -> bool:
        """Whether the end of file was seen and every sink has passed on what it took."""
        return self._ended and all(sink.is_idle for sink in self._sinks)

    def start(self) -> None:
        """Begin to read."""
        self._started = True
        self._changed()

    async def finished(self) -> None:
        """Return once `is_finished`."""
        while not self.is_finished:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def look_for_end(self) -> None:
        """See an end of file that a blocked sink keeps us from reading."""
        if self._started and not self._ended and self._is_blocked and is_at_end(self._fd):
            self._end()

    def flush(self) -> bool:
        """Pass on what is in the pipe now without waiting; False where a blocked sink left some there."""
        remaining = 0 if self._ended else unread_bytes(self._fd)
        while remaining > 0 and not self._ended:
            if self._is_blocked:
                return False
            taken = self._transfer(min(remaining, MAX_CHUNK_BYTES))
            if taken == 0:
                break
            remaining -= taken
        return True

    def close(self) -> None:
        """Stop reading and close the descriptor and the sinks; idempotent. What is unread is lost: see `flush`."""
        self._stop_reading()
        if not self._ended:
            self._ended = True
            os.close(self._fd)
        for sink in self._sinks:
            sink.close()
        self._tell()

    @property
    def _is_blocked(self) -> bool:
        return any(sink.is_blocked for sink in self._sinks)

    def _changed(self) -> None:
        if self._started and not self._ended:
            if self._is_blocked:
                self._stop_reading()
            elif not self._reading:
                self._reading = True
                self._loop.add_reader(self._fd, self._readable)
        self._tell()

    def _tell(self) -> None:
        if self._waiters and self.is_finished:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        size = self._chunk_bytes
        taken = self._transfer(size)
        if self._ended:
            return
        if taken == size:
            self._small_reads = 0
            if size < MAX_CHUNK_BYTES and not self._is_terminal:
                enlarge_pipe(self._fd)
                self._chunk_bytes = MAX_CHUNK_BYTES
        elif size > CHUNK_BYTES and taken < CHUNK_BYTES:
            self._small_reads += 1
            if self._small_reads > SMALL_READS_BEFORE_SHRINKING:
                self._chunk_bytes = CHUNK_BYTES
        if self._is_blocked:
            self._stop_reading()

    def _transfer(self, size: int) -> int:
        """Pass on at most `size` bytes; how many, 0 where there was nothing or the end came."""
        if self._splices and (moved := self._splice(size)):
            return moved
        try:
            chunk = self._read(size)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO or not self._is_terminal:
                log.warning("cannot read output: %s", error.strerror)
            chunk = b""
        if not chunk:
            self._end()
            return 0
        for sink in self._sinks:
            sink.write(chunk)
        return len(chunk)

    def _splice(self, size: int) -> int:
        """Move bytes from pipe to pipe without a copy; 0 where reading and writing must tell why not (splice(2))."""
        sink = self._sinks[0]
        if not isinstance(sink, FdSink) or sink.is_closed or sink.is_blocked:
            return 0
        try:
            return os.splice(self._fd, sink.fileno(), size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._splices = error.errno == errno.EPIPE  # other than that: not two pipes
            return 0

    def _read(self, size: int) -> bytes:
        chunk = os.read(self._fd, size)
        if not self._is_terminal or len(chunk) < 1024:
            return chunk
        chunks = [chunk]
        with contextlib.suppress(OSError):  # whatever it is, the next wake-up meets it again
            for _ in range(TERMINAL_READS):
                more = os.read(self._fd, size)
                if not more:
                    break
                chunks.append(more)
        return b"".join(chunks)

    def _end(self) -> None:
        self._stop_reading()
        self._ended = True
        os.close(self._fd)
        for sink in self._sinks:
            sink.end()
        self._tell()


def unread_bytes(fd: int) -> int:
    """Bytes that can be read from a pipe or terminal now."""
    try:
        return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    except OSError:
        return 0


def is_at_end(fd: int) -> bool:
    """Whether a pipe or terminal is empty and nobody can write to it any more."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    hung_up = any(events & select.POLLHUP for _, events in poll.poll(0))
    return hung_up and unread_bytes(fd) == 0


def enlarge_pipe(fd: int) -> None:
    """Give a pipe room for `BIG_PIPE_BYTES`, where the kernel lets us."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, BIG_PIPE_BYTES)


class FdSink:
    """A descriptor as a sink: a fifo, a file, a process's stdin. It owns `fd`.

    A reader that is slow blocks the sink with at most what was given to it; a reader that has gone (EPIPE), a
    full disk or another error makes it drop what it is given. Several pumps may share it (`users`): it
    closes when the last has ended.
    """

    def __init__(self, fd: int, *, users: int = 1) -> None:
        os.set_blocking(fd, False)
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._users = users
        self._pending: deque[memoryview] = deque()
        self._changed: list[Callable[[], None]] = []
        self._closed = False
        self._is_big = False
        self.dropped_bytes = 0

    @property
    def is_blocked(self) -> bool:
        return bool(self._pending)

    @property
    def is_idle(self) -> bool:
        return not self._pending

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closed or self._users <= 0

    def fileno(self) -> int:
        """The descriptor, for who writes to it himself while it is neither blocked nor closed."""
        return self._fd

    def connect(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def write(self, chunk: bytes) -> None:
        if self._closed:
            self.dropped_bytes += len(chunk)
            return
        if self._pending:
            self._pending.append(memoryview(chunk))
            return
        rest = self._write_some(memoryview(chunk))
        if rest:
            self._pending.append(rest)
            self._loop.add_writer(self._fd, self._writable)

    def end(self) -> None:
        self._users -= 1
        if self._users <= 0 and not self._pending:
            self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pending:
            self._loop.remove_writer(self._fd)
            self._pending.clear()
        os.close(self._fd)
        self._tell()

    def _tell(self) -> None:
        for changed in tuple(self._changed):
            changed()

    def _writable(self) -> None:
        while self._pending:
            rest = self._write_some(self._pending[0])
            if rest:
                self._pending[0] = rest
                return
            if self._pending:
                self._pending.popleft()
        if not self._closed:
            self._loop.remove_writer(self._fd)
            if self._users <= 0:
                self.close()
        self._tell()

    def _write_some(self, data: memoryview) -> memoryview:
        """Write until done or blocked; what is left. On an error the data is dropped."""
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BlockingIOError:
            if not self._is_big:
                self._is_big = True
                enlarge_pipe(self._fd)
            return data
        except OSError as error:
            if not self.dropped_bytes and error.errno != errno.EPIPE:
                log.warning("cannot pass on output, dropping it: %s", error.strerror)
            self.dropped_bytes += len(data)
            return data[:0]
        return data
