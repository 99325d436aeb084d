"""How the processes of shims come to be: by a fork now, or by one that was forked before it was needed.

A fork and the first use of its memory cost some milliseconds (each page is copied when it is first written to). A
`HostProcess` has both behind it when it is handed its first shim: it waits, ready, for requests and their listening
sockets. It serves what it was handed to its end, whatever becomes of its parent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from atoll import errors
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.shim import server
from atoll.shim.request import Fork, ShimRequest, send
from atoll.ttrpc import address as addresses

HAND_OVER_TIMEOUT_S = 1.0
# How long a process may leave a shim that it was handed untaken and still be handed others.
TAKEN_WITHIN_S = 2.0
SHIM_TAKEN, SHIM_ENDED = b"t", b"e"
# How many shims a shared process is handed in its life, times as many as it serves at once: memory is given back then.
LIVES = 16
_NOTES_BYTES = 16


class Part(Protocol):
    """What a new process does."""

    def get_ready(self) -> None:
        """Do whatever can be done before the request is known."""
        ...

    def play(self, question: Fork, listener: socket.socket) -> int:
        """Be what the request asks for, and nothing else; the exit code."""
        ...

    def host(self, control: socket.socket, *, alone: bool) -> int:
        """Be every shim that comes over `control`, one only where `alone`; the exit code."""
        ...


@dataclass(frozen=True, slots=True)
class Child:
    """A forked process; whoever has this owns `pidfd`."""

    pid: int
    pidfd: int
    start_ticks: int


def listen(request: ShimRequest) -> socket.socket:
    """The socket of a shim to be: a connect succeeds from now on, it waits in the backlog.

    Raises `NotFound` without the bundle, `AlreadyExists` where somebody listens, `InvalidArgument`, `OSError`.
    """
    if not os.path.isdir(request.bundle):
        raise errors.NotFound(f"bundle {request.bundle}: is not there")
    listener = addresses.bind(Path(request.socket))
    listener.listen(addresses.LISTEN_BACKLOG)
    return listener


def fork_shim(question: Fork, part: Part, *not_its_own: socket.socket) -> Child:
    """Listen for a shim and fork it a process of its own; whatever fails leaves nothing behind."""
    listener = listen(question.shim)

    def work() -> int:
        for other in not_its_own:
            other.close()
        part.get_ready()
        return part.play(question, listener)

    try:
        with listener:
            return _fork(work)
    except BaseException:
        os.unlink(question.shim.socket)
        raise


def _fork(work: Callable[[], int]) -> Child:
    pid = os.fork()
    if pid == 0:
        _become(work)
    pidfd = os.pidfd_open(pid)
    try:
        seen = processes.parse_stat(server.own_stat(pid))
    except BaseException:
        os.close(pidfd)
        raise
    return Child(pid, pidfd, seen.start_ticks)


def _become(work: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        status = work()
    finally:
        # Never back into the parent's loop, nor into its exit handlers.
        sys.stderr.flush()
        os._exit(status)


class HostProcess:
    """A process for up to `shims` shims at a time, seen from its parent."""

    def __init__(self, child: Child, control: socket.socket, shims: int) -> None:
        self.child = child
        self.control = control
        self.live = 0
        self._shims = shims
        self._left = 1 if shims == 1 else LIVES * shims
        self._untaken: deque[float] = deque()

    @classmethod
    def fork(cls, part: Part, shims: int, *not_its_own: socket.socket) -> HostProcess:
        """Fork one; it gets ready by itself. Raises `OSError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)

        def work() -> int:
            for other in (ours, *not_its_own):
                other.close()
            syscalls.set_name("atoll-spare")
            part.get_ready()
            return part.host(theirs, alone=shims == 1)

        with theirs:
            return cls(_fork(work), ours, shims)

    @property
    def room(self) -> int:
        """How many more shims it takes now."""
        return min(self._shims - self.live, self._left)

    @property
    def is_used_up(self) -> bool:
        """Whether it will never be handed a shim again."""
        return self._left == 0

    @property
    def hangs(self) -> bool:
        """Whether it is stopped, or has not taken what it was handed: others are handed the next shims meanwhile."""
        if self._untaken and time.monotonic() - self._untaken[0] > TAKEN_WITHIN_S:
            return True
        try:
            return processes.parse_stat(server.own_stat(self.child.pid)).state in "Tt"
        except OSError:
            return False  # it is gone, which `hear` tells

    def hand_over(self, question: Fork, listener: socket.socket) -> None:
        """Let it be this shim too; raises `OSError` where it has died, or takes nothing for `HAND_OVER_TIMEOUT_S`."""
        self.control.settimeout(HAND_OVER_TIMEOUT_S)
        try:
            send(self.control, msgspec.json.encode(question), listener.fileno())
        finally:
            self.control.setblocking(False)
        self.live += 1
        self._left -= 1
        self._untaken.append(time.monotonic())

    def hear(self) -> bool:
        """Take note of shims taken and ended, once `control` is readable; False where the process has ended itself."""
        try:
            note = self.control.recv(_NOTES_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if note == SHIM_TAKEN:
            with contextlib.suppress(IndexError):
                self._untaken.popleft()
        else:
            self.live -= len(note)
        return bool(note)

    def close(self) -> None:
        """Let it end with its last shim."""
        self.control.close()
        os.close(self.child.pidfd)
