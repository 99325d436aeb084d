"""A shim in this process: its services over a real ttrpc socket, its launcher without a program."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from atoll import errors
from atoll.api import containerd_runtime_sandbox_v1_pb2 as pb
from atoll.api import containerd_task_v3_pb2 as task
from atoll.concurrency import TaskOwner
from atoll.runtime.bootstrap import Bootstrap
from atoll.runtime.bundle import Bundle
from atoll.runtime.shim import LaunchRequest, Shim
from atoll.sandbox.controller import ExitStatus, Runtime
from atoll.testing.faultpoints import FaultPlan
from atoll.ttrpc.server import Server
from atoll.ttrpc.service import CallContext


def request(folder: Path, shim_id: str = "one") -> LaunchRequest:
    bundle = Bundle(id=shim_id, namespace="test", path=folder / shim_id)
    return LaunchRequest(id=shim_id, namespace="test", runtime=Runtime(name="io.test.v1"), bundle=bundle)


class SandboxService:
    """One sandbox, in memory. Points for faults are `shim.<method>`. Method names are the protocol's."""

    def __init__(self, faults: FaultPlan) -> None:
        self._faults = faults
        self.state = ""
        self.waits = 0
        self.ended = asyncio.Event()
        self.shut_down = asyncio.Event()

    async def CreateSandbox(self, request: pb.CreateSandboxRequest, context: CallContext) -> pb.CreateSandboxResponse:  # noqa: N802
        await self._faults.reach("shim.create")
        self.state = "SANDBOX_NOTREADY"
        return pb.CreateSandboxResponse()

    async def StartSandbox(self, request: pb.StartSandboxRequest, context: CallContext) -> pb.StartSandboxResponse:  # noqa: N802
        await self._faults.reach("shim.start")
        self.state = "SANDBOX_READY"
        return pb.StartSandboxResponse(pid=7)

    async def StopSandbox(self, request: pb.StopSandboxRequest, context: CallContext) -> pb.StopSandboxResponse:  # noqa: N802
        await self._faults.reach("shim.stop")
        self.state = "SANDBOX_NOTREADY"
        self.ended.set()
        return pb.StopSandboxResponse()

    async def WaitSandbox(self, request: pb.WaitSandboxRequest, context: CallContext) -> pb.WaitSandboxResponse:  # noqa: N802
        self.waits += 1
        await self._faults.reach("shim.wait")
        await self.ended.wait()
        return pb.WaitSandboxResponse(exit_status=3)

    async def SandboxStatus(self, request: pb.SandboxStatusRequest, context: CallContext) -> pb.SandboxStatusResponse:  # noqa: N802
        await self._faults.reach("shim.status")
        if not self.state:
            raise errors.NotFound("no such sandbox")
        pid = 7 if self.state == "SANDBOX_READY" else 0
        return pb.SandboxStatusResponse(sandbox_id=request.sandbox_id, state=self.state, pid=pid)

    async def PingSandbox(self, request: pb.PingRequest, context: CallContext) -> pb.PingResponse:  # noqa: N802
        return pb.PingResponse()

    async def ShutdownSandbox(  # noqa: N802
        self, request: pb.ShutdownSandboxRequest, context: CallContext
    ) -> pb.ShutdownSandboxResponse:
        await self._faults.reach("shim.shutdown")
        self.ended.set()
        self.shut_down.set()
        return pb.ShutdownSandboxResponse()


class OldTaskService:
    """The Task service of an old shim, registered for version 2 only."""

    async def Connect(self, request: task.ConnectRequest, context: CallContext) -> task.ConnectResponse:  # noqa: N802
        return task.ConnectResponse(shim_pid=os.getpid(), version="old")

    async def Pause(self, request: task.PauseRequest, context: CallContext) -> Empty:  # noqa: N802
        return Empty()


class LocalLauncher:
    """Shims in this process; implements `Launcher`. Points: `launcher.launch`, `.reconnect`, `.delete`."""

    def __init__(self, faults: FaultPlan | None = None) -> None:
        self.faults = faults or FaultPlan()
        self.servers: dict[str, Server] = {}
        self.services: dict[str, SandboxService] = {}
        self.recorded: ExitStatus | None = None
        self.deleted: list[str] = []
        self._owner = TaskOwner("local shims")

    async def serve(self, request: LaunchRequest) -> None:
        """Serve at the socket of the bundle, with what the sandbox was before."""
        service = self.services.setdefault(request.id, SandboxService(self.faults))
        server = self.servers[request.id] = Server()
        server.add_service(pb.DESCRIPTOR.services_by_name["Sandbox"], service)
        await server.serve(request.bundle.path / "sock")
        self._owner.spawn(self._end_when_told(request.id, server, service), name=f"shim {request.id}")

    async def _end_when_told(self, shim_id: str, server: Server, service: SandboxService) -> None:
        await service.shut_down.wait()
        if self.servers.get(shim_id) is server:
            await self.hang_up(shim_id)

    async def hang_up(self, shim_id: str) -> None:
        """End the server, its connections with it."""
        await self.servers.pop(shim_id).shutdown(within=0.05)

    async def launch(self, request: LaunchRequest) -> Shim:
        await self.faults.reach("launcher.launch")
        await self.serve(request)
        Bootstrap(version=3, address=f"unix://{request.bundle.path}/sock").store(request.bundle.path)
        return await self.reconnect(request)

    async def reconnect(self, request: LaunchRequest) -> Shim:
        await self.faults.reach("launcher.reconnect")
        bootstrap = Bootstrap.load(request.bundle.path)
        return await Shim.connect(id=request.id, namespace=request.namespace, bootstrap=bootstrap)

    async def ended(self, request: LaunchRequest) -> ExitStatus | None:
        return self.recorded

    async def delete(self, request: LaunchRequest, *, has_hung_up: bool = False) -> ExitStatus | None:
        await self.faults.reach("launcher.delete")
        self.deleted.append(request.id)
        if request.id in self.servers:
            await self.hang_up(request.id)
        request.bundle.delete()
        return None

    async def aclose(self) -> None:
        await self._owner.aclose()
        for shim_id in list(self.servers):
            await self.hang_up(shim_id)
