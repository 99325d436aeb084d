"""A log program: `binary://` and `binary-v2://` targets.

It reads the container's stdout and stderr on its descriptors 3 and 4, straight from the container's pipes, and
says on descriptor 5 that it is ready: by closing it, or (v2) by a byte first. Its environment is CONTAINER_ID and
CONTAINER_NAMESPACE. It ends at the end of its input or by SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal

from atoll import errors
from atoll.shim.stdio.pump import Pump
from atoll.shim.stdio.readiness import readable
from atoll.shim.stdio.request import Binary, StdioRequest

READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 12.0

log = logging.getLogger(__name__)


class LogProgram:
    """One running log program; made running, made useful by `ready`, ended by `stop`.

    It owns the read ends of the container's pipes, so that a program that dies costs the log and not the container:
    the output is read and dropped from then on.
    """

    def __init__(self, target: Binary, request: StdioRequest) -> None:
        """Start the program; `FailedPrecondition` where it cannot be executed."""
        self._loop = asyncio.get_running_loop()
        self._target = target
        self._pumps: list[Pump] = []
        self._exit = asyncio.Event()
        self._pidfd: int | None = None
        self._readers: list[int] = []
        self._writers: list[int] = []
        self._ready: int | None = None
        try:
            self._start(request)
        except BaseException:
            for fd in (*self._readers, *self._writers, *(() if self._ready is None else (self._ready,))):
                os.close(fd)
            raise

    def _start(self, request: StdioRequest) -> None:
        for _ in range(2):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self._readers.append(reader)
            self._writers.append(writer)
        self._ready, ready_writer = os.pipe2(os.O_CLOEXEC)
        # Above the numbers they are given in the program, so that no dup2 hits one that is still needed.
        sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*self._readers, ready_writer)]
        os.close(ready_writer)
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        inherited = [(os.POSIX_SPAWN_DUP2, source, fd) for source, fd in zip(sources, (3, 4, 5), strict=True)]
        program = str(self._target.program)
        try:
            self._pid = os.posix_spawn(
                program,
                [program, *self._target.arguments],
                {"CONTAINER_ID": request.id, "CONTAINER_NAMESPACE": request.namespace},
                file_actions=[*null, *inherited],
                setsigmask=[],
                setsigdef=[signal.SIGPIPE],
            )
        except OSError as error:
            raise errors.FailedPrecondition(f"log program {program}: {error.strerror}") from error
        finally:
            for fd in sources:
                os.close(fd)
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.add_reader(self._pidfd, self._gone)

    def child_ends(self) -> tuple[int, int]:
        """The container's stdout and stderr, handed over: the caller closes them."""
        stdout, stderr = self._writers
        self._writers.clear()
        return stdout, stderr

    async def ready(self) -> None:
        """Wait until the program says so; `FailedPrecondition` where it ends instead, `DeadlineExceeded` after 10 s."""
        assert self._ready is not None
        fd, self._ready = self._ready, None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await readable(fd)
            said = os.read(fd, 1)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"log program {self._target.program}: not ready within {READY_TIMEOUT_S:g} s"
            ) from None
        finally:
            os.close(fd)
        if not said and self._target.needs_ready_byte:
            raise errors.FailedPrecondition(f"log program {self._target.program}: ended before it was ready")

    async def exited(self) -> None:
        """Return once the program has ended; it does so after it has read everything."""
        await self._exit.wait()

    async def stop(self) -> None:
        """SIGTERM, after 12 s SIGKILL; idempotent."""
        for fd in self._writers:
            os.close(fd)
        self._writers.clear()
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None
        if self._pidfd is not None:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self.exited()
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self.exited()
        for pump in self._pumps:
            pump.close()
        self._pumps.clear()

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _gone(self) -> None:
        if self._pidfd is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = None
        with contextlib.suppress(ChildProcessError):  # the shim's reaper may have been faster
            os.waitpid(self._pid, os.WNOHANG)
        self._pumps = [Pump(fd, []) for fd in self._readers]
        self._readers.clear()
        self._exit.set()
        for pump in self._pumps:
            pump.start()
