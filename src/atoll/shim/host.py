"""A process that serves shims: one for a pod, or many for as many pods.

A CPython process of its own costs several megabytes, because counting references writes to the pages that a
fork shares. So the pods of a node share a few of these. What a pod is made of is in its namespaces' holder, in its
containers and on disk; what is here answers for it. A shim's fault ends that shim; the end of the process is
the end of all its shims, and leaves every pod to its records.

The process ends with its last shim, once no other can come: its control socket is closed, or there was none.
SIGTERM, SIGINT and SIGHUP do not end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket

import msgspec

from atoll.concurrency import TaskOwner
from atoll.linux import syscalls
from atoll.shim import logfile, server
from atoll.shim.copies import Copies
from atoll.shim.fork import SHIM_ENDED, SHIM_TAKEN
from atoll.shim.pod_holder import Holders
from atoll.shim.reaper import Reaper
from atoll.shim.request import Fork, ShimRequest, receive
from atoll.unreadable import UNREADABLE

log = logging.getLogger(__name__)


def settle() -> None:
    """Become a session and a subreaper of its own; what a new process can do before it knows who it is."""
    os.setsid()
    os.umask(0o022)
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Handled, not ignored: programs started from here must not inherit that they are ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stay)
    syscalls.set_child_subreaper(True)


def _stay(number: int, frame: object) -> None:
    log.info("signal %d: only a Shutdown ends a shim", number)


def raise_descriptor_limit() -> tuple[int, int]:
    """Allow this process all the descriptors it may have; the limits before, which its programs are to get."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


class Host:
    """The shims of one process. `alone`: one shim is all that it ever serves. Call it in a settled process.

    `copies` are those of the process that it was forked from.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, alone: bool, copies: Copies | None = None) -> None:
        self._loop = loop
        self._alone = alone
        self._reaper = Reaper(programs_nofile=raise_descriptor_limit(), copies=copies or Copies())
        self._holders = Holders(self._reaper)
        self._tasks = TaskOwner("host")
        self._log = logfile.HostLog()
        self._control: socket.socket | None = None
        self._decoder = msgspec.json.Decoder(Fork)
        self._shims = 0
        self._over = asyncio.Event()

    def run(self, control: socket.socket) -> int:
        """Serve every shim that `control` brings; the exit code."""
        control.setblocking(False)
        self._control = control
        self._loop.add_reader(control, self._asked)
        return self._run()

    def run_one(self, request: ShimRequest, listener: socket.socket) -> int:
        """Serve this shim; the exit code."""
        self._install(request)
        self._loop.call_soon(self._begin, request, listener)
        self._shims += 1
        return self._run()

    def _run(self) -> int:
        gc.enable()
        self._loop.run_until_complete(self._serve_all())
        return 0

    async def _serve_all(self) -> None:
        self._reaper.open()
        if self._control is not None:
            self._tasks.spawn(self._holders.prepare(), name="holders")
        await self._over.wait()
        await self._tasks.aclose()
        self._holders.close()
        self._reaper.close()

    def _asked(self) -> None:
        assert self._control is not None
        try:
            packet, fd = receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            packet, fd = b"", None
        if not packet or fd is None:
            self._close_control()
            return
        with contextlib.suppress(OSError):
            self._control.send(SHIM_TAKEN)
        listener = socket.socket(fileno=fd)
        try:
            request = self._decoder.decode(packet).shim
            self._install(request)
        except (OSError, *UNREADABLE) as error:
            self._refuse(listener, error)
            return
        self._shims += 1
        self._begin(request, listener)

    def _refuse(self, listener: socket.socket, error: Exception) -> None:
        # The zygote has told the daemon that it listens: who connects is to see that nobody does.
        with listener:
            path = str(listener.getsockname())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        log.error("%s: cannot be served: %s", path, error)
        self._ended()

    def _install(self, request: ShimRequest) -> None:
        if not self._shims:
            syscalls.set_name("atoll-shim")
            self._log.install()

    def _begin(self, request: ShimRequest, listener: socket.socket) -> None:
        self._tasks.spawn(self._serve(request, listener), name=f"shim/{request.id}")

    async def _serve(self, request: ShimRequest, listener: socket.socket) -> None:
        try:
            with self._log.of(request.bundle, request.id, debug=request.debug):
                try:
                    await server.serve(request, listener, self._reaper, self._holders, alone=self._alone)
                except Exception:  # the boundary of a shim: the last word goes to its log
                    log.exception("the shim failed")
        except OSError as error:
            log.error("shim %s: its log cannot be written: %s", request.id, error)
        finally:
            listener.close()
            self._shims -= 1
            self._ended()

    def _ended(self) -> None:
        if self._control is not None:
            # A full socket is a zygote that hears nothing any more.
            with contextlib.suppress(OSError):
                self._control.send(SHIM_ENDED)
        elif not self._shims:
            self._over.set()

    def _close_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            self._loop.remove_reader(control)
            control.close()
        if not self._shims:
            self._over.set()
