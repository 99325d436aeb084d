"""The life of a shim process: from the fork to its end.

    run ── records, log, signals ── loop ── reaper, services, socket ── until `end()` ── flush, remove the socket

Only `end()` ends it: the last Shutdown of the Task service or ShutdownSandbox. A daemon that dies, a
connection that breaks, SIGTERM, SIGINT and SIGHUP do not.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from pathlib import Path

import atoll
from atoll.api import containerd_runtime_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.concurrency import TaskOwner
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.shim import logfile, records
from atoll.shim.events import Forwarder
from atoll.shim.reaper import Reaper
from atoll.shim.request import ShimRequest
from atoll.shim.sandbox import SandboxService
from atoll.shim.shim import Shim
from atoll.shim.stdio.streaming import Streams
from atoll.shim.task import TaskService
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import methods_of

TASK_V2 = "containerd.task.v2.Task"
TASK_V3 = "containerd.task.v3.Task"
END_TIMEOUT_S = 2.0
FLUSH_TIMEOUT_S = 2.0
TASK_API_VERSION = 3

log = logging.getLogger(__name__)


def run(request: ShimRequest, listener: socket.socket) -> int:
    """Be the shim of `request` until it ends; the exit code. Call it in a fresh process of one thread."""
    _detach(request)
    gc.enable()
    try:
        asyncio.run(_serve(request, listener))
    except Exception:  # the boundary of the process: the last word goes to its log
        log.exception("the shim failed")
        return 1
    finally:
        Path(request.socket).unlink(missing_ok=True)
    return 0


def _detach(request: ShimRequest) -> None:
    """Become a session and a subreaper of its own, with a log instead of the parent's streams."""
    os.setsid()
    os.umask(0o022)
    os.chdir(request.bundle)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    syscalls.set_name("atoll-shim")
    syscalls.set_child_subreaper(True)
    handler = logfile.configure(Path(request.bundle), request.id, debug=request.debug)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, source in ((0, null), (1, null), (2, handler.fd)):
        os.dup2(source, number)
    os.close(null)


async def _serve(request: ShimRequest, listener: socket.socket) -> None:
    _write_records(request)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, log.info, "signal %d: only a Shutdown ends a shim", number)
    reaper = Reaper()
    reaper.open()
    async with TaskOwner("shim") as tasks:
        events = Forwarder(request.ttrpc_address, request.namespace, tasks)
        shim = Shim(request=request, reaper=reaper, tasks=tasks, events=events, streams=Streams())
        server = Server(peer_uid=os.geteuid())
        register(server, shim)
        await server.serve(listener)
        log.info("serving pid=%d socket=%s", os.getpid(), request.socket)
        await shim.ended.wait()
        await server.shutdown(within=END_TIMEOUT_S)
        await events.flush(within=FLUSH_TIMEOUT_S)
        await events.aclose()
    reaper.close()
    log.info("ended")


def register(server: Server, shim: Shim) -> None:
    """Serve what a shim serves; the Task service under both names, since their messages are equal on the wire."""
    task = TaskService(shim)
    methods = methods_of(task_pb2.DESCRIPTOR.services_by_name["Task"], task)
    server.register(TASK_V2, methods)
    server.register(TASK_V3, methods)
    server.add_service(sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"], SandboxService(shim, task))


def _write_records(request: ShimRequest) -> None:
    bundle = Path(request.bundle)
    own = processes.identify(os.getpid())
    assert own is not None
    record = records.ShimRecord(
        pid=own.pid, start_ticks=own.start_ticks, boot_id=own.boot_id, version=atoll.__version__
    )
    records.write(bundle / records.SHIM, record)
    where = records.BootstrapRecord(version=TASK_API_VERSION, address=f"unix://{request.socket}", protocol="ttrpc")
    records.write(bundle / records.BOOTSTRAP, where)


def rehearse() -> None:
    """Run a server and a client once, so that what is built lazily is there before the fork."""
    asyncio.run(_rehearse())


async def _rehearse() -> None:
    pass
