"""Programs that work for the image store, each in a process group of its own that ends with its caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from atoll import errors
from atoll.concurrency import Blocking, run_to_completion
from atoll.linux import flood

END_TIMEOUT_S = 30.0
MAX_OUTPUT_BYTES = 64 << 20


class Program:
    """One running program; its output is kept in memory files, so that nobody need read along."""

    def __init__(self, popen: subprocess.Popen[bytes], pidfd: int, output: int, complaints: int) -> None:
        self._popen = popen
        self._pidfd = pidfd
        self._output = output
        self._complaints = complaints

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def wait(self) -> int:
        """Wait for the end; the exit code, negative for a signal; the same again when asked again."""
        if self._popen.returncode is None:
            loop = asyncio.get_running_loop()
            ended = loop.create_future()
            loop.add_reader(self._pidfd, _settle, ended)
            what = f"{self._popen.args[0]} (process {self.pid})" if isinstance(self._popen.args, list) else "a program"
            try:
                async with flood.bounded(self._output, self._complaints, limit_bytes=MAX_OUTPUT_BYTES, what=what):
                    await ended
            finally:
                loop.remove_reader(self._pidfd)
        return self._popen.wait()

    def output(self) -> bytes:
        """What it has written to its standard output."""
        return os.pread(self._output, MAX_OUTPUT_BYTES, 0)

    def complaints(self) -> str:
        """What it has written to its standard error, the last 16 KiB."""
        size = os.fstat(self._complaints).st_size
        return os.pread(self._complaints, 16384, max(0, size - 16384)).decode(errors="replace")

    def kill(self) -> None:
        """Kill its group; nothing where it has been waited for."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@asynccontextmanager
async def running(
    pool: Blocking,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> AsyncGenerator[Program]:
    """Start a program; leaving the block kills its group, waits for its end and closes all, also when cancelled.

    Raises `FailedPrecondition` where the program is not installed.
    """
    with contextlib.ExitStack() as descriptors:
        output, complaints = (os.memfd_create("atoll-image") for _ in range(2))
        for descriptor in (output, complaints):
            descriptors.callback(os.close, descriptor)
        started: list[Program] = []

        def start() -> None:
            try:
                popen = subprocess.Popen(
                    list(arguments),
                    env=dict(environment),
                    cwd="/",
                    stdin=stdin,
                    stdout=output,
                    stderr=complaints,
                    pass_fds=tuple(pass_fds),
                    process_group=0,
                )
            except FileNotFoundError as error:
                raise errors.FailedPrecondition(f"{arguments[0]}: is not installed; install it") from error
            pidfd = os.pidfd_open(popen.pid)
            descriptors.callback(os.close, pidfd)
            started.append(Program(popen, pidfd, output, complaints))

        try:
            await run_to_completion(pool.run(start), within=END_TIMEOUT_S)
            yield started[0]
        finally:
            for program in started:
                program.kill()
                await run_to_completion(program.wait(), within=END_TIMEOUT_S)
