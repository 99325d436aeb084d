"""What the daemon asks of the zygote and what it is answered: one JSON message a packet.

The socket is a unix SOCK_SEQPACKET, so a packet is a message. The answer to a fork carries the
pidfd of the shim's process (SCM_RIGHTS). `number` pairs answers with questions; roles that the zygote does not know are
refused.
"""

from __future__ import annotations

import array
import socket

import msgspec

MAX_MESSAGE_BYTES = 64 << 10
ZYGOTE_FD = 3
# Beside containerd's services on every shim's socket: `End(Empty)`, see `atoll.shim.own`.
HOST_SERVICE = "atoll.host.v1.Host"


class RuntimeChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The OCI runtime a shim drives; empty values mean the shim's defaults.

    `binary` is a name or a path, `root` the folder of its state, `systemd_cgroup` the cgroup driver.
    """

    binary: str = ""
    root: str = ""
    systemd_cgroup: bool = False


class ShimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One shim to be: its sandbox or first container, its bundle, the path its unix socket is bound to.

    `ttrpc_address` is where task events go; empty sends none.
    """

    id: str
    namespace: str
    bundle: str
    socket: str
    debug: bool = False
    ttrpc_address: str = ""
    runtime: RuntimeChoice = RuntimeChoice()


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag="fork"):
    number: int
    role: str = "shim"
    shim: ShimRequest


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked"):
    """The shim listens; `start_ticks` is field 22 of its process's /proc/<pid>/stat.

    `alone`: the process serves no other shim, now or later.
    """

    number: int
    pid: int
    start_ticks: int
    alone: bool


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Nothing was forked and nothing is left behind; `code` is a status code of `atoll.errors`."""

    number: int
    code: int
    message: str


Answer = Forked | Refused


def send(control: socket.socket, packet: bytes, fd: int | None = None) -> None:
    """Send one packet, with a copy of `fd`; raises `OSError`."""
    rights = []
    if fd is not None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    control.sendmsg([packet], rights)


def receive(control: socket.socket) -> tuple[bytes, int | None]:
    """The next packet and the descriptor that came with it, which is the caller's; an empty packet is the end.

    Raises `OSError`. (`socket.recv_fds` of Python 3.11 forgets its flags, so its descriptors survive exec.)
    """
    size = array.array("i").itemsize
    packet, rights, _, _ = control.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_LEN(size), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % size])
    return packet, fds[0] if fds else None
