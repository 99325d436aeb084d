"""How a shim process comes to be: by a fork now, or by a spare that was forked before it was needed.

A fork and the first use of its memory cost some milliseconds (each page is copied when it is first written to). A
`Spare` has both behind it: it waits, ready, for its request and its listening socket. One that never
gets a request ends with its parent.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import msgspec

from atoll import errors
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.shim import server
from atoll.shim.request import Fork, ShimRequest, receive, send
from atoll.ttrpc import address as addresses


class Part(Protocol):
    """What a new process does."""

    def get_ready(self) -> None:
        """Do whatever can be done before the request is known."""
        ...

    def play(self, question: Fork, listener: socket.socket) -> int:
        """Be what the request asks for; the exit code."""
        ...


_decoder = msgspec.json.Decoder(Fork)


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
    """Listen for a shim and fork it; whatever fails leaves nothing behind."""
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


@dataclass(frozen=True, slots=True)
class Spare:
    """A process that waits for its request."""

    child: Child
    control: socket.socket

    @classmethod
    def fork(cls, part: Part, *not_its_own: socket.socket) -> Spare:
        """Fork one; it gets ready by itself. Raises `OSError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            return cls(_fork(lambda: _wait(theirs, part, (ours, *not_its_own))), ours)

    def hand_over(self, question: Fork) -> Child:
        """Listen for a shim, and let this process be it. Errors as `fork_shim`; then the spare is still one.

        Raises `BrokenPipeError` where the process has died.
        """
        with listen(question.shim) as listener:
            try:
                send(self.control, msgspec.json.encode(question), listener.fileno())
            except OSError:
                os.unlink(question.shim.socket)
                raise
        self.control.close()
        return self.child

    def close(self) -> None:
        """Let it end."""
        self.control.close()
        os.close(self.child.pidfd)


def _wait(control: socket.socket, part: Part, not_its_own: tuple[socket.socket, ...]) -> int:
    for other in not_its_own:
        other.close()
    syscalls.set_name("atoll-spare")
    part.get_ready()
    packet, listener = receive(control)
    control.close()
    if not packet or listener is None:
        return 0
    return part.play(_decoder.decode(packet), socket.socket(fileno=listener))
