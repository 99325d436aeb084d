"""`python -m atoll.shim.zygote <fd>`: the process that shims are forked from.

Everything a shim needs is imported and exercised here once, so a fork has it in shared pages. The zygote has one
thread and no event loop, holds nothing but its control socket, and ends when that socket does: the
daemon is gone then, and the shims live on.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

import msgspec

from atoll import errors
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.shim import server
from atoll.shim.request import MAX_MESSAGE_BYTES, ZYGOTE_FD, Answer, Fork, Forked, Refused, ShimRequest
from atoll.shim.server import Prepared
from atoll.shim.stdio import relay
from atoll.ttrpc import address as addresses

Role: TypeAlias = Callable[[ShimRequest, socket.socket], int]

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
    server.rehearse()
    prepared = server.prepare()
    freeze()
    serve(control, prepared)


def freeze() -> None:
    """Make what lives now invisible to the collector, so that a fork does not copy it by looking at it."""
    gc.collect()
    gc.disable()
    gc.freeze()


def serve(control: socket.socket, prepared: Prepared) -> None:
    """Answer one packet after the other; returns at the end of the socket."""
    decoder = msgspec.json.Decoder(Fork)
    while True:
        try:
            packet = control.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            return
        if not packet:
            return
        try:
            question = decoder.decode(packet)
        except msgspec.MsgspecError as error:
            answer, pidfd = Refused(number=0, code=errors.InvalidArgument.code, message=f"bad request: {error}"), None
        else:
            answer, pidfd = _answer(control, question, prepared)
        try:
            _send(control, answer, pidfd)
        except OSError:
            return
        finally:
            if pidfd is not None:
                os.close(pidfd)


def _send(control: socket.socket, answer: Answer, pidfd: int | None) -> None:
    rights = []
    if pidfd is not None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
    control.sendmsg([msgspec.json.encode(answer)], rights)


def _answer(control: socket.socket, question: Fork, prepared: Prepared) -> tuple[Answer, int | None]:
    try:
        pid, pidfd, start_ticks = fork_shim(question.shim, _role(question.role, prepared), control)
    except errors.AtollError as error:
        return Refused(number=question.number, code=error.code, message=str(error)), None
    except OSError as error:
        return Refused(number=question.number, code=errors.Internal.code, message=f"cannot fork a shim: {error}"), None
    return Forked(number=question.number, pid=pid, start_ticks=start_ticks), pidfd


def _role(name: str, prepared: Prepared) -> Role:
    match name:
        case "shim":
            return lambda request, listener: server.run(request, listener, prepared)
        case "relay":
            return _run_relay
        case _:
            raise errors.Unimplemented(f"the zygote knows no role {name!r}")


def _run_relay(request: ShimRequest, listener: socket.socket) -> int:
    server.detach(request, "atoll-relay")
    server.write_records(request)
    return relay.run(relay.RelayConfig(id=request.id, socket=request.socket, namespace=request.namespace), listener)


def fork_shim(request: ShimRequest, role: Role, *not_its_own: socket.socket) -> tuple[int, int, int]:
    """Bind and listen for the shim, fork it: its pid, a pidfd and its start time.

    When this returns, a connect succeeds: it waits in the backlog. Whatever fails leaves nothing behind.
    """
    path = Path(request.socket)
    listener = addresses.bind(path)
    try:
        listener.listen(addresses.LISTEN_BACKLOG)
        pid = os.fork()
    except BaseException:
        listener.close()
        path.unlink(missing_ok=True)
        raise
    if pid == 0:
        _become(role, request, listener, not_its_own)
    listener.close()
    try:
        pidfd = os.pidfd_open(pid)
        seen = processes.stat(pid)
    except ProcessLookupError:
        seen, pidfd = None, -1
    if seen is None:
        if pidfd >= 0:
            os.close(pidfd)
        path.unlink(missing_ok=True)
        raise errors.Internal(f"shim {request.id}: ended at once; see the log in {request.bundle}")
    return pid, pidfd, seen.start_ticks


def _become(
    role: Role, request: ShimRequest, listener: socket.socket, not_its_own: tuple[socket.socket, ...]
) -> NoReturn:
    status = 1
    try:
        for other in not_its_own:
            other.close()
        status = role(request, listener)
    finally:
        # Never back into the zygote's loop, nor into its exit handlers.
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
