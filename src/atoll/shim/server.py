"""The life of a shim process: from the fork to its end.

    run ── records, log, signals ── loop ── reaper, services, socket ── until `end()` ── flush, remove the socket

Only `end()` ends it: the last Shutdown of the Task service or ShutdownSandbox. A daemon that dies, a
connection that breaks, SIGTERM, SIGINT and SIGHUP do not.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import socket
from dataclasses import dataclass

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage

import atoll
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_runtime_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_services_streaming_v1_pb2 as streaming_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.linux import process as processes
from atoll.linux import syscalls
from atoll.shim import logfile, records
from atoll.shim.own import OwnService
from atoll.shim.request import ShimRequest
from atoll.shim.sandbox import SandboxService
from atoll.shim.shim import NOBODY, Shim
from atoll.shim.stdio.streaming import StreamingService
from atoll.shim.task import TaskService
from atoll.ttrpc import codec
from atoll.ttrpc.calls import ServedConnection
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


@dataclass(slots=True)
class Prepared:
    """A shim that is nobody's yet, with its services; made before the fork, so that the fork finds it made.

    `loop` is made after the fork, by `settle`.
    """

    shim: Shim
    server: Server
    loop: asyncio.AbstractEventLoop | None = None


def prepare() -> Prepared:
    """Build the services of a shim; no event loop is needed."""
    shim = Shim()
    server = Server(peer_uid=os.geteuid())
    task = TaskService(shim)
    # One set of messages under two names: they are equal on the wire.
    methods = methods_of(task_pb2.DESCRIPTOR.services_by_name["Task"], task)
    server.register(TASK_V2, methods)
    server.register(TASK_V3, methods)
    server.add_service(sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"], SandboxService(shim, task))
    server.add_service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], StreamingService(shim.streams))
    server.add_service(own_pb2.DESCRIPTOR.services_by_name["Shim"], OwnService(shim, task))
    return Prepared(shim, server)


def settle() -> None:
    """Become a session and a subreaper of its own; what a new process can do before it knows who it is."""
    os.setsid()
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Handled, not ignored: programs started from here must not inherit that they are ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stay)
    syscalls.set_child_subreaper(True)


def run(request: ShimRequest, listener: socket.socket, prepared: Prepared) -> int:
    """Be the shim of `request` until it ends; the exit code. Call it in a settled process of one thread."""
    attend(request, "atoll-shim")
    prepared.shim.request = request
    loop = prepared.loop or asyncio.new_event_loop()
    try:
        write_records(request)
        loop.run_until_complete(_serve(prepared, listener))
    except Exception:  # the boundary of the process: the last word goes to its log
        log.exception("the shim failed")
        return 1
    finally:
        os.unlink(request.socket)
    return 0


def attend(request: ShimRequest, name: str) -> None:
    """Live in the bundle, with a log instead of the parent's streams."""
    gc.enable()
    os.chdir(request.bundle)
    syscalls.set_name(name)
    log_fd = logfile.configure(request.bundle, request.id, debug=request.debug)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, source in ((0, null), (1, null), (2, log_fd)):
        os.dup2(source, number)
    os.close(null)


def _stay(number: int, frame: object) -> None:
    log.info("signal %d: only a Shutdown ends a shim", number)


async def _serve(prepared: Prepared, listener: socket.socket) -> None:
    shim, server = prepared.shim, prepared.server
    shim.reaper.open()
    shim.events.open(shim.request.ttrpc_address, shim.request.namespace)
    await server.serve(listener)
    await shim.ended.wait()
    await server.shutdown(within=END_TIMEOUT_S)
    await shim.events.flush(within=FLUSH_TIMEOUT_S)
    await shim.events.aclose()
    await shim.tasks.aclose()
    shim.reaper.close()
    log.info("ended")


def write_records(request: ShimRequest) -> None:
    """Say on disk which process serves the bundle, and where; raises `OSError`."""
    own = processes.parse_stat(own_stat())
    record = records.ShimRecord(
        pid=own.pid, start_ticks=own.start_ticks, boot_id=processes.boot_id(), version=atoll.__version__
    )
    records.write(f"{request.bundle}/{records.SHIM}", record)
    where = records.BootstrapRecord(version=TASK_API_VERSION, address=f"unix://{request.socket}", protocol="ttrpc")
    records.write(f"{request.bundle}/{records.BOOTSTRAP}", where)


def own_stat(pid: int | str = "self") -> str:
    """The line of /proc/<pid>/stat."""
    return records.content(f"/proc/{pid}/stat").decode("utf-8", "surrogateescape")


def rehearse() -> None:
    """Be a shim without a process of its own for a moment, so that what is built lazily is there before the fork."""
    processes.boot_id()
    asyncio.run(_rehearse())


async def _rehearse() -> None:
    prepared = prepare()
    async with prepared.shim.tasks, prepared.server as server:
        await _rehearse_calls(server, REHEARSALS)


def warm(prepared: Prepared) -> None:
    """Answer some calls from nobody, so that the pages they write to are this process's own before it is needed."""
    assert prepared.loop is not None
    prepared.loop.run_until_complete(_rehearse_calls(prepared.server, 1))


async def _rehearse_calls(server: Server, times: int) -> None:
    processes.parse_stat(own_stat())
    msgspec.json.encode(records.ShimRecord(pid=0, start_ticks=0, boot_id="", version=""))
    caller, served = socket.socketpair()
    loop = asyncio.get_running_loop()
    with caller:
        caller.setblocking(False)
        await loop.connect_accepted_socket(lambda: ServedConnection(server), served)
        for number, frame in enumerate(rehearsed_frames() * times):
            caller.send(codec.encode_frame(2 * number + 1, codec.REQUEST, 0, frame))
            await loop.sock_recv(caller, codec.MAX_PAYLOAD_BYTES)


@functools.cache
def rehearsed_frames() -> tuple[bytes, ...]:
    """Calls that change nothing: each but the first is refused."""
    pod = PodSandboxConfig(hostname="rehearsal", metadata={"name": "rehearsal"}, linux={"sysctls": {"net.none": ""}})
    options = AnyMessage(type_url=pod.DESCRIPTOR.full_name, value=pod.SerializeToString())
    # Without a network namespace it is refused before anything is made.
    sandbox = sandbox_pb2.CreateSandboxRequest(sandbox_id=NOBODY.id, bundle_path="/", options=options)
    calls = (
        (TASK_V3, "Connect", task_pb2.ConnectRequest(id="none")),
        (TASK_V3, "State", task_pb2.StateRequest(id="none")),
        (TASK_V3, "Wait", task_pb2.WaitRequest(id="none")),
        (SANDBOX, "CreateSandbox", sandbox),
        (SANDBOX, "SandboxStatus", sandbox_pb2.SandboxStatusRequest(sandbox_id="none")),
    )
    return tuple(
        codec.encode_request(service, method, message.SerializeToString(), timeout_s=None, metadata=None)
        for service, method, message in calls
    )
