"""What Atoll's shim serves beyond containerd's services: `atoll.shim.v1.Shim`, and `End` of `HOST_SERVICE`."""

from __future__ import annotations

import os

from google.protobuf.empty_pb2 import Empty

import atoll
from atoll import errors
from atoll.api import atoll_shim_v1_pb2 as pb
from atoll.sandbox.resources import decode_resources, decode_updated
from atoll.shim.sandbox import SandboxService
from atoll.shim.shim import Shim
from atoll.shim.task import TaskService
from atoll.ttrpc.service import CallContext


class OwnService:
    """Log rotation, facts about the shim, and what containerd's Sandbox service of shims lacks."""

    def __init__(self, shim: Shim, task: TaskService, sandbox: SandboxService) -> None:
        self._shim = shim
        self._task = task
        self._sandbox = sandbox

    async def ReopenLog(self, request: pb.ReopenLogRequest, context: CallContext) -> pb.ReopenLogResponse:
        """Go on in a new log file at the same path; nothing to do for a container whose streams are closed."""
        stdio = self._task.container(request.container_id).init.stdio
        if stdio is not None:
            stdio.reopen()
        return pb.ReopenLogResponse()

    async def Execs(self, request: pb.ExecsRequest, context: CallContext) -> pb.ExecsResponse:
        """Also those that nobody deletes because their client is gone."""
        return pb.ExecsResponse(ids=self._task.container(request.container_id).execs)

    async def Info(self, request: pb.InfoRequest, context: CallContext) -> pb.InfoResponse:
        """Who serves, and what."""
        return pb.InfoResponse(
            version=atoll.__version__,
            pid=os.getpid(),
            sandbox_id=self._shim.request.id if self._task.has_sandbox else "",
            container_ids=sorted(container.id for container in self._task.containers),
            paused=self._task.freezer.is_frozen,
        )

    async def Pause(self, request: pb.PauseRequest, context: CallContext) -> pb.PauseResponse:
        """Stop every process of the pod, or of all containers where the shim has no pod of its own."""
        pod = self._sandbox.pod
        work = pod.pause() if pod is not None else self._task.freezer.freeze(lambda: self._task.running)
        await self._shim.own(work, name="sandbox/pause")
        return pb.PauseResponse()

    async def Resume(self, request: pb.ResumeRequest, context: CallContext) -> pb.ResumeResponse:
        """Let them go on."""
        pod = self._sandbox.pod
        if pod is not None:
            await self._shim.own(pod.resume(), name="sandbox/resume")
        else:
            self._task.freezer.thaw()
        return pb.ResumeResponse()

    async def Update(self, request: pb.UpdateRequest, context: CallContext) -> pb.UpdateResponse:
        """Change the pod's limits and annotations, all or nothing."""
        pod = self._sandbox.pod
        if pod is None:
            raise errors.NotFound(f"shim {self._shim.request.id}: has no sandbox to update")
        work = pod.update(
            decode_resources(request.linux_resources) if request.linux_resources else None,
            decode_updated(request.updated_resources) if request.updated_resources else None,
            request.annotations,
        )
        await self._shim.own(work, name="sandbox/update")
        return pb.UpdateResponse()

    async def End(self, request: Empty, context: CallContext) -> Empty:
        """End this shim as SIGKILL would end a process of its own; other shims of the process go on.

        Nothing of it runs any more once the connection is closed.
        """
        self._shim.kill()
        return Empty()
