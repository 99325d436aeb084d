"""The daemon's end of the agents: their parent is started at the first need, and again where it died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys

import msgspec

from atoll import errors
from atoll.concurrency import Blocking
from atoll.files.agent import Start, Started, receive, send

FORK_TIMEOUT_S = 10.0
REAP_TIMEOUT_S = 2.0


class Agents:
    """Forks agents on request; closing it ends them all."""

    def __init__(self, blocking: Blocking) -> None:
        self._blocking = blocking
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._number = 0

    def next_number(self) -> int:
        """A number that no other agent of this daemon has."""
        self._number += 1
        return self._number

    async def start(self, start: Start, fds: list[int]) -> int:
        """Fork an agent, which gets copies of `fds`: its pidfd, or a root that was mounted, which is the caller's.

        Raises `Unavailable` where none can be made, `DeadlineExceeded` after `FORK_TIMEOUT_S`.
        """
        control = self._control or self._launch()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked[start.number] = answer
        try:
            send(control, msgspec.json.encode(start), fds)
            async with asyncio.timeout(FORK_TIMEOUT_S):
                return await answer
        except TimeoutError:
            self._lose()
            raise errors.DeadlineExceeded(f"files: no process was forked within {FORK_TIMEOUT_S:g} s") from None
        except OSError as error:
            self._lose()
            raise errors.Unavailable(f"files: their process ended: {error}; try again") from error
        finally:
            self._asked.pop(start.number, None)

    def _launch(self) -> socket.socket:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "atoll.files.agent", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                )
            except OSError as error:
                ours.close()
                raise errors.Unavailable(f"files: their process cannot be started: {error}") from error
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        return ours

    def _readable(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            packet, fds = receive(control)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            self._lose()
            return
        answer = msgspec.json.decode(packet, type=Started)
        future = self._asked.get(answer.number)
        if future is not None and not future.done():
            if fds:
                future.set_result(fds.pop())
            else:
                future.set_exception(errors.Unavailable(f"files: no process could be forked: {answer.error}"))
        for fd in fds:
            os.close(fd)

    def _lose(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(errors.Unavailable("files: their process ended; try again"))

    async def aclose(self) -> None:
        """End the parent, and so every agent. Idempotent."""
        child, self._child = self._child, None
        self._lose()
        if child is None:
            return
        try:
            await self._blocking.run(child.wait, REAP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def kill(pidfd: int) -> None:
    """End an agent; fine where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


async def ended(pidfd: int) -> None:
    """Wait until the process has ended."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(pidfd)
