"""How a ttrpc peer is named, reached and bound, and who a peer is.

unix:///path    a socket in the file system
/path           the same; where no such file is, the abstract socket of that name (old shims print those)
@name, name     an abstract socket
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from atoll import errors

UNIX_SCHEME = "unix://"
# Kernel's sockaddr_un: 108 bytes, of which one ends a path or begins an abstract name.
MAX_NAME_BYTES = 107
FULL_BACKLOG_PAUSE_S = 0.005
LISTEN_BACKLOG = 128
NOBODY_LISTENS = frozenset({errno.ENOENT, errno.ECONNREFUSED})
_UCRED = struct.Struct("3i")


class PeerCredentials(NamedTuple):
    """Who connected, as the kernel recorded it at connect time (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """The credentials of the process at the other end of a unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return PeerCredentials(*_UCRED.unpack(raw))


def socket_names(address: str) -> list[str]:
    """The socket names `address` may stand for, the likeliest first; a leading NUL means abstract.

    Raises `InvalidArgument` for an address that cannot name a unix socket.
    """
    if address.startswith(UNIX_SCHEME):
        rest = address.removeprefix(UNIX_SCHEME)
        names = ["\0" + rest[1:]] if rest.startswith("@") else [rest]
    elif "://" in address:
        raise errors.InvalidArgument(f"address {address!r}: only unix sockets are supported")
    elif address.startswith("/"):
        names = [address, "\0" + address]
    else:
        names = ["\0" + address.removeprefix("@")]
    for name in names:
        if name in ("", "\0") or "\0" in name[1:]:
            raise errors.InvalidArgument(f"address {address!r} names no socket")
    usable = [name for name in names if len(os.fsencode(name)) <= MAX_NAME_BYTES]
    if not usable:
        raise errors.InvalidArgument(f"address {address!r} is longer than the {MAX_NAME_BYTES} bytes of a unix socket")
    return usable


async def connect(address: str, *, timeout_s: float) -> socket.socket:
    """A connected non-blocking socket; the caller closes it.

    A peer that is not there, and only that, is told at once: `Unavailable`; one that refuses this user:
    `PermissionDenied`; a lack on this side, such as of descriptors: `ResourceExhausted`. Only a full backlog is
    waited for, at most `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _connect_first(address)
    except TimeoutError:
        raise errors.DeadlineExceeded(f"{address}: not connected within {timeout_s:g} s, its backlog is full") from None


async def _connect_first(address: str) -> socket.socket:
    first: OSError | None = None
    for name in socket_names(address):
        try:
            return await _connect_one(name)
        except OSError as error:
            if error.errno not in NOBODY_LISTENS:
                first = error
                break
            first = first or error
            if error.errno != errno.ENOENT:
                break
    if isinstance(first, PermissionError):
        raise errors.PermissionDenied(f"{address}: cannot connect: {first.strerror}") from first
    if first is not None and first.errno not in NOBODY_LISTENS:
        # Says nothing about the peer, which a caller must not take for dead.
        raise errors.ResourceExhausted(f"{address}: cannot be asked now: {first.strerror}") from first
    reason = first.strerror if first is not None else "no name"
    raise errors.Unavailable(f"{address}: cannot connect: {reason}") from first


async def _connect_one(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        pause_s = FULL_BACKLOG_PAUSE_S
        while True:
            try:
                connection.connect(name)
            except BlockingIOError:
                # A full backlog of a unix socket is EAGAIN, and no event tells when there is room.
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.1)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


def bind(path: Path) -> socket.socket:
    """A bound socket of mode 0600 at `path`; a dead socket there is replaced, a live one raises `AlreadyExists`.

    Nobody can connect before it listens, so the mode is set in time. The caller closes it and removes the path.
    """
    names = socket_names(UNIX_SCHEME + str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            listener.bind(names[0])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_dead(path)
            listener.bind(names[0])
        path.chmod(0o600)
    except BaseException:
        listener.close()
        raise
    return listener


def inode(path: Path) -> int:
    """The inode of `path`: whether it is still the socket that was bound there."""
    return path.lstat().st_ino


def _remove_dead(path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise errors.AlreadyExists(f"{path}: there is a file which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except BlockingIOError:
            pass
    raise errors.AlreadyExists(f"{path}: another process listens there")
