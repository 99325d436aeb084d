"""A socket that somebody else listens on for us, so that callers wait while no daemon runs: systemd's atoll.socket.

gRPC cannot serve a socket that it did not make. So ours takes the other's place in the file system while we serve:

    <socket>         ours
    <socket>.held    the one that was handed to us (sd_listen_fds(3)); it goes back to <socket> when we end

Who connected before ours was there waits in the backlog of the other. It is told that nothing was done for it and to
connect again (GOAWAY of HTTP/2, RFC 9113 section 6.8), which clients of gRPC do without failing a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from atoll import errors, rpc
from atoll.concurrency import TaskOwner

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
FAREWELL = bytes.fromhex("000000 04 00 00000000000008 07 00 0000000000000000 00000000")
"""Empty SETTINGS, which come first; then GOAWAY of stream 0: the last stream served is 0, NO_ERROR."""
DRAIN_S = 0.2
"""Between `put_back` and the end of the server: it accepts what has connected to its own socket until then."""
PAUSE_S = 1.0
LINGER_S = 5.0
"""How long a client may take to hang up."""

log = logging.getLogger(__name__)


class Handed:
    """A listening socket of somebody else's at the path that we are to serve."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self.path = path
        self.held = path.with_name(f"{path.name}.held")
        self._listener = listener
        self._turning: asyncio.Task[None] | None = None

    def put_aside(self) -> None:
        """Keep it under its other name, so that ours may replace it. Raises `FailedPrecondition`."""
        try:
            if _is_live(self.path):
                self.held.unlink(missing_ok=True)
                os.link(self.path, self.held)
            elif not _is_live(self.held):  # a daemon that was killed left its own in front of it
                raise errors.FailedPrecondition(f"socket {self.path}: does not lead to the one that was handed over")
        except OSError as error:
            raise errors.FailedPrecondition(f"socket {self.held}: cannot be made: {error.strerror}") from error

    def turn_away(self, tasks: TaskOwner) -> None:
        """From now on send whoever waits there to our socket, which must be in place."""
        self._turning = tasks.spawn(self._turn_away(tasks), name="activation")

    async def _turn_away(self, tasks: TaskOwner) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors or memory: they wait on
                log.warning("socket %s: cannot be accepted from: %s", self.held, error)
                await asyncio.sleep(PAUSE_S)
            else:
                tasks.spawn(_farewell(connection), name="activation/turn away")

    def put_back(self, bound: rpc.FileId) -> None:
        """Let who connects from now on wait for the next daemon, where `bound` is still at the path. Idempotent."""
        if self._turning is not None:
            self._turning.cancel()
        with contextlib.suppress(FileNotFoundError):
            if rpc.file_id(self.path) == bound:
                os.rename(self.held, self.path)
        self._listener.close()


def take(environ: MutableMapping[str, str], path: Path) -> Handed | None:
    """The socket that was handed to this process, if one was; the variables that tell of it are taken away.

    Raises `FailedPrecondition` for anything but one socket that listens at `path`.
    """
    told = {name: environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if told["PID"] != str(os.getpid()) or told["FDS"] in ("", "0"):
        return None
    if told["FDS"] != "1":
        raise errors.FailedPrecondition(f"LISTEN_FDS is {told['FDS'][:20]}: hand over one socket, at {path}")
    try:
        listener = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise errors.FailedPrecondition(f"LISTEN_FDS: descriptor {FIRST_FD} is no socket: {error.strerror}") from error
    listener.set_inheritable(False)
    is_stream = (listener.family, listener.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise errors.FailedPrecondition(f"LISTEN_FDS: descriptor {FIRST_FD} is no unix stream socket that listens")
    if listener.getsockname() != str(path):
        raise errors.FailedPrecondition(
            f"LISTEN_FDS: the socket listens at {listener.getsockname()!r}, not at {path}; make ListenStream= the same "
            "as `socket` of the configuration"
        )
    listener.setblocking(False)
    return Handed(listener, path)


def _is_live(path: Path) -> bool:
    """Whether somebody listens there; the kernel answers, at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True  # its queue is full
    return True


async def _farewell(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError, TimeoutError):
        connection.setblocking(False)
        async with asyncio.timeout(LINGER_S):
            await loop.sock_sendall(connection, FAREWELL)
            # gRPC's C core tries a call again on the connection that said GOAWAY, for ever, until that also ends.
            connection.shutdown(socket.SHUT_WR)
            # What it asked by now is read and dropped: closing before would tell it of an error.
            while await loop.sock_recv(connection, 1 << 16):
                pass
