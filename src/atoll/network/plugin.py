"""One program executed for a moment: input from memory, bounded output, bounded time, nothing left running.

The exit comes from a pidfd and the output from pipes, all on the event loop: no thread, no child watcher
(asyncio's costs a thread a process). The spawn itself is a vfork of about 0.2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.concurrency import run_to_completion

OUTPUT_LIMIT_BYTES = 1 << 20
"""Most bytes taken from a plugin's stdout, and from its stderr; a plugin that writes more is killed."""
KILL_WAIT_S = 2.0
"""How long a killed plugin is waited for; a later end is still reaped, by the event loop."""
READ_BYTES = 1 << 16
WALK_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRun:
    """How a program ended; `returncode` is minus the signal where one killed it."""

    returncode: int
    stdout: bytes
    stderr: bytes
    duration_s: float
    overflowed: bool


async def run(
    path: Path,
    *,
    env: Mapping[str, str],
    stdin: bytes,
    timeout_s: float,
    arguments: tuple[str, ...] = (),
    nice: int = 0,
) -> PluginRun:
    """Execute `path` in a session of its own and wait until it ends.

    When `timeout_s` runs out (`DeadlineExceeded`) or the caller is cancelled, the program and all its
    descendants are killed before this returns. Output still held open by a descendant is not waited for.
    `FailedPrecondition` where the kernel refuses to execute it.
    """
    running = _Running(path, arguments, env, stdin, nice)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(running.ended)
    except TimeoutError as error:
        await run_to_completion(running.kill(), within=KILL_WAIT_S + 1)
        raise errors.DeadlineExceeded(f"{path.name} did not end within {timeout_s:g} s and was killed") from error
    except asyncio.CancelledError:
        await run_to_completion(running.kill(), within=KILL_WAIT_S + 1)
        raise
    if running.overflowed:
        await run_to_completion(running.kill(), within=KILL_WAIT_S + 1)
    return running.result()


class _Stream:
    """One output pipe: what was read so far, up to the limit."""

    __slots__ = ("data", "fd", "size")

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.data = bytearray()

    def read(self) -> bool:
        """Take what is there; False at the end of the output."""
        while True:
            try:
                chunk = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return True
            self.data += chunk[: OUTPUT_LIMIT_BYTES + 1 - len(self.data)]
            if not chunk or len(self.data) > OUTPUT_LIMIT_BYTES:
                return False


class _Running:
    """A program between its start and its reaping; owns its pidfd and pipes."""

    def __init__(self, path: Path, arguments: tuple[str, ...], env: Mapping[str, str], stdin: bytes, nice: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = time.perf_counter()
        self._duration_s = 0.0
        self.overflowed = False
        self._dead = asyncio.Event()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the program has ended, or has written more than it may."""
        self._process, stdout, stderr = _spawn([str(path), *arguments], env, stdin)
        self._streams = (_Stream(stdout), _Stream(stderr))
        self._pidfd = os.pidfd_open(self._process.pid)
        if nice:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)
        self._loop.add_reader(self._pidfd, self._on_exit)
        for stream in self._streams:
            self._loop.add_reader(stream.fd, self._on_output, stream)

    def _on_output(self, stream: _Stream) -> None:
        if stream.read():
            return
        self._loop.remove_reader(stream.fd)
        if len(stream.data) > OUTPUT_LIMIT_BYTES:
            self.overflowed = True
            self._settle()

    def _on_exit(self) -> None:
        self._process.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for stream in self._streams:
            stream.read()  # what the program itself wrote is in the pipe by now
            self._loop.remove_reader(stream.fd)
            os.close(stream.fd)
        self._dead.set()
        self._settle()

    def _settle(self) -> None:
        if not self.ended.done():
            self._duration_s = time.perf_counter() - self._started
            self.ended.set_result(None)

    async def kill(self) -> None:
        if not self._dead.is_set():
            kill_tree(self._process.pid)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_WAIT_S):
                    await self._dead.wait()

    def result(self) -> PluginRun:
        stdout, stderr = (bytes(stream.data[:OUTPUT_LIMIT_BYTES]) for stream in self._streams)
        code = self._process.returncode
        return PluginRun(
            returncode=code if code is not None else -signal.SIGKILL,
            stdout=stdout,
            stderr=stderr,
            duration_s=self._duration_s,
            overflowed=self.overflowed,
        )


def _spawn(command: list[str], env: Mapping[str, str], stdin: bytes) -> tuple[subprocess.Popen[bytes], int, int]:
    with contextlib.ExitStack() as stack:
        source = os.memfd_create("cni-config", os.MFD_CLOEXEC)
        stack.callback(os.close, source)
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        stdout, stdout_end = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, stdout_end)
        stderr, stderr_end = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, stderr_end)
        try:
            process = subprocess.Popen(
                command, stdin=source, stdout=stdout_end, stderr=stderr_end, env=env, start_new_session=True
            )
        except OSError as error:
            os.close(stdout)
            os.close(stderr)
            raise errors.FailedPrecondition(f"{command[0]}: cannot be executed: {error.strerror}") from error
        return process, stdout, stderr


def kill_tree(pid: int) -> None:
    """Kill the process group `pid` and every descendant of its leader, also those that left the group.

    Each is stopped when found, so that none forks while the tree is walked. `pid` must be an unreaped
    child that leads its group.
    """
    found: dict[int, None] = {}
    _signal_group(pid, signal.SIGSTOP)
    for _ in range(WALK_ROUNDS):
        fresh = [child for child in _descendants(pid) if child not in found]
        if not fresh:
            break
        for child in fresh:
            found[child] = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
    for child in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{thread}/children").read_text().split()
                found.extend(map(int, children))
                waiting.extend(map(int, children))
    return found
