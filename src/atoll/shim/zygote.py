"""`python -m atoll.shim.zygote <fd>`: the process that shims are forked from.

Everything a shim needs is imported and exercised here once, so a fork has it in shared pages. One spare shim
is always forked ahead of its request. The zygote has one thread and no event loop, holds nothing but its control
socket, and ends when that socket does: the daemon is gone then, and the shims live on.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys

import msgspec

from atoll import errors
from atoll.linux import syscalls
from atoll.shim import server
from atoll.shim.fork import Child, Part, Spare, fork_shim
from atoll.shim.request import ZYGOTE_FD, Answer, Fork, Forked, Refused, receive, send
from atoll.shim.stdio import relay

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
    part = prepare()
    freeze()
    Zygote(control, part).serve()


def prepare() -> Part:
    """Exercise everything once; what a fork does then."""
    server.rehearse()
    return Shims(server.prepare())


class Shims:
    """The part of a forked process: first ready, then a shim or a relay."""

    def __init__(self, prepared: server.Prepared) -> None:
        self._prepared = prepared

    def get_ready(self) -> None:
        server.settle()
        self._prepared.loop = asyncio.new_event_loop()
        server.warm(self._prepared)

    def play(self, question: Fork, listener: socket.socket) -> int:
        asked = question.shim
        if question.role == "relay":
            server.attend(asked, "atoll-relay")
            server.write_records(asked)
            return relay.run(relay.RelayConfig(id=asked.id, socket=asked.socket, namespace=asked.namespace), listener)
        return server.run(asked, listener, self._prepared)


def freeze() -> None:
    """Make what lives now invisible to the collector, so that a fork does not copy it by looking at it."""
    gc.collect()
    gc.disable()
    gc.freeze()


class Zygote:
    """Answers the packets of the control socket, one after the other."""

    def __init__(self, control: socket.socket, part: Part) -> None:
        self._control = control
        self._part = part
        self._spare: Spare | None = None
        self._decoder = msgspec.json.Decoder(Fork)

    def serve(self) -> None:
        """Return at the end of the socket; the spare ends too."""
        try:
            self._refill()
            while packet := receive(self._control)[0]:
                self._serve(packet)
                self._refill()
        except (ConnectionResetError, BrokenPipeError):
            pass
        finally:
            if self._spare is not None:
                self._spare.close()

    def _refill(self) -> None:
        if self._spare is None:
            try:
                self._spare = Spare.fork(self._part, self._control)
            except OSError as error:  # no memory, no pids: the next request says so
                sys.stderr.write(f"atoll-zygote: cannot fork a spare: {error}\n")

    def _serve(self, packet: bytes) -> None:
        number, child = 0, None
        try:
            question = self._decoder.decode(packet)
            number = question.number
            child = self._fork(question)
            answer: Answer = Forked(number=number, pid=child.pid, start_ticks=child.start_ticks)
        except msgspec.MsgspecError as error:
            answer = Refused(number=number, code=errors.InvalidArgument.code, message=f"bad request: {error}")
        except errors.AtollError as error:
            answer = Refused(number=number, code=error.code, message=str(error))
        except OSError as error:
            answer = Refused(number=number, code=errors.Internal.code, message=f"cannot fork a shim: {error}")
        try:
            self._send(answer, child)
        finally:
            if child is not None:
                os.close(child.pidfd)

    def _fork(self, question: Fork) -> Child:
        if question.role not in ROLES:
            raise errors.Unimplemented(f"the zygote knows no role {question.role!r}")
        spare = self._spare
        if spare is not None:
            try:
                child = spare.hand_over(question)
            except BrokenPipeError:  # somebody killed it
                self._spare = None
                spare.close()
            else:
                self._spare = None
                return child
        return fork_shim(question, self._part, self._control)

    def _send(self, answer: Answer, child: Child | None) -> None:
        send(self._control, msgspec.json.encode(answer), None if child is None else child.pidfd)


if __name__ == "__main__":
    main()
