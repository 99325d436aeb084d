"""`python -m atoll.files.agent <fd>`: the process that agents are forked from, and the agents.

The parent answers each packet of its control socket with the pidfd of a fork. An agent gets the socket that it listens
on and a container's root, and of a running one its user namespace. It serves one connection and dies with its parent,
which ends with the daemon. The root of a container that does not run is mounted by a fork in a mount namespace of its
own, which ends at once: the answer is a descriptor of it, and the mount lives as long as copies of that do.
"""

from __future__ import annotations

import array
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from atoll import errors
from atoll.files import wire
from atoll.files.answering import Answering
from atoll.files.root import Ids, Root
from atoll.linux import mounts, syscalls

CONNECT_WITHIN_S = 10.0
MAX_PACKET_BYTES = 64 << 10
MAX_MEMORY_BYTES = 1 << 30
_INT_BYTES = array.array("i").itemsize


class Mounted(msgspec.Struct, frozen=True, kw_only=True):
    """One mount of a container that does not run: as mount(2) is asked, at the folder `at`."""

    type: str
    source: str
    at: str
    options: tuple[str, ...] = ()


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """An agent to be. With it come the listening socket, the root, and perhaps the user namespace to be in.

    With `mounted` nothing comes, and the answer is a descriptor of what is then mounted. `owner` is whose new files
    are, as named inside; the `uids` and `gids` say how the container's are called here.
    """

    number: int
    owner: tuple[int, int] = (0, 0)
    mounted: tuple[Mounted, ...] = ()
    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """Comes with the pidfd of the agent, or the root; without a descriptor and with a text where there is none."""

    number: int
    error: str = ""


def send(control: socket.socket, packet: bytes, fds: list[int]) -> None:
    """Send one packet; raises `OSError`."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    control.sendmsg([packet], rights)


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors, which are the caller's; an empty packet is the end."""
    packet, rights, _, _ = control.recvmsg(MAX_PACKET_BYTES, socket.CMSG_SPACE(4 * _INT_BYTES), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return packet, fds.tolist()


def main() -> None:
    """Serve the control socket until it ends."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    syscalls.set_name("atoll-files")
    gc.collect()
    gc.disable()
    gc.freeze()
    while True:
        packet, fds = receive(control)
        if not packet:
            return
        try:
            _answer(control, msgspec.json.decode(packet, type=Start), fds)
        finally:
            for fd in fds:
                os.close(fd)


def _answer(control: socket.socket, start: Start, fds: list[int]) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        send(control, msgspec.json.encode(Started(number=start.number, error=str(error))), [])
        return
    if pid == 0:
        code = 1
        try:
            if start.mounted:
                code = mount(start, control)
            else:
                control.close()
                code = live(start, fds, parent)
        finally:
            os._exit(code)
    if start.mounted:
        return  # the fork answers itself
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        send(control, msgspec.json.encode(Started(number=start.number, error="it ended at once")), [])
        return
    try:
        send(control, msgspec.json.encode(Started(number=start.number)), [pidfd])
    finally:
        os.close(pidfd)


def live(start: Start, fds: list[int], parent: int) -> int:
    """Be an agent; the exit code."""
    syscalls.set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    _limit()
    with socket.socket(fileno=fds[0]) as listener:
        listener.settimeout(CONNECT_WITHIN_S)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            return 1
    connection.settimeout(None)
    channel = wire.Channel(connection)
    return _serve(channel, lambda: _enter(start, fds[1:]))


def _serve(channel: wire.Channel, enter: Callable[[], Root]) -> int:
    answering = Answering(channel)
    try:
        try:
            answering.answer(enter())
        except errors.AtollError as error:
            answering.refuse(error)
        except MemoryError:
            answering.refuse(errors.ResourceExhausted(f"files: needs more than {MAX_MEMORY_BYTES} bytes of memory"))
    except OSError:  # the client has gone
        return 1
    finally:
        channel.close()
    return 0


def _limit() -> None:
    os.umask(0)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _enter(start: Start, fds: list[int]) -> Root:
    try:
        if len(fds) > 1:
            # As the container's root, who may do there what it may; a process of one thread may enter (setns(2)).
            syscalls.setns(fds[1], syscalls.CLONE_NEWUSER)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            syscalls.set_death_signal(signal.SIGKILL)  # credentials that change clear it (prctl(2))
        return Root(fds[0], owner=start.owner, ids=Ids(start.uids, start.gids))
    except OSError as error:
        raise errors.FailedPrecondition(f"files: the container's root cannot be entered: {error}") from error


def mount(start: Start, control: socket.socket) -> int:
    """Mount a root where nobody else sees it, and answer with a descriptor of it; the exit code."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
        for one in start.mounted:
            mounts.mount(one.type, one.source, Path(one.at), one.options)
        fd = os.open(start.mounted[0].at, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        send(control, msgspec.json.encode(Started(number=start.number, error=str(error))), [])
        return 1
    send(control, msgspec.json.encode(Started(number=start.number)), [fd])
    return 0


if __name__ == "__main__":
    main()
