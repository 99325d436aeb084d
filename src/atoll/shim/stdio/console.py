"""A terminal's master, received from the OCI runtime.

The runtime makes the pty inside the container and sends its master over a unix socket given by path
(`--console-socket`; runc docs/terminals.md), as SCM_RIGHTS.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import struct
import tempfile
import termios
from pathlib import Path

from atoll import errors
from atoll.shim.stdio.readiness import readable

CONSOLE_TIMEOUT_S = 10.0
# Room for any path of ours within the 107 bytes of a socket's name.
SOCKET_FOLDER = Path("/run")
_MAX_FDS = 4


class ConsoleSocket:
    """Listens where the runtime delivers one terminal; owns the socket and its folder."""

    def __init__(self, folder: Path = SOCKET_FOLDER) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="atoll-pty-", dir=folder))
        self.path = self._folder / "s"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(str(self.path))
            self._listener.listen(1)
        except OSError as error:
            self.close()
            raise errors.FailedPrecondition(f"console socket {self.path}: {error.strerror}") from error

    async def receive(self, timeout_s: float = CONSOLE_TIMEOUT_S) -> int:
        """The master's descriptor, which the caller owns; `DeadlineExceeded` where the runtime sends none."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                connection, _ = await loop.sock_accept(self._listener)
                with connection:
                    await readable(connection.fileno())
                    return _take_master(connection)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"the runtime sent no terminal within {timeout_s:g} s") from None

    def close(self) -> None:
        """Remove the socket and its folder; idempotent."""
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _take_master(connection: socket.socket) -> int:
    space = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    # MSG_CMSG_CLOEXEC: no program started meanwhile may inherit the terminal.
    _, control, _, _ = connection.recvmsg(4096, space, socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    if len(received) == 1 and os.isatty(received[0]):
        return received[0]
    for fd in received:
        os.close(fd)
    raise errors.Internal(f"the runtime sent {len(received)} descriptors where one terminal was due")


def set_window_size(fd: int, width: int, height: int) -> None:
    """Give the terminal `width` columns and `height` rows; a size of 0 is ignored."""
    if not (0 < width < 1 << 16 and 0 < height < 1 << 16):
        return
    with contextlib.suppress(OSError):  # the terminal hung up: nobody looks at its size
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
