"""One shim: its services on its socket, from its first call to its end.

    records ── services, socket ── until `end()` ── flush, close the connections and streams

Only `end()` ends it: the last Shutdown of the Task service or ShutdownSandbox; or `kill()`. A daemon that dies and
a connection that breaks do not. Any number of shims live in one process: see `host`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec
from google.protobuf import empty_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

import atoll
from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_runtime_sandbox_v1_pb2 as sandbox_pb2
from atoll.api import containerd_services_streaming_v1_pb2 as streaming_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.api.cri_runtime_v1_pb2 import PodSandboxConfig
from atoll.linux import cgroup_layout
from atoll.linux import process as processes
from atoll.shim import records
from atoll.shim.own import OwnService
from atoll.shim.pod_holder import Holders
from atoll.shim.reaper import Reaper
from atoll.shim.request import HOST_SERVICE, ShimRequest
from atoll.shim.sandbox import SandboxService
from atoll.shim.shim import NOBODY, Shim
from atoll.shim.stdio.streaming import StreamingService
from atoll.shim.task import TaskService
from atoll.ttrpc import address as addresses
from atoll.ttrpc import codec
from atoll.ttrpc.calls import ServedConnection
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import Method, methods_of

TASK_V2 = "containerd.task.v2.Task"
TASK_V3 = "containerd.task.v3.Task"
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
END_TIMEOUT_S = 2.0
KILLED_TIMEOUT_S = 0.1
FLUSH_TIMEOUT_S = 2.0
TASK_API_VERSION = 3
REHEARSALS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """The services of one shim."""

    shim: Shim
    server: Server
    task: TaskService
    sandbox: SandboxService


def build(request: ShimRequest, reaper: Reaper, holders: Holders) -> Served:
    """Make a shim and its services, which do nothing yet."""
    shim = Shim(request, reaper, holders)
    server = Server(peer_uid=os.geteuid())
    task = TaskService(shim)
    sandbox = SandboxService(shim, task)
    # One set of messages under two names: they are equal on the wire.
    methods = methods_of(task_pb2.DESCRIPTOR.services_by_name["Task"], task)
    server.register(TASK_V2, methods)
    server.register(TASK_V3, methods)
    server.add_service(sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"], sandbox)
    server.add_service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], StreamingService(shim.streams))
    own = OwnService(shim, task, sandbox)
    server.add_service(own_pb2.DESCRIPTOR.services_by_name["Shim"], own)
    server.register(HOST_SERVICE, {"End": Method(handler=own.End, request_type=empty_pb2.Empty)})
    return Served(shim, server, task, sandbox)


async def serve(
    request: ShimRequest, listener: socket.socket, reaper: Reaper, holders: Holders, *, alone: bool
) -> None:
    """Be the shim of `request` from its first call to its end; the socket is closed and its path removed then.

    `alone`: this process serves no other. Raises `OSError` where the bundle takes no records.
    """
    served = build(request, reaper, holders)
    path = Path(request.socket)
    bound = addresses.inode(path)
    try:
        write_records(request, alone=alone)
        served.shim.events.open(request.ttrpc_address, request.namespace)
        await served.server.serve(listener)
        await served.shim.ended.wait()
    finally:
        # First of all, so that another shim may be made at this path.
        _remove_socket(path, bound)
        await _close(served)


def _remove_socket(path: Path, bound: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if addresses.inode(path) == bound:
            path.unlink()


async def _close(served: Served) -> None:
    shim = served.shim
    if shim.is_killed:
        # Nothing of it goes on when its peers see their connections end.
        await shim.tasks.aclose()
        await served.task.let_go()
        await served.sandbox.let_go()
    await served.server.shutdown(within=KILLED_TIMEOUT_S if shim.is_killed else END_TIMEOUT_S)
    await shim.events.flush(within=FLUSH_TIMEOUT_S)
    await shim.events.aclose()
    await shim.tasks.aclose()
    await served.task.let_go()
    log.info("ended")


def write_records(request: ShimRequest, *, alone: bool) -> None:
    """Say on disk which process serves the bundle, and where; raises `OSError`."""
    own = processes.parse_stat(own_stat())
    record = records.ShimRecord(
        pid=own.pid,
        start_ticks=own.start_ticks,
        boot_id=processes.boot_id(),
        version=atoll.__version__,
        alone=alone,
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
    with contextlib.suppress(errors.FailedPrecondition):  # no hierarchy is mounted: a pod that needs one says so
        cgroup_layout.of_host()
    asyncio.run(_rehearse())


async def _rehearse() -> None:
    await _rehearse_some(REHEARSALS)


def warm(loop: asyncio.AbstractEventLoop) -> None:
    """Answer some calls from nobody, so that the pages they write to are this process's own before it is needed."""
    loop.run_until_complete(_rehearse_some(1))


async def _rehearse_some(times: int) -> None:
    reaper = Reaper()
    served = build(NOBODY, reaper, Holders(reaper))
    async with served.shim.tasks, served.server as server:
        await _rehearse_calls(server, times)


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
