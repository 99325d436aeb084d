"""The daemon's end of the zygote, the process that our shims' processes are forked from.

One request is answered in about a millisecond, in order. A zygote that died is started again for the
next request, at most `RESTARTS_LIMIT` times in `RESTARTS_WINDOW_S`; shims never notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from atoll import errors
from atoll.concurrency import TaskOwner, run_to_completion
from atoll.linux.process import ProcessId, boot_id
from atoll.runtime import ending
from atoll.shim.request import Answer, Fork, Forked, Refused, ShimRequest, receive, send

PODS_PER_SHIM = 32
FORK_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
RESTARTS_LIMIT = 5
RESTARTS_WINDOW_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedShim:
    """A shim that listens already. The caller owns `pidfd`, which is readable once its process has ended.

    The process serves other shims too, unless it is `alone`.
    """

    pid: int
    pidfd: int
    identity: ProcessId
    alone: bool


class ZygoteEnded(errors.Unavailable):
    """It died before it answered: the shim may be there or not. The next request starts another."""


class Zygote:
    """Forks shims on request; leaving its context ends the zygote and no shim.

    The daemon itself never forks: the zygote is started with vfork and exec.
    """

    def __init__(self, pods_per_shim: int) -> None:
        """Not for callers: use `start`."""
        self._pods_per_shim = pods_per_shim
        self._tasks = TaskOwner("zygote")
        self._loop = asyncio.get_running_loop()
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asked: dict[int, asyncio.Future[ForkedShim]] = {}
        self._number = 0
        self._starts: deque[float] = deque()
        self._decoder = msgspec.json.Decoder(Answer)
        self._closed = False

    @classmethod
    async def start(cls, *, pods_per_shim: int = PODS_PER_SHIM) -> Zygote:
        """Start the process; it is ready when it answers, requests until then wait. Raises `OSError`.

        Up to `pods_per_shim` shims share a process; with 1 each has its own.
        """
        zygote = cls(pods_per_shim)
        zygote._launch()
        return zygote

    @property
    def pid(self) -> int | None:
        """The process id, where it runs."""
        return None if self._child is None else self._child.pid

    async def fork(self, request: ShimRequest, *, role: str = "shim") -> ForkedShim:
        """Fork one shim (or a `relay`); it accepts connections when this returns.

        Raises `AlreadyExists` where another process listens on its socket; `ZygoteEnded` where the zygote died under
        it, `Unavailable` where it dies again and again; `DeadlineExceeded` after `FORK_TIMEOUT_S`. The shim of a caller
        that is cancelled, or that gave up, is ended, and its socket removed; a cancelled call returns after that.
        """
        if self._closed:
            raise errors.Unavailable("zygote: is closed")
        if self._control is None:
            self._restart()
        control = self._control
        assert control is not None
        self._number += 1
        number = self._number
        answer: asyncio.Future[ForkedShim] = self._loop.create_future()
        self._asked[number] = answer
        try:
            send(control, msgspec.json.encode(Fork(number=number, role=role, shim=request)))
        except BlockingIOError:
            del self._asked[number]
            raise errors.Unavailable("zygote: its queue is full, try again") from None
        except OSError as error:
            del self._asked[number]
            self._lost()
            raise errors.Unavailable(f"zygote: ended: {error}") from error
        try:
            async with asyncio.timeout(FORK_TIMEOUT_S):
                return await asyncio.shield(answer)
        except TimeoutError:
            self._tasks.spawn(_discard(answer, request), name=f"zygote/discard/{request.id}")
            raise errors.DeadlineExceeded(f"shim {request.id}: not forked within {FORK_TIMEOUT_S:g} s") from None
        except asyncio.CancelledError:
            with contextlib.suppress(errors.DeadlineExceeded):
                await run_to_completion(_discard(answer, request), within=FORK_TIMEOUT_S)
            raise

    async def aclose(self) -> None:
        """End the zygote; its shims live on. Idempotent."""
        self._closed = True
        child, self._child = self._child, None
        self._lost()
        await self._tasks.aclose()
        if child is not None:
            await _reap(child)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "atoll.shim.zygote", str(theirs.fileno()), str(self._pods_per_shim)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                )
            except OSError:
                ours.close()
                raise
        self._control = ours
        self._loop.add_reader(ours.fileno(), self._readable)

    def _restart(self) -> None:
        now = self._loop.time()
        while self._starts and self._starts[0] < now - RESTARTS_WINDOW_S:
            self._starts.popleft()
        if len(self._starts) >= RESTARTS_LIMIT:
            raise errors.Unavailable(
                f"zygote: ended {RESTARTS_LIMIT} times within {RESTARTS_WINDOW_S:g} s; see the daemon's log"
            )
        self._starts.append(now)
        if self._child is not None:
            self._child.kill()
            log.warning("zygote %d ended (%s), starting another", self._child.pid, self._child.wait())
        self._launch()

    def _readable(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            packet, pidfd = receive(control)
        except BlockingIOError:
            return
        except OSError:
            packet, pidfd = b"", None
        if not packet:
            self._lost()
            return
        self._answered(self._decoder.decode(packet), pidfd)

    def _answered(self, answer: Answer, pidfd: int | None) -> None:
        future = self._asked.pop(answer.number, None)
        if isinstance(answer, Forked) and pidfd is not None and future is not None:
            future.set_result(_forked(answer, pidfd))
        elif isinstance(answer, Refused) and future is not None:
            future.set_exception(errors.from_status(answer.code, answer.message))
        elif pidfd is not None:
            os.close(pidfd)

    def _lost(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            self._loop.remove_reader(control.fileno())
            control.close()
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(ZygoteEnded("zygote: ended before it answered"))


def _forked(answer: Forked, pidfd: int) -> ForkedShim:
    identity = ProcessId(pid=answer.pid, start_ticks=answer.start_ticks, boot_id=boot_id())
    return ForkedShim(pid=answer.pid, pidfd=pidfd, identity=identity, alone=answer.alone)


async def _discard(answer: asyncio.Future[ForkedShim], request: ShimRequest) -> None:
    try:
        shim = await answer
    except errors.AtollError:
        return
    try:
        await ending.undo(shim.pidfd, Path(request.socket), request.id, alone=shim.alone)
    finally:
        os.close(shim.pidfd)


async def _ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


async def _reap(child: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(child.pid)  # ours, and not reaped yet: it is there
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await _ended(pidfd)
    except TimeoutError:
        child.kill()
    finally:
        os.close(pidfd)
    child.wait()
