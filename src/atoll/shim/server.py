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

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

import atoll
from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_runtime_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_services_streaming_v1_pb2 as streaming_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.concurrency import TaskOwner
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.shim import logfile, records
from atoll.shim.events import Forwarder
from atoll.shim.own import OwnService
from atoll.shim.reaper import Reaper
from atoll.shim.request import ShimRequest
from atoll.shim.sandbox import SandboxService
from atoll.shim.shim import Shim
from atoll.shim.stdio.streaming import StreamingService, Streams
from atoll.shim.task import TaskService
from atoll.ttrpc.client import Client
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import methods_of

TASK_V2 = "containerd.task.v2.Task"
TASK_V3 = "containerd.task.v3.Task"
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
END_TIMEOUT_S = 2.0
FLUSH_TIMEOUT_S = 2.0
TASK_API_VERSION = 3
REHEARSALS = 20

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
    server.add_service(own_pb2.DESCRIPTOR.services_by_name["Shim"], OwnService(shim, task))
    server.add_service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], StreamingService(shim.streams))
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
    """Be a shim without a process of its own for a moment, so that what is built lazily is there before the fork."""
    asyncio.run(_rehearse())


async def _rehearse() -> None:
    request = ShimRequest(id="rehearsal", namespace="rehearsal", bundle="/", socket="")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # a free abstract name (unix(7), autobind)
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    async with TaskOwner("rehearsal") as tasks, Server(peer_uid=os.geteuid()) as server:
        events = Forwarder("", request.namespace, tasks)
        register(server, Shim(request=request, reaper=Reaper(), tasks=tasks, events=events, streams=Streams()))
        await server.serve(listener)
        caller.connect(listener.getsockname())
        async with await Client.from_socket(caller) as client:
            for _ in range(REHEARSALS):
                await _rehearse_calls(client)


async def _rehearse_calls(client: Client) -> None:
    """Calls that change nothing: each but the first is refused."""
    pod = PodSandboxConfig(hostname="rehearsal", metadata={"name": "rehearsal"}, linux={"sysctls": {"net.none": ""}})
    options = AnyMessage(type_url=pod.DESCRIPTOR.full_name, value=pod.SerializeToString())
    # Without a network namespace it is refused before anything is made.
    sandbox = sandbox_pb2.CreateSandboxRequest(sandbox_id="rehearsal", bundle_path="/", options=options)
    calls = (
        (TASK_V3, "Connect", task_pb2.ConnectRequest(id="none")),
        (TASK_V3, "State", task_pb2.StateRequest(id="none")),
        (TASK_V3, "Wait", task_pb2.WaitRequest(id="none")),
        (SANDBOX, "CreateSandbox", sandbox),
        (SANDBOX, "SandboxStatus", sandbox_pb2.SandboxStatusRequest(sandbox_id="none")),
    )
    for service, method, message in calls:
        try:
            await client.call(service, method, message, Empty, timeout=END_TIMEOUT_S)
        except errors.AtollError:
            continue
