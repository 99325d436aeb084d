"""Who died: the shim's children and the orphans it adopts.

The shim is a subreaper, so the processes of its containers become its children when the OCI runtime
that made them ends. SIGCHLD coalesces; each one makes the reaper wait until no dead child is left
(waitpid(2)), so none is lost. A container's init may die before its pid file was read: an exit of an unknown
pid is kept for `watch` until everybody who was `expecting()` a process when it came has stopped to. Such an exit says
nothing of a child that has the pid now.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import errors
from atoll.shim.copies import Copies

EARLY_EXITS_LIMIT = 4096
KILL_TIMEOUT_S = 5.0
# Ignored by the interpreter, and ignored signals survive exec.
_DEFAULTED = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: its exit code, or minus the signal; the time in ns since the epoch."""

    code: int
    at_ns: int

    @property
    def status(self) -> int:
        """The code as shells and containerd tell it: 128 + N for signal N."""
        return self.code if self.code >= 0 else 128 - self.code


class Reaper:
    """Waits for every child of this process; also the `Spawner` of this process.

    Nobody else in the process may wait for children while it is open.
    """

    def __init__(self, *, programs_nofile: tuple[int, int] | None = None, copies: Copies | None = None) -> None:
        """`programs_nofile`: RLIMIT_NOFILE, soft and hard, of the programs it starts; None for this process's own.

        `copies`: what is executed in the place of some of them.
        """
        self._programs_nofile = programs_nofile
        self._copies = copies
        self._watched: dict[int, asyncio.Future[Exit]] = {}
        # Oldest first; each with the newest window that was open when it came.
        self._early: dict[int, tuple[int, Exit]] = {}
        self._windows: dict[int, None] = {}
        self._numbers = itertools.count()

    def open(self) -> None:
        """Begin; children that are dead already are reaped at once."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def close(self) -> None:
        """Stop reaping; idempotent."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def reap(self) -> None:
        """Wait for every dead child there is."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, Exit(os.waitstatus_to_exitcode(status), time.time_ns()))

    def _ended(self, pid: int, ended: Exit) -> None:
        watched = self._watched.pop(pid, None)
        if watched is not None:
            if not watched.done():
                watched.set_result(ended)
        elif self._windows:
            self._early.pop(pid, None)
            if len(self._early) >= EARLY_EXITS_LIMIT:
                del self._early[next(iter(self._early))]
            self._early[pid] = (next(reversed(self._windows)), ended)

    @contextlib.contextmanager
    def expecting(self) -> Generator[None]:
        """Within, exits of pids that nobody watches yet are kept, so that `watch` finds them."""
        number = next(self._numbers)
        self._windows[number] = None
        try:
            yield
        finally:
            del self._windows[number]
            self._forget_early()

    def _forget_early(self) -> None:
        oldest = next(iter(self._windows), None)
        while self._early:
            pid = next(iter(self._early))
            if oldest is not None and self._early[pid][0] >= oldest:
                return
            del self._early[pid]

    def watch(self, pid: int) -> asyncio.Future[Exit]:
        """The end of the child `pid`; done at once if it was reaped inside the `expecting()` that is open."""
        future = self._watched.get(pid)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            early = self._early.pop(pid, None)
            if early is None or _is_child(pid):
                self._watched[pid] = future
            else:
                future.set_result(early[1])
        return future

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> tuple[int, asyncio.Future[Exit]]:
        """Start `argv` in a process group of its own: its pid and its end. Raises `OSError`."""
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        for number, fd in enumerate((stdin, stdout, stderr)):
            if fd is None:
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY
                actions.append((os.POSIX_SPAWN_OPEN, number, os.devnull, flags, 0))
            else:
                actions.append((os.POSIX_SPAWN_DUP2, fd, number))
        # dup2 onto itself makes the child's copy survive exec (posix_spawn_file_actions_adddup2(3)).
        actions.extend((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds)
        with _working_in(cwd), _limited(self._programs_nofile):
            pid = os.posix_spawnp(
                self._copies.path(argv[0]) if self._copies is not None else argv[0],
                list(argv),
                dict(os.environ if env is None else env),
                file_actions=actions,
                setpgroup=0,
                setsigmask=(),
                setsigdef=_DEFAULTED,
            )
        self._early.pop(pid, None)
        return pid, self.watch(pid)

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
        """Run `argv` to its end, as `atoll.linux.process.Spawner` says."""
        pid, ended = self.start(argv, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, cwd=cwd, env=env)
        try:
            async with asyncio.timeout(timeout_s):
                return (await asyncio.shield(ended)).code
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{argv[0]}: did not end within {timeout_s:g} s and was killed") from None
        finally:
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                await asyncio.wait({ended}, timeout=KILL_TIMEOUT_S)


def _is_child(pid: int) -> bool:
    # Alive or dead, a child that was not waited for is not the one whose exit was seen (waitid(2), ECHILD).
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@contextlib.contextmanager
def _working_in(cwd: Path | None) -> Generator[None]:
    # posix_spawn of the standard library cannot change the folder; a shim has no other thread that would notice.
    if cwd is None:
        yield
        return
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(cwd)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def _limited(nofile: tuple[int, int] | None) -> Generator[None]:
    # posix_spawn cannot set limits either; descriptors that are open stay so under a lower one (getrlimit(2)).
    if nofile is None:
        yield
        return
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, nofile)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)
