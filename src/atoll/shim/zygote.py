"""`python -m atoll.shim.zygote <fd> <shims>`: the process that the processes of shims are forked from.

Everything a shim needs is imported and exercised here once, so a fork has it in shared pages. A process serves up
to `shims` shims, and one with room is always there ahead of its request. The zygote has one thread and no event loop,
holds nothing but its control sockets, and ends when the daemon's end of its own does: the daemon is gone then, and the
shims live on.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Iterator

import msgspec

from atoll import errors, faults
from atoll.linux import syscalls
from atoll.oci.runtime import ENVIRONMENT
from atoll.shim import host, logfile, server
from atoll.shim.copies import PROGRAMS, Copies
from atoll.shim.fork import Child, HostProcess, Part, fork_shim, listen
from atoll.shim.request import ZYGOTE_FD, Answer, Fork, Forked, Refused, ShimRequest, receive, send
from atoll.shim.stdio import relay
from atoll.unreadable import UNREADABLE

ROLES = ("shim", "relay")
# mallopt(3): one arena, so that a shim's allocations stay in few pages.
_M_ARENA_MAX = -8


def main() -> None:
    """Serve the control socket until it ends."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else ZYGOTE_FD
    control = socket.socket(fileno=number)
    control.set_inheritable(False)
    # A dead shim is reaped by the kernel; its pidfd, which the daemon holds, still tells its end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    syscalls.set_name("atoll-zygote")
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    shims = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    part = prepare()
    freeze()
    Zygote(control, part, shims).serve()


def prepare() -> Part:
    """Exercise everything once; what a fork does then."""
    server.rehearse()
    return Shims()


class Shims:
    """The part of a forked process: first ready, then one shim or many, or a relay."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._copies = Copies()
        for name in PROGRAMS:
            if (found := shutil.which(name, path=ENVIRONMENT["PATH"])) is not None:
                self._copies.path(found)

    def get_ready(self) -> None:
        host.settle()
        self._loop = asyncio.new_event_loop()
        server.warm(self._loop)

    def play(self, question: Fork, listener: socket.socket) -> int:
        assert self._loop is not None
        asked = question.shim
        if question.role == "relay":
            _attend(asked)
            return relay.run(relay.RelayConfig(id=asked.id, socket=asked.socket, namespace=asked.namespace), listener)
        return host.Host(self._loop, alone=True, copies=self._copies).run_one(asked, listener)

    def host(self, control: socket.socket, *, alone: bool) -> int:
        assert self._loop is not None
        return host.Host(self._loop, alone=alone, copies=self._copies).run(control)


def _attend(request: ShimRequest) -> None:
    """Be known in the bundle as its relay, with a log instead of the parent's streams."""
    os.chdir(request.bundle)
    syscalls.set_name("atoll-relay")
    log_fd = logfile.configure(request.bundle, request.id, debug=request.debug)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, source in ((0, null), (1, null), (2, log_fd)):
        os.dup2(source, number)
    os.close(null)
    server.write_records(request, alone=True)


def freeze() -> None:
    """Make what lives now invisible to the collector, so that a fork does not copy it by looking at it."""
    gc.collect()
    gc.disable()
    gc.freeze()


class Zygote:
    """Answers the packets of the control socket, one after the other.

    A shim is handed to the fullest process that has room, so that few are needed; each serves up to `shims`. One that
    hangs is passed over for as long as it does.
    """

    def __init__(self, control: socket.socket, part: Part, shims: int) -> None:
        self._control = control
        self._part = part
        self._shims = shims
        self._hosts: dict[int, HostProcess] = {}
        self._poll = select.poll()
        self._decoder = msgspec.json.Decoder(Fork)

    def serve(self) -> None:
        """Return at the end of the socket; the processes end with their last shims."""
        self._poll.register(self._control, select.POLLIN)
        try:
            self._refill()
            while self._serve_once():
                self._refill()
        except (ConnectionResetError, BrokenPipeError):
            pass
        finally:
            for process in self._hosts.values():
                process.close()

    def _serve_once(self) -> bool:
        for fd, _ in self._poll.poll():
            if fd != self._control.fileno():
                process = self._hosts.get(fd)
                if process is not None and not process.hear():
                    self._drop(process)
            elif packet := receive(self._control)[0]:
                self._serve(packet)
            else:
                return False
        return True

    def _refill(self) -> None:
        """Keep one process ahead of its need, and none idle beyond that."""
        ahead = max(1, self._shims // 8)
        for process in list(self._hosts.values()):
            others = sum(other.room for other in self._hosts.values() if other is not process)
            if process.is_used_up or (not process.live and others > ahead):
                self._drop(process)
        room = sum(process.room for process in self._hosts.values())
        if room >= ahead:
            return
        try:
            process = HostProcess.fork(self._part, self._shims, self._control, *self._controls())
        except OSError as error:  # no memory, no pids: the next request says so
            sys.stderr.write(f"atoll-zygote: cannot fork a process for shims: {error}\n")
        else:
            self._keep(process)

    def _keep(self, process: HostProcess) -> None:
        self._hosts[process.control.fileno()] = process
        self._poll.register(process.control, select.POLLIN)

    def _drop(self, process: HostProcess) -> None:
        del self._hosts[process.control.fileno()]
        self._poll.unregister(process.control)
        process.close()

    def _controls(self) -> Iterator[socket.socket]:
        return (process.control for process in self._hosts.values())

    def _serve(self, packet: bytes) -> None:
        number, child = 0, None
        try:
            question = self._decoder.decode(packet)
            number = question.number
            faults.reached("zygote/fork")
            child, alone = self._fork(question)
            faults.reached("zygote/fork:done", fails=False)
            answer: Answer = Forked(number=number, pid=child.pid, start_ticks=child.start_ticks, alone=alone)
        except UNREADABLE as error:
            answer = Refused(number=number, code=errors.InvalidArgument.code, message=f"bad request: {error}")
        except errors.AtollError as error:
            answer = Refused(number=number, code=error.code, message=str(error))
        except OSError as error:
            answer = Refused(number=number, code=errors.Internal.code, message=f"cannot fork a shim: {error}")
        try:
            send(self._control, msgspec.json.encode(answer), None if child is None else child.pidfd)
        finally:
            if child is not None:
                os.close(child.pidfd)

    def _fork(self, question: Fork) -> tuple[Child, bool]:
        if question.role not in ROLES:
            raise errors.Unimplemented(f"the zygote knows no role {question.role!r}")
        if question.role == "relay":
            return fork_shim(question, self._part, self._control, *self._controls()), True
        with listen(question.shim) as listener:
            try:
                child = self._hand_over(question, listener).child
            except BaseException:
                os.unlink(question.shim.socket)
                raise
        return Child(child.pid, os.dup(child.pidfd), child.start_ticks), self._shims == 1

    def _hand_over(self, question: Fork, listener: socket.socket) -> HostProcess:
        for process in sorted(self._hosts.values(), key=lambda process: process.live, reverse=True):
            if process.room and not process.hangs:
                try:
                    process.hand_over(question, listener)
                except OSError:  # somebody killed it, or it hangs
                    self._drop(process)
                else:
                    return process
        process = HostProcess.fork(self._part, self._shims, self._control, listener, *self._controls())
        self._keep(process)
        process.hand_over(question, listener)
        return process


if __name__ == "__main__":
    main()
