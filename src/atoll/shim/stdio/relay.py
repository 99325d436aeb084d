"""Logs and live streams for containers of a shim that is not ours, in a process that outlives the daemon.

A foreign shim copies output into fifos. A relay holds the other ends of them: it writes the CRI logs, serves live
streams under the same ids, and says so in the words of the shim protocol. One relay serves a pod.

    Create(CreateTaskRequest)   `bundle`: the folder of the fifos `<id>-stdin|-stdout|-stderr`; `stdin`, `stdout` and
                                `stderr`: the targets (`cri:` URIs). Before the shim's own Create.
    CloseIO, Delete, Shutdown   as in the Task service; Delete waits for the last output

and `atoll.shim.v1.Shim` for rotation, `containerd.services.streaming.v1.Streaming` for clients.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
from pathlib import Path

import msgspec
from google.protobuf import empty_pb2

import atoll
from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as own_pb2
from atoll.api import containerd_services_streaming_v1_pb2 as streaming_pb2
from atoll.api import containerd_task_v3_pb2 as task_pb2
from atoll.shim.stdio.request import StdioRequest
from atoll.shim.stdio.stdio import ForeignFifos, Stdio
from atoll.shim.stdio.streaming import StreamingService, Streams
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext, Method, methods_of

SERVICE = "atoll.relay.v1.Relay"
DRAIN_TIMEOUT_S = 10.0
END_TIMEOUT_S = 2.0

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,180}")

log = logging.getLogger(__name__)


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay is started with: the pod it serves, the path of its socket."""

    id: str
    socket: str
    namespace: str = ""


class Relay:
    """The processes of one pod whose output is relayed, and the three services over them."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self._streams = Streams()
        self._processes: dict[str, Stdio] = {}
        self.ended = asyncio.Event()

    def register(self, server: Server) -> None:
        """Serve everything a relay serves."""
        requests = {
            "Create": (self.create, task_pb2.CreateTaskRequest),
            "CloseIO": (self.close_io, task_pb2.CloseIORequest),
            "Delete": (self.delete, task_pb2.DeleteRequest),
            "Shutdown": (self.shutdown, task_pb2.ShutdownRequest),
        }
        server.register(
            SERVICE, {name: Method(handler=work, request_type=kind) for name, (work, kind) in requests.items()}
        )
        server.add_service(own_pb2.DESCRIPTOR.services_by_name["Shim"], self)
        streaming = StreamingService(self._streams)
        descriptor = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]
        server.register(descriptor.full_name, methods_of(descriptor, streaming))

    async def create(self, request: task_pb2.CreateTaskRequest, context: CallContext) -> task_pb2.CreateTaskResponse:
        """Open a process's fifos and targets and begin to relay; `AlreadyExists` for an id that is relayed."""
        if not _ID.fullmatch(request.id) or not request.bundle.startswith("/"):
            raise errors.InvalidArgument(f"container {request.id!r} in {request.bundle!r}: cannot name fifos")
        if request.id in self._processes:
            raise errors.AlreadyExists(f"container {request.id}: is relayed already")
        wanted = StdioRequest(
            id=request.id,
            namespace=self._config.namespace,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr="" if request.terminal else request.stderr,
        )
        stdio = await Stdio.open(wanted, self._streams, fifos=ForeignFifos(Path(request.bundle), request.id))
        self._processes[request.id] = stdio
        await stdio.started()
        return task_pb2.CreateTaskResponse(pid=os.getpid())

    async def close_io(self, request: task_pb2.CloseIORequest, context: CallContext) -> empty_pb2.Empty:
        """Close our end of stdin; the shim's own CloseIO is for the caller to call too."""
        self._find(request.id).close_stdin()
        return empty_pb2.Empty()

    async def delete(self, request: task_pb2.DeleteRequest, context: CallContext) -> task_pb2.DeleteResponse:
        """End a relay after its last output, which is awaited for 10 s at most; idempotent."""
        stdio = self._processes.get(request.id)
        if stdio is not None:
            if not await stdio.drain(DRAIN_TIMEOUT_S):
                log.warning("container %s: output not drained within %g s", request.id, DRAIN_TIMEOUT_S)
            self._processes.pop(request.id, None)
            await stdio.close()
        return task_pb2.DeleteResponse(pid=os.getpid())

    async def shutdown(self, request: task_pb2.ShutdownRequest, context: CallContext) -> empty_pb2.Empty:
        """End the process, if it relays nothing (or `now`); otherwise nothing happens."""
        if not self._processes or request.now:
            self.ended.set()
        return empty_pb2.Empty()

    async def ReopenLog(self, request: own_pb2.ReopenLogRequest, context: CallContext) -> own_pb2.ReopenLogResponse:
        """Go on in new log files."""
        self._find(request.container_id).reopen()
        return own_pb2.ReopenLogResponse()

    async def Info(self, request: own_pb2.InfoRequest, context: CallContext) -> own_pb2.InfoResponse:
        """Who we are and what we relay."""
        return own_pb2.InfoResponse(
            version=atoll.__version__,
            pid=os.getpid(),
            sandbox_id=self._config.id,
            container_ids=sorted(self._processes),
        )

    async def close(self) -> None:
        """Pass on what is in the fifos and close everything."""
        while self._processes:
            _, stdio = self._processes.popitem()
            await stdio.close()

    def _find(self, container: str) -> Stdio:
        stdio = self._processes.get(container)
        if stdio is None:
            raise errors.NotFound(f"container {container!r}: not relayed here")
        return stdio


def run(config: RelayConfig, listener: socket.socket) -> int:
    """Be the relay of `config` until a Shutdown; the exit code. Call it in a fresh process of one thread.

    It takes over the listening socket, whose path it removes at its end, and leaves the caller's session. Signals to
    end are ignored: output must outlive the daemon. Standard streams and log handlers are the caller's to set.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    gc.enable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(_serve(config, listener))
    finally:
        Path(config.socket).unlink(missing_ok=True)
    return 0


async def _serve(config: RelayConfig, listener: socket.socket) -> None:
    relay = Relay(config)
    server = Server(peer_uid=os.geteuid())
    relay.register(server)
    await server.serve(listener)
    try:
        await relay.ended.wait()
    finally:
        await server.shutdown(within=END_TIMEOUT_S)
        await relay.close()
