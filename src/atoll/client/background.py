"""Background processes of a container: what `Container.spawn` starts and the daemon keeps.

They go on whatever becomes of the client and of the daemon, until their container ends. The daemon keeps the last
64 MiB of each of their streams on its disk, by the byte, and how they ended, until they are forgotten or the
container is removed.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from atoll import errors
from atoll.api import atoll_processes_v1_pb2 as pb
from atoll.api import atoll_v1_pb2 as own
from atoll.client import wire
from atoll.client.model import Exit, moment

CALL_TIMEOUT_S = 120.0
STDIN_PART_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """A background process at one moment; `exit` is None while it runs.

    `stdout` and `stderr` are the first byte of the stream that is still kept, and how many were written; `stdin` is
    whether it was started to take input, `tty` whether its stdio is a terminal.
    """

    id: str
    container_id: str
    command: tuple[str, ...]
    pid: int
    started_at: datetime | None
    exit: Exit | None
    stdout: tuple[int, int]
    stderr: tuple[int, int]
    stdin: bool = False
    tty: bool = False

    @property
    def running(self) -> bool:
        return self.exit is None

    @classmethod
    def read(cls, message: pb.Process) -> ProcessStatus:
        return cls(
            id=message.id,
            container_id=message.container_id,
            command=tuple(message.command),
            pid=message.pid,
            started_at=moment(message.started_at),
            exit=Exit.read(message.exit) if message.HasField("exit") else None,
            stdout=(message.stdout.begin, message.stdout.end),
            stderr=(message.stderr.begin, message.stderr.end),
            stdin=message.stdin,
            tty=message.tty,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChunk:
    """Bytes of `stream` (stdout or stderr) that begin at `offset`; `end` is where to follow from the next time."""

    stream: str
    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


class BackgroundProcess:
    """A background process, by its container and its ID; holds no state of its own."""

    def __init__(self, connection: wire.Wire, container_id: str, process_id: str) -> None:
        self._wire = connection
        self.container_id = container_id
        self.id = process_id

    def __repr__(self) -> str:
        return f"<BackgroundProcess {self.id} of {self.container_id[:13]}>"

    def _asked(self) -> pb.ProcessRequest:
        return pb.ProcessRequest(container_id=self.container_id, id=self.id)

    async def status(self) -> ProcessStatus:
        """What is known now. Raises `NotFound`."""
        return ProcessStatus.read(await self._wire.call(wire.PROCESS_GET, self._asked(), timeout_s=CALL_TIMEOUT_S))

    async def follow(
        self, *, stdout_from: int = 0, stderr_from: int = 0, wait: bool = True
    ) -> AsyncGenerator[OutputChunk]:
        """Its output from these bytes on, each stream in order, until it has ended and all is told.

        What is not kept any more is left out: the next chunk's `offset` tells. Without `wait` it ends with what is
        there now. Where it breaks, follow again from the `end` of the last chunks.
        """
        asked = pb.FollowRequest(
            container_id=self.container_id,
            id=self.id,
            stdout_from=stdout_from,
            stderr_from=stderr_from,
            no_wait=not wait,
        )
        answers = self._wire.stream(wire.PROCESS_FOLLOW, asked)
        ended = False
        try:
            async for answer in answers:
                match answer.WhichOneof("message"):
                    case "stdout":
                        yield OutputChunk(stream="stdout", offset=answer.offset, data=answer.stdout)
                    case "stderr":
                        yield OutputChunk(stream="stderr", offset=answer.offset, data=answer.stderr)
                    case _:
                        ended = True
        finally:
            await answers.aclose()
        if wait and not ended:
            raise errors.Unavailable(f"process {self.id}: the stream ended before the process did; follow it again")

    async def output(self) -> tuple[bytes, bytes]:
        """What is kept of stdout and of stderr up to now."""
        parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        async for chunk in self.follow(wait=False):
            parts[chunk.stream].append(chunk.data)
        return b"".join(parts["stdout"]), b"".join(parts["stderr"])

    async def wait(self, timeout: float | None = None) -> Exit:
        """Wait for its end; at once, always the same, after it. `DeadlineExceeded` after `timeout` seconds."""
        if timeout is not None and not timeout >= 0:
            raise errors.InvalidArgument(f"timeout {timeout:g}: must be 0 or more seconds")
        try:
            answer = await self._wire.call(wire.PROCESS_WAIT, self._asked(), timeout_s=timeout)
        except errors.DeadlineExceeded:
            raise errors.DeadlineExceeded(f"process {self.id}: still runs after {timeout or 0:g} s") from None
        return Exit.read(answer.exit)

    async def write(self, data: bytes) -> None:
        """Give it input; returns once its pipe has taken it. `FailedPrecondition` where it takes none, or no more.

        One program may write some of it, and another one go on another day. What it is given and has not read when it
        ends is lost.
        """
        view = memoryview(data)
        for at in range(0, len(view), STDIN_PART_BYTES):
            part = view[at : at + STDIN_PART_BYTES].tobytes()
            asked = pb.WriteRequest(container_id=self.container_id, id=self.id, data=part)
            await self._wire.call(wire.PROCESS_WRITE, asked, timeout_s=None)

    async def close_stdin(self) -> None:
        """End its input behind what was written; idempotent."""
        await self._wire.call(wire.PROCESS_CLOSE, self._asked(), timeout_s=CALL_TIMEOUT_S)

    async def resize(self, width: int, height: int) -> None:
        """Tell its terminal its size in characters; raises `FailedPrecondition` where it has none."""
        size = own.TerminalSize(width=width, height=height)
        asked = pb.ResizeRequest(container_id=self.container_id, id=self.id, size=size)
        await self._wire.call(wire.PROCESS_RESIZE, asked, timeout_s=CALL_TIMEOUT_S)

    async def signal(self, number: int, *, tree: bool = False) -> None:
        """Send it a signal, with `tree` to all that it started too; fine where it has ended."""
        asked = pb.SignalRequest(container_id=self.container_id, id=self.id, signal=number, tree=tree)
        await self._wire.call(wire.PROCESS_SIGNAL, asked, timeout_s=CALL_TIMEOUT_S)

    async def kill(self) -> None:
        """End it and all that it started, at once."""
        await self.signal(signal.SIGKILL, tree=True)

    async def forget(self) -> None:
        """Take its record and output away; where it runs it is killed first."""
        await self._wire.call(wire.PROCESS_FORGET, self._asked(), timeout_s=CALL_TIMEOUT_S)
