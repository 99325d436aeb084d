"""The streams of one process, from before its start until its deletion.

Stdio.open   targets are opened, pipes made (or the console socket)       abort: all freed again
child_fds    what the OCI runtime gets as its stdin, stdout, stderr
started      our copies of the child's ends are closed, reading begins
drain        after the exit: what is in the pipes reaches logs and clients
close        everything is closed; a last look into the pipes comes first
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.shim.stdio.console import SOCKET_FOLDER, ConsoleSocket, set_window_size
from atoll.shim.stdio.hub import Hub
from atoll.shim.stdio.log import Clock, LogFile, LogSink
from atoll.shim.stdio.logger import LogProgram
from atoll.shim.stdio.null import open_null
from atoll.shim.stdio.pump import FdSink, Pump, Sink
from atoll.shim.stdio.request import Binary, Cri, Fifo, File, Null, StdioRequest, Stream, Target, parse_target
from atoll.shim.stdio.stdin import AttachedInput
from atoll.shim.stdio.streaming import Streams


@dataclass(frozen=True, slots=True)
class ForeignFifos:
    """Where another shim copies a process's streams: `<folder>/<process>-stdin`, `-stdout`, `-stderr`."""

    folder: Path
    process: str

    def path(self, stream: str) -> Path:
        """The fifo of `stream`."""
        return self.folder / f"{self.process}-{stream}"


class Stdio:
    """The stdio of one process; made by `open`, ended by `close` (or `abort` where the process never started).

    It owns every descriptor that it made. Methods are for the shim's event loop only.
    """

    def __init__(self, request: StdioRequest, streams: Streams, fifos: ForeignFifos | None) -> None:
        """Not for callers: use `open`."""
        self._fifos = fifos
        self._request = request
        self._streams = streams
        self._clock = Clock()
        self._child: list[int] = []
        self._outputs: list[tuple[int, list[Sink]]] = []
        self._pumps: list[Pump] = []
        self._inputs: list[Pump] = []
        self._stdin: FdSink | None = None
        self._stdin_target: Target = Null()
        self._stdin_fifo: int | None = None
        self._stdin_keeper: int | None = None
        self._stdin_closed = False
        self._attached: AttachedInput | None = None
        self._names: list[str] = []
        self._logs: dict[Path, LogFile] = {}
        self._shared: dict[Path, FdSink] = {}
        self._console: ConsoleSocket | None = None
        self._terminal: int | None = None
        self._program: LogProgram | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        request: StdioRequest,
        streams: Streams,
        *,
        folder: Path = SOCKET_FOLDER,
        fifos: ForeignFifos | None = None,
    ) -> Stdio:
        """Open every target of `request`; live streams appear in `streams` under their ids.

        `folder` is where the console socket's own folder is made. With `fifos` the process is another shim's: its
        streams are read from and written to there, and there are no `child_fds`. Where it raises, nothing is left open:
        `InvalidArgument` for a URI, `FailedPrecondition` for a path that cannot be opened, `AlreadyExists` for a
        streaming id in use.
        """
        stdio = cls(request, streams, fifos)
        try:
            await stdio._open(folder)
        except BaseException:
            await stdio.close()
            raise
        return stdio

    @property
    def console_socket(self) -> Path | None:
        """Where the runtime must send the terminal; None without a terminal."""
        return self._console.path if self._console is not None else None

    @property
    def logs(self) -> tuple[LogFile, ...]:
        """The log files that are written."""
        return tuple(self._logs.values())

    def child_fds(self) -> tuple[int, int, int]:
        """Descriptors for the process's stdin, stdout and stderr; they stay ours and are valid until `started`."""
        stdin, stdout, stderr = self._child
        return stdin, stdout, stderr

    async def started(self) -> None:
        """The runtime has the process: close the child's ends, take the terminal, begin to read.

        `DeadlineExceeded` where a terminal was asked for and the runtime sent none; `abort` then.
        """
        self._close_child()
        if self._console is not None:
            console, self._console = self._console, None
            try:
                self._terminal = await console.receive()
            finally:
                console.close()
            self._use_terminal(self._terminal)
        self._use_stdin()
        for fd, sinks in self._outputs:
            self._pumps.append(Pump(fd, sinks, is_terminal=self._request.terminal))
        self._outputs.clear()
        for pump in (*self._pumps, *self._inputs):
            pump.start()

    async def abort(self) -> None:
        """The process was not made: free everything. Idempotent."""
        await self.close()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; without a terminal nothing happens."""
        if self._terminal is not None:
            set_window_size(self._terminal, width, height)

    def close_stdin(self) -> None:
        """No more input comes from us; the process sees the end once the clients' fifo ends have closed. Idempotent."""
        self._stdin_closed = True
        if self._stdin_keeper is not None:
            os.close(self._stdin_keeper)
            self._stdin_keeper = None
        if self._attached is not None:
            self._attached.close()

    def reopen(self, path: Path | None = None) -> None:
        """Write logs to new files from now on, at `path` or where they were; see `LogFile.reopen`."""
        for log_file in self._logs.values():
            log_file.reopen(path)

    async def drain(self, timeout: float) -> bool:
        """Wait until all output has gone on, at most `timeout` seconds; call it after the process's exit.

        True at the end of file. False where a descendant holds a pipe open or a client does not read: then
        everything that the process itself wrote has still been passed on, unless a client blocks it.
        """
        for pump in self._pumps:
            pump.look_for_end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for pump in self._pumps:
                    await pump.finished()
                if self._program is not None:
                    await self._program.exited()
                return True
        for pump in self._pumps:
            pump.flush()
        return False

    async def close(self) -> None:
        """Pass on what is in the pipes and close everything; idempotent.

        A log program has 12 seconds to end.
        """
        if self._closed:
            return
        self._closed = True
        for pump in self._pumps:
            pump.flush()
        for pump in (*self._inputs, *self._pumps):
            pump.close()
        self._close_unstarted()
        if self._stdin is not None:
            self._stdin.close()
        for name in self._names:
            self._streams.remove(name)
        for log_file in self._logs.values():
            log_file.close()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        if self._program is not None:
            await self._program.stop()

    def _close_child(self) -> None:
        for fd in self._child:
            os.close(fd)
        self._child.clear()

    def _close_unstarted(self) -> None:
        self._close_child()
        for fd, sinks in self._outputs:
            if fd >= 0:
                os.close(fd)
            for sink in sinks:
                sink.close()
        self._outputs.clear()
        for shared in self._shared.values():
            shared.close()
        for fd in (self._stdin_fifo, self._stdin_keeper):
            if fd is not None:
                os.close(fd)
        self._stdin_fifo = self._stdin_keeper = None
        if self._console is not None:
            self._console.close()

    # opening

    async def _open(self, folder: Path) -> None:
        request = self._request
        stdin, stdout, stderr = (
            parse_target(uri, stream=stream, process=request.process)
            for uri, stream in ((request.stdin, "stdin"), (request.stdout, "stdout"), (request.stderr, "stderr"))
        )
        if isinstance(stdin, File | Binary):
            raise errors.InvalidArgument(f"stdin {request.stdin!r}: input comes from a fifo, cri or a stream")
        if self._fifos is not None and not all(isinstance(target, _RELAYED) for target in (stdin, stdout, stderr)):
            raise errors.InvalidArgument(f"process {request.process}: a relay takes cri and stream targets only")
        if request.terminal:
            stderr = Null()  # a terminal has one output
        if isinstance(stdout, File | Fifo) and stdout == stderr:
            self._shared[stdout.path] = _open_output(stdout, users=2)
        self._open_stdin(stdin)
        if isinstance(stdout, Binary) or isinstance(stderr, Binary):
            await self._open_program(stdout, stderr)
            return
        for stream, target in (("stdout", stdout), ("stderr", stderr)):
            self._open_output(stream, target)
        if request.terminal:
            self._console = ConsoleSocket(folder)

    def _open_stdin(self, target: Target) -> None:
        self._stdin_target = target
        if self._fifos is not None:
            if not isinstance(target, Null):
                # Both ways: it can be opened before the shim does (fifo(7)).
                self._stdin = FdSink(_open_fifo(self._fifos.path("stdin"), os.O_RDWR))
                self._attach_stdin(self._stdin)
            return
        if isinstance(target, Fifo):
            self._stdin_fifo = _open_fifo(target.path, os.O_RDONLY)
        if isinstance(target, Null) or self._request.terminal:
            self._child.append(open_null(os.O_RDONLY))
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._child.append(reading)
        self._stdin = FdSink(writing)
        self._attach_stdin(self._stdin)

    def _attach_stdin(self, sink: FdSink) -> None:
        target = self._stdin_target
        if isinstance(target, Cri | Stream):
            self._attached = AttachedInput(
                target.streaming_id, sink, once=target.stdin_once, follows_client=isinstance(target, Stream)
            )
            self._streams.add_input(self._attached)
            self._names.append(target.streaming_id)

    def _open_output(self, stream: str, target: Target) -> None:
        terminal = self._request.terminal and stream == "stdout"
        if isinstance(target, Null) and not terminal:
            if self._fifos is None:
                self._child.append(open_null(os.O_WRONLY))
            return
        reading = -1
        if self._fifos is not None:
            reading = _open_fifo(self._fifos.path(stream), os.O_RDONLY)
        elif terminal:
            self._child.append(open_null(os.O_WRONLY))
        else:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            self._child.append(writing)
        sinks: list[Sink] = []
        self._outputs.append((reading, sinks))
        match target:
            case File() | Fifo():
                sinks.append(self._shared.get(target.path) or _open_output(target))
            case Cri():
                self._add_log(sinks, stream, target)
                self._add_hub(sinks, target.streaming_id, lossless=False)
            case Stream():
                self._add_hub(sinks, target.streaming_id, lossless=True)
            case _:
                pass

    def _add_log(self, sinks: list[Sink], stream: str, target: Cri) -> None:
        if target.path is None:
            return
        if target.path not in self._logs:
            self._logs[target.path] = LogFile(target.path, target.below)
        log = self._logs[target.path]
        sinks.append(LogSink(log, stream, target.max_line, self._clock, crlf=self._request.terminal))

    def _add_hub(self, sinks: list[Sink], name: str, *, lossless: bool) -> None:
        hub = Hub(name, lossless=lossless, greets=self._request.terminal)
        self._streams.add_output(hub)
        self._names.append(name)
        sinks.append(hub)

    async def _open_program(self, stdout: Target, stderr: Target) -> None:
        if not isinstance(stdout, Binary) or not isinstance(stderr, Binary | Null):
            raise errors.InvalidArgument("a log program takes both streams: give stdout and stderr the same binary URI")
        if self._request.terminal:
            raise errors.InvalidArgument("a log program cannot serve a terminal: use a fifo, cri or a stream")
        self._program = LogProgram(stdout, self._request)
        self._child += self._program.child_ends()
        await self._program.ready()

    # starting

    def _use_terminal(self, terminal: int) -> None:
        self._outputs = [(os.dup(terminal), sinks) for _, sinks in self._outputs]
        if not isinstance(self._stdin_target, Null):
            self._stdin = FdSink(os.dup(terminal))
            self._attach_stdin(self._stdin)

    def _use_stdin(self) -> None:
        if self._stdin_fifo is not None and self._stdin is not None:
            if not self._stdin_closed and not _has_ended(self._stdin_fifo):
                # A write end of our own keeps the fifo from ending when a client goes; CloseIO drops it. A client that
                # came and went before now has no process yet whose stdin it could close: that was the end.
                self._stdin_keeper = os.open(
                    f"/proc/self/fd/{self._stdin_fifo}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )
            self._inputs.append(Pump(self._stdin_fifo, [self._stdin]))
            self._stdin_fifo = None


_RELAYED = (Null, Cri, Stream)


def _has_ended(fifo: int) -> bool:
    """Whether writers have come and all are gone; one that nobody has opened yet has not ended."""
    poll = select.poll()
    poll.register(fifo, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _open_fifo(path: Path, mode: int) -> int:
    try:
        fd = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise errors.FailedPrecondition(f"fifo {path}: {error.strerror}") from error
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise errors.FailedPrecondition(f"fifo {path}: is not a named pipe")
    return fd


def _open_output(target: File | Fifo, *, users: int = 1) -> FdSink:
    path = target.path
    flags = os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if isinstance(target, File):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            return FdSink(os.open(path, flags | os.O_WRONLY | os.O_CREAT, 0o644), users=users)
        # Open for both ways: it neither blocks nor breaks while no client reads (fifo(7)).
        is_fifo = stat.S_ISFIFO(path.stat().st_mode)
        return FdSink(os.open(path, flags | (os.O_RDWR if is_fifo else os.O_WRONLY)), users=users)
    except OSError as error:
        raise errors.FailedPrecondition(f"output {path}: {error.strerror}") from error
