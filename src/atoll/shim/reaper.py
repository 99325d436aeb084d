"""Who died: the shim's children and the orphans it adopts.

The shim is a subreaper, so the processes of its containers become its children when the OCI runtime
that made them ends. SIGCHLD coalesces; each one makes the reaper wait until no dead child is left
(waitpid(2)), so none is lost. A container's init may die before its pid file was read: while anybody
`expecting()` a process, exits of unknown pids are kept for `watch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll import errors

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

    def __init__(self, *, programs_nofile: tuple[int, int] | None = None) -> None:
        """`programs_nofile`: RLIMIT_NOFILE, soft and hard, of the programs it starts; None for this process's own."""
        self._programs_nofile = programs_nofile
        self._watched: dict[int, asyncio.Future[Exit]] = {}
        self._early: dict[int, Exit] = {}
        self._expecting = 0

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
        elif self._expecting:
            if len(self._early) >= EARLY_EXITS_LIMIT:
                del self._early[next(iter(self._early))]
            self._early[pid] = ended

    @contextlib.contextmanager
    def expecting(self) -> Generator[None]:
        """Within, exits of pids that nobody watches yet are kept, so that `watch` finds them."""
        self._expecting += 1
        try:
            yield
        finally:
            self._expecting -= 1
            if not self._expecting:
                self._early.clear()

    def watch(self, pid: int) -> asyncio.Future[Exit]:
        """The end of the child `pid`; done at once if it was reaped inside the `expecting()` that is open."""
        future = self._watched.get(pid)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            early = self._early.pop(pid, None)
            if early is None:
                self._watched[pid] = future
            else:
                future.set_result(early)
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
                argv[0],
                list(argv),
                dict(os.environ if env is None else env),
                file_actions=actions,
                setpgroup=0,
                setsigmask=(),
                setsigdef=_DEFAULTED,
            )
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
