"""Processes that are named so that a reused pid is never mistaken, and programs run to their end.

A pid alone says nothing after its process was reaped. `ProcessId` adds the start time of
/proc/<pid>/stat and the boot id, so it can be written to disk and checked after a restart of the daemon
or the machine. `Spawner` runs a program to its end, bounded; `PidfdSpawner` is the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll import errors

REAP_TIMEOUT_S = 5.0


@functools.cache
def boot_id() -> str:
    """The kernel's id of this boot; it never changes while this process lives."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """The parts of /proc/<pid>/stat that tell which process it is; `start_ticks` since boot (proc(5), field 22)."""

    pid: int
    command: str
    state: str
    parent: int
    session: int
    start_ticks: int


def parse_stat(line: str) -> ProcessStat:
    """Parse one /proc/<pid>/stat line; the command may hold spaces, parentheses and line breaks.

    Raises `ValueError` for anything that is not such a line.
    """
    head, found, rest = line.rpartition(")")
    pid, bracket, command = head.partition("(")
    fields = rest.split()
    if not found or not bracket or len(fields) < 20:
        raise ValueError(f"not a /proc/<pid>/stat line: {line[:80]!r}")
    return ProcessStat(
        pid=int(pid),
        command=command,
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
    )


def stat(pid: int) -> ProcessStat | None:
    """The process `pid` as the kernel shows it now; None where there is none."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return parse_stat(line.decode("utf-8", "surrogateescape"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process of one boot; survives pid reuse and, on disk, a restart of anything."""

    pid: int
    start_ticks: int
    boot_id: str


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has `pid` now, a zombie too; None where there is none."""
    seen = stat(pid)
    return None if seen is None else ProcessId(pid=pid, start_ticks=seen.start_ticks, boot_id=boot_id())


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    if process.boot_id != boot_id():
        return False
    seen = stat(process.pid)
    return seen is not None and seen.start_ticks == process.start_ticks and seen.state not in "ZX"


def set_oom_score_adj(pids: Iterable[int], score: int) -> None:
    """Set how likely the kernel is to kill these, from -1000 to 1000; those that have ended are fine.

    Raises `FailedPrecondition` for a value below what only CAP_SYS_RESOURCE may set; proc(5).
    """
    for pid in pids:
        try:
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(score), encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            raise errors.FailedPrecondition(f"oom_score_adj of process {pid}: {score}: {error.strerror}") from error


def open_pidfd(process: ProcessId) -> int | None:
    """A pidfd of exactly this process, readable once it ended; None where it is gone. The caller closes it."""
    if process.boot_id != boot_id():
        return None
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # The descriptor pins whoever has the pid now; only then can the start time tell who that is.
    seen = stat(process.pid)
    if seen is None or seen.start_ticks != process.start_ticks:
        os.close(fd)
        return None
    return fd


def send_signal(process: ProcessId, number: int) -> bool:
    """Send signal `number` to exactly this process; False where it is gone."""
    fd = open_pidfd(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


class Spawner(Protocol):
    """Runs programs to their end."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> int:
        """Run `argv` in a process group of its own and wait for its end.

        Descriptors stay the caller's; None is /dev/null. `pass_fds` keep their numbers. `env` None is this
        process's environment. Waits for the program only, not for what it left behind on its descriptors.
        Returns the exit code, or minus the signal that ended it. When `timeout_s` runs out or the caller is
        cancelled, the process group is killed and reaped before `DeadlineExceeded` or the cancellation is
        raised. Raises `OSError` where the program cannot be started.
        """
        ...


class PidfdSpawner:
    """The daemon's `Spawner`: a child, its pidfd on the loop; no thread, no signal handler.

    Starting blocks the loop until the child has called exec (vfork, about a millisecond).
    """

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> int:
        child = subprocess.Popen(  # noqa: ASYNC220  vfork: there is nothing to wait for but the exec
            argv,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            pass_fds=tuple(pass_fds),
            cwd=cwd,
            env=env,
            process_group=0,
        )
        try:
            async with asyncio.timeout(timeout_s):
                await _ended(child.pid)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{argv[0]}: did not end within {timeout_s:g} s and was killed") from None
        finally:
            # Not reaped yet, so neither the pid nor the group's number can have been given away. A group
            # left behind by a program that ended on its own is not ours to kill.
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                _reap(child)
        return child.returncode


async def _ended(pid: int) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    fd = os.pidfd_open(pid)
    try:
        loop.add_reader(fd, _settle, ended)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _reap(child: subprocess.Popen[bytes]) -> None:
    # A killed process ends at once unless the kernel holds it in an uninterruptible wait; then the object
    # is dropped, and the interpreter reaps it on a later Popen.
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(REAP_TIMEOUT_S)
